"""Lanes: what waits in a queue, sorted by tenant so that they take turns; ``middleware/lua/shared/turns.lua``."""

from __future__ import annotations

from typing import Final

import redis

from middleware.lua_scripts import Scripts
from worker.queue_admin.keys import answer, asking
from worker.queues import check_queue_name

#: Messages that are moved in one step.
AT_ONCE: Final = 1_000


def tenants_with_lanes(client: redis.Redis, queue: str, namespace: str = "dramatiq") -> list[str]:
    """Return the tenants whose lanes may hold messages, as lanes are named: 32 hexadecimal digits, or ``-`` for nobody.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking():
        found = [
            answer(client.zrange(f"{namespace}:__dramaturg__.{what}.{queue}", 0, -1)) for what in ("turns", "parked")
        ]
    return sorted({tenant.decode("utf-8", "replace") for tenants in found for tenant in tenants})


def merge(client: redis.Redis, queue: str, *, namespace: str = "dramatiq") -> int:
    """Put what waits in lanes back into the queue's own list, turn by turn and before what is there, and return how
    much that was.

    For workers of a release that knows no lanes, or of stock Dramatiq, which see that list alone. Workers that take
    turns must not live meanwhile, or they sort it again.

    Raises:
      ValueError: When ``queue`` is no queue name.
      ConnectionClosed: For any error of Redis. What was moved by then is moved.
    """
    check_queue_name(queue)
    run, total = Scripts(client, namespace), 0
    while True:
        moved: int
        moved, left = run("merge_lanes", queue, AT_ONCE, 0)
        total += moved
        if not left or not moved:
            return total
