"""pytest fixtures for actors: add ``pytest_plugins = ["worker.testing"]`` to your ``conftest.py``.

No server is needed. Without ``REDIS_URL`` in the environment the broker is a StubBroker from the start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import UUID, uuid4

# Settings are read when worker.broker is first imported, and a test without servers should need none.
os.environ.setdefault("REDIS_URL", "stub://")

import dramatiq
import pytest
from dramatiq import Worker

from db.failures import Failure
from db.tenancy import tenant_context
from middleware.memory_broker import MemoryBroker


class TestBroker(MemoryBroker):
    """A StubBroker with the middleware of production; dead messages are in :attr:`failed_jobs` instead of a table.

    What is sent inside a ``transaction()`` is enqueued when that is committed, and not if it is rolled back.
    """

    __test__ = False  # pytest takes the name for a test's

    failed_jobs: list[Failure]


@pytest.fixture
def stub_broker() -> Iterator[TestBroker]:
    """A broker in memory to which every actor is bound for the length of the test.

    Retries come within milliseconds, unless an actor says its own ``min_backoff``. ``fail_fast_default`` is off: look
    at ``stub_broker.failed_jobs``, or call ``join(..., fail_fast=True)``.
    """
    from worker.broker import broker, make_middleware, queues, settings

    failed_jobs: list[Failure] = []
    # Tests do not wait for production's back-off.
    soon = settings.model_copy(update={"min_backoff": 1, "max_backoff": 10})
    stub = TestBroker(make_middleware(soon, failed_jobs.append, queues), fail_fast_default=False)
    stub.failed_jobs = failed_jobs
    for queue in sorted(queues):
        stub.declare_queue(queue)
    actors = list(broker.actors.values())
    for actor in actors:
        stub.declare_actor(actor)
        actor.broker = stub
    dramatiq.set_broker(stub)
    try:
        yield stub
    finally:
        dramatiq.set_broker(broker)
        for actor in stub.actors.values():
            actor.broker = broker
            if actor.actor_name not in broker.actors:
                # Its module was first imported during this test.
                broker.declare_queue(actor.queue_name)
                broker.declare_actor(actor)
        stub.flush_all()
        stub.close()


@pytest.fixture
def stub_worker(stub_broker: TestBroker) -> Iterator[Worker]:
    """A worker on ``stub_broker``. Wait for it with ``stub_broker.join(actor.queue_name); stub_worker.join()``."""
    worker = Worker(stub_broker, worker_timeout=20, worker_threads=4)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()


@pytest.fixture
def tenant() -> Iterator[UUID]:
    """A new tenant's id, bound for the length of the test."""
    tenant_id = uuid4()
    with tenant_context(tenant_id):
        yield tenant_id
