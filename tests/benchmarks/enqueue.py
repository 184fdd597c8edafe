"""What it costs to send: messages a second from one thread, and the processor time that each takes, here and in Redis.

Stock Dramatiq's ``send()`` against ours, which also finds the tenant and the correlation id, checks options and queue,
and looks for a transaction that the message is to leave with; and ``enqueue_many``, a thousand at a time, with the
making of the messages.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from loguru import logger

from tests.benchmarks.report import interleave, show
from tests.servers import running_redis

ROUNDS = 7
#: Messages a round, sent singly; and of ``enqueue_many``, so many at a time.
SENT, ENQUEUED, MANY = 3_000, 20_000, 1_000
QUEUE = "attribution"
TENANT = UUID(int=0xA)


def senders() -> dict[str, tuple[Callable[[], object], int]]:
    """Return by name what sends messages, and how many."""
    from db.tenancy import tenant_context
    from worker.broker import broker
    from worker.sending import enqueue_many

    stock = RedisBroker(url=os.environ["REDIS_URL"])

    def job(n: int) -> None:
        """Is not run."""

    actors = {
        "stock": dramatiq.actor(broker=stock, queue_name=QUEUE, actor_name="test.stock")(job),
        "ours": dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="test.ours")(job),
        "unscoped": dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="test.unscoped", tenant_scoped=False)(
            job
        ),
    }
    tenant_id = str(TENANT)

    def send(name: str) -> None:
        actor = actors[name]
        for n in range(SENT):
            actor.send(n)

    def send_inside() -> None:
        with tenant_context(TENANT):
            send("ours")

    def send_with_tenant() -> None:
        actor = actors["ours"]
        for n in range(SENT):
            actor.send_with_options(args=(n,), tenant_id=tenant_id)

    def send_many() -> None:
        actor = actors["ours"]
        with tenant_context(TENANT):
            for first in range(0, ENQUEUED, MANY):
                enqueue_many(actor.message(n) for n in range(first, first + MANY))

    def send_many_with_tenant() -> None:
        actor = actors["ours"]
        for first in range(0, ENQUEUED, MANY):
            enqueue_many(
                [actor.message_with_options(args=(n,), tenant_id=tenant_id) for n in range(first, first + MANY)]
            )

    return {
        "stock": (partial(send, "stock"), SENT),
        "send() of no tenant": (partial(send, "unscoped"), SENT),
        "send() in tenant_context": (send_inside, SENT),
        "send_with_options(tenant_id)": (send_with_tenant, SENT),
        "enqueue_many in tenant_context": (send_many, ENQUEUED),
        "enqueue_many, each with tenant_id": (send_many_with_tenant, ENQUEUED),
    }


def measured(run: Callable[[], object], count: int, client: redis.Redis) -> dict[str, float]:
    """Return messages a second, and microseconds for each: by the clock, of this process' processor time, of Redis'."""
    client.delete(f"dramatiq:{QUEUE}", f"dramatiq:{QUEUE}.msgs")
    before = _processor_time(client)
    start, began = time.perf_counter(), time.process_time()
    run()
    took, spent = time.perf_counter() - start, time.process_time() - began
    in_redis = _processor_time(client) - before
    waiting = int(client.llen(f"dramatiq:{QUEUE}"))
    if waiting != count:
        raise AssertionError(f"{count} messages were sent, and {waiting} wait")
    each = 1e6 / count
    return {"rate": count / took, "clock": took * each, "sender": spent * each, "redis": in_redis * each}


def _processor_time(client: redis.Redis) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


def main() -> None:
    """Run everything and print the tables."""
    logging.disable(logging.CRITICAL)
    with running_redis() as url:
        os.environ.update(REDIS_URL=url, DATABASE_URL="postgres://nobody@127.0.0.1:1/none")
        variants = senders()
        logger.remove()
        figures: dict[str, dict[str, list[float]]] = {}

        with redis.Redis.from_url(url) as client:

            def run(name: str) -> float:
                found = measured(*variants[name], client)
                for what, value in found.items():
                    figures.setdefault(what, {}).setdefault(name, []).append(value)
                return found["rate"]

            interleave({name: partial(run, name) for name in variants}, 1)
            figures.clear()
            interleave({name: partial(run, name) for name in variants}, ROUNDS)
        show("Messages a second from one thread", "per second", figures["rate"], against="stock")
        for what, unit in (("clock", "by the clock"), ("sender", "of the sender's processor"), ("redis", "of Redis'")):
            show(f"Microseconds {unit} for each", "us", figures[what], against="stock", digits=1)


if __name__ == "__main__":
    main()
