"""The failures that wait in Redis while Postgres is away."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import redis

from worker.queue_admin.keys import answer, asking


@dataclass(frozen=True, slots=True)
class SpoolState:
    """How many failures wait, and since when any did; None where none does."""

    size: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class SpooledGroup:
    """How many of the failures that wait are of one actor and error type."""

    task_name: str
    error_type: str
    failures: int


def spool_state(client: redis.Redis, *, namespace: str = "dramatiq") -> SpoolState:
    """Return how many failures wait, and since when.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    key = _key(namespace)
    with asking(), client.pipeline(transaction=False) as pipeline:
        pipeline.hlen(key)
        pipeline.get(f"{key}.since")
        size, since = answer(pipeline.execute())
    return SpoolState(size, datetime.fromtimestamp(int(since), UTC) if size and since else None)


def spool_groups(client: redis.Redis, *, namespace: str = "dramatiq") -> list[SpooledGroup]:
    """Return of which actors and error types the failures are that wait, the most first.

    It reads every one of them, tracebacks and all: 30 MB where the spool is full. Not for what is asked every few
    seconds.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    groups: Counter[tuple[str, str]] = Counter()
    with asking():
        for _, data in client.hscan_iter(_key(namespace), count=500):
            try:
                failure = json.loads(data)
                groups[str(failure["task_name"]), str(failure["error_type"])] += 1
            except (ValueError, KeyError, TypeError):
                groups["(unreadable)", "-"] += 1
    return [SpooledGroup(name, kind, count) for (name, kind), count in groups.most_common()]


def _key(namespace: str) -> str:
    return f"{namespace}:__dramaturg__.spool"
