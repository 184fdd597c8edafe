"""What looking at queues and removing messages costs with a million waiting, and what an idle process asks of Redis
while its queue is paused, against one that is not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from uuid import UUID, uuid4

import redis
from dramatiq import Message, Worker
from loguru import logger

from tests.benchmarks.drain import calls, child, make
from tests.servers import running_redis
from worker.queue_admin import count_messages, list_queues, pause, purge, remove_messages

MESSAGES, TENANTS = 1_000_000, 200
QUEUE = "attribution"


def idle(variant: str) -> dict[str, float]:
    """Return the calls a second of a process that has nothing to do, its queue ``paused`` or not."""
    broker, client = make("ours")
    if variant == "paused":
        pause(client, QUEUE, by="benchmark")
    worker = Worker(broker, worker_threads=8, queues={QUEUE})
    worker.start()
    time.sleep(3)
    before = calls(client)
    time.sleep(20)
    a_second = (calls(client) - before) / 20
    worker.stop()
    broker.close()
    return {"calls a second": a_second}


def fill(client: redis.Redis) -> None:
    """Let a million messages of 200 tenants wait."""
    pipeline = client.pipeline(transaction=False)
    bodies = []
    for n in range(TENANTS):
        # As different at their beginning as real ones are.
        options = {"redis_message_id": str(uuid4()), "tenant_id": str(tenant(n)), "correlation_id": str(uuid4())}
        arguments = {"window_start": "2025-01-01", "window_end": "2025-02-01", "model": "linear"}
        bodies.append(Message(QUEUE, "worker.attribution.recompute_window", (), arguments, options).encode())
    for n in range(MESSAGES):
        redis_id = str(UUID(int=n))
        pipeline.hset(f"dramatiq:{QUEUE}.msgs", redis_id, bodies[n % TENANTS])
        pipeline.rpush(f"dramatiq:{QUEUE}", redis_id)
        if n % 5_000 == 4_999:
            pipeline.execute()


def tenant(n: int) -> UUID:
    """Return the tenant of every 200th message."""
    return UUID(int=(n + 1) << 96)


def timed(what: str, client: redis.Redis, do: Callable[[], Any], *, times: int = 1) -> None:
    """Do it, and print how long it took, and how long it kept Redis from others at most."""
    client.slowlog_reset()
    took = []
    for _ in range(times):
        start = time.perf_counter()
        do()
        took.append((time.perf_counter() - start) * 1000)
    slow: Any = client.slowlog_get(1_000)
    longest = max((entry["duration"] / 1000 for entry in slow), default=0)
    print(f"{what}: {median(took):,.1f} ms, Redis busy for {longest:.0f} ms at most at a time")


def main() -> None:
    """Run everything and print it."""
    logger.remove()
    with running_redis() as url, redis.Redis.from_url(url) as client:
        for variant in ("idle", "paused"):
            client.flushall()
            output, _ = child("idle", url, variant, module="tests.benchmarks.queues").communicate()
            print(f"{variant}:", json.loads(output))
        client.flushall()
        fill(client)
        client.config_set("slowlog-log-slower-than", 1_000)
        client.config_set("slowlog-max-len", 1_000)
        timed("list_queues", client, lambda: list_queues(client), times=20)
        timed("count_messages of a tenant", client, lambda: count_messages(client, tenant_id=tenant(0)))
        timed("remove_messages of a tenant", client, lambda: remove_messages(client, by="b", tenant_id=tenant(0)))
        timed("purge of the rest", client, lambda: purge(client, QUEUE, by="b"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(idle(sys.argv[2])))
    else:
        main()
