"""What stands on a queue without ``send()``: any program may put it there."""

from __future__ import annotations

import hashlib

import redis


def task_id_of(queue: str, redis_id: str, raw: bytes) -> str:
    """Return what the row of something is called that is no message; see :mod:`middleware.deliveries`."""
    return hashlib.sha256(b"\0".join([queue.encode(), redis_id.encode(), raw])).hexdigest()


def put(client: redis.Redis, queue: str, redis_id: str, raw: bytes) -> None:
    """Put it on a queue as stock Dramatiq does."""
    with client.pipeline(transaction=True) as commands:
        commands.hset(f"dramatiq:{queue}.msgs", redis_id, raw)
        commands.rpush(f"dramatiq:{queue}", redis_id)
        commands.execute()
