"""Makes the runner of a process from its settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

import redis
from dramatiq import Broker
from dramatiq.errors import ConnectionClosed
from sqlalchemy import text

from db.session import operator_transaction
from middleware.lossless_broker import LEASE
from middleware.lua_scripts import Scripts
from worker.replay.runner import Runner
from worker.replay.today import Today
from worker.settings import Settings


def make_runner(
    settings: Settings,
    broker: Broker,
    client: redis.Redis,
    name: str,
    wait: Callable[[float], bool],
    *,
    knows_all: bool,
) -> Runner:
    """Return a runner.

    Arguments:
      settings: Say where Redis is, and what was renamed.
      broker: Which knows the actors.
      client: Of Redis.
      name: Names this process, and no other.
      wait: Waits so many seconds, and tells whether to stop.
      knows_all: Whether every actor there is, is imported here.
    """
    return Runner(
        operator_transaction,
        Scripts(client, settings.redis_namespace),
        name,
        lambda: make_today(settings, broker, client, knows_all=knows_all),
        keys=settings.keys,
        renamed=settings.renamed,
        wait=wait,
    )


def make_today(settings: Settings, broker: Broker, client: redis.Redis, *, knows_all: bool) -> Today:
    """Return what messages are checked against now."""
    # Routing declares actors on this process' broker, so it can only be asked later.
    from worker.routing import queue_of

    return Today(
        broker,
        existing_tenants,
        consumed_queues(client, settings.redis_namespace),
        knows_all=knows_all,
        queue_of=queue_of,
    )


def existing_tenants(tenant_ids: Collection[UUID]) -> set[UUID]:
    """Return those of ``tenant_ids`` that there are."""
    with operator_transaction() as session:
        return set(session.scalars(text("SELECT id FROM tenants WHERE id = ANY(:ids)"), {"ids": list(tenant_ids)}))


def consumed_queues(client: redis.Redis, namespace: str) -> set[str]:
    """Return the queues that live workers of ours consume.

    Raises:
      ConnectionClosed: When Redis cannot be asked.
    """
    own = f"{namespace}:__dramaturg__."
    try:
        seconds, microseconds = client.time()
        now = seconds * 1000 + microseconds // 1000
        # redis-py's types allow for answers that it gives when told to decode them, which it is not.
        alive: Any = client.zrangebyscore(f"{own}alive", now - LEASE, "+inf")
        pipe = client.pipeline(transaction=False)
        for broker_id in alive:
            pipe.smembers(f"{own}queues.{broker_id.decode()}")
        queues: set[bytes] = set().union(*pipe.execute())
    except redis.RedisError as e:
        raise ConnectionClosed(f"Redis: {e}") from e
    return {queue.decode() for queue in queues if not queue.endswith(b".DQ")}


def sleep(seconds: float) -> bool:
    """Wait, and go on."""
    time.sleep(seconds)
    return False
