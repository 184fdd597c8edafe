"""What it costs to send: messages a second from one thread, and the processor time that each takes, here and in Redis.

Stock Dramatiq's ``send()`` against ours, which also finds the tenant and the correlation id, checks options and queue,
and looks for a transaction that the message is to leave with; and ``enqueue_many``, a thousand at a time, with the
making of the messages. Stock runs without hiredis, as it is installed, and with it, as ours does.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from uuid import UUID

if sys.argv[1:] == ["stock"]:
    # Before redis-py looks for it.
    sys.modules["hiredis"] = None  # type: ignore[assignment]

import redis

from tests.benchmarks.report import show
from tests.servers import running_redis

ROUNDS = 7
#: Messages a round, sent singly; and of ``enqueue_many``, so many at a time.
SENT, ENQUEUED, MANY = 3_000, 20_000, 1_000
QUEUE = "attribution"
TENANT = UUID(int=0xA)
STOCK = "stock"

#: By name what sends, and how many messages.
Senders = dict[str, tuple[Callable[[], object], int]]


def job(n: int) -> None:
    """Is not run."""


def stock(name: str) -> Senders:
    """Return what stock Dramatiq is measured by."""
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker

    broker = RedisBroker(url=os.environ["REDIS_URL"])
    actor = dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="test.stock")(job)

    def send() -> None:
        for n in range(SENT):
            actor.send(n)

    return {name: (send, SENT)}


def ours() -> Senders:
    """Return what ours is measured by."""
    from db.tenancy import tenant_context
    from worker.routing import actor as declare
    from worker.sending import enqueue_many

    actor = declare(queue_name=QUEUE, actor_name="test.ours")(job)
    of_nobody = declare(queue_name=QUEUE, actor_name="test.unscoped", tenant_scoped=False)(job)
    tenant_id = str(TENANT)

    def send_of_nobody() -> None:
        for n in range(SENT):
            of_nobody.send(n)

    def send_inside() -> None:
        with tenant_context(TENANT):
            for n in range(SENT):
                actor.send(n)

    def send_with_tenant() -> None:
        for n in range(SENT):
            actor.send_with_options(args=(n,), tenant_id=tenant_id)

    def send_many() -> None:
        with tenant_context(TENANT):
            for first in range(0, ENQUEUED, MANY):
                enqueue_many(actor.message(n) for n in range(first, first + MANY))

    def send_many_with_tenant() -> None:
        for first in range(0, ENQUEUED, MANY):
            enqueue_many(
                [actor.message_with_options(args=(n,), tenant_id=tenant_id) for n in range(first, first + MANY)]
            )

    return {
        "send() of no tenant": (send_of_nobody, SENT),
        "send() in tenant_context": (send_inside, SENT),
        "send_with_options(tenant_id)": (send_with_tenant, SENT),
        "enqueue_many in tenant_context": (send_many, ENQUEUED),
        "enqueue_many, each with tenant_id": (send_many_with_tenant, ENQUEUED),
    }


def measured(send: Callable[[], object], count: int, client: redis.Redis) -> dict[str, float]:
    """Return messages a second, and microseconds for each: by the clock, of this process' processor time, of Redis'."""
    client.delete(f"dramatiq:{QUEUE}", f"dramatiq:{QUEUE}.msgs")
    before = _processor_time(client)
    start, began = time.perf_counter(), time.process_time()
    send()
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


def measure(senders: Senders) -> None:
    """Say what each costs, once it has run before."""
    from loguru import logger

    logging.disable(logging.CRITICAL)
    logger.remove()
    found: dict[str, dict[str, float]] = {}
    with redis.Redis.from_url(os.environ["REDIS_URL"]) as client:
        # What is deleted between two measurements is not to cost the second.
        client.config_set("lazyfree-lazy-user-del", "no")
        for _ in range(2):
            found = {name: measured(*sender, client) for name, sender in senders.items()}
    print(json.dumps(found))


def main() -> None:
    """Run everything and print the tables."""
    figures: dict[str, dict[str, list[float]]] = {}
    with running_redis() as url:
        environment = {**os.environ, "REDIS_URL": url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none"}
        for _ in range(ROUNDS):
            for whose in ("stock", "stock-hiredis", "ours"):
                command = [sys.executable, "-m", "tests.benchmarks.enqueue", whose]
                said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
                for name, found in json.loads(said).items():
                    for what, value in found.items():
                        figures.setdefault(what, {}).setdefault(name, []).append(value)
    show("Messages a second from one thread", "per second", figures["rate"], against=STOCK)
    for what, unit in (("clock", "by the clock"), ("sender", "of the sender's processor"), ("redis", "of Redis'")):
        show(f"Microseconds {unit} for each", "us", figures[what], against=STOCK, digits=1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["stock"]:
            measure(stock(STOCK))
        case ["stock-hiredis"]:
            measure(stock("stock, with hiredis"))
        case ["ours"]:
            measure(ours())
        case _:
            main()
