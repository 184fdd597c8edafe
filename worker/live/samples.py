"""How deep queues were, minute by minute: what ``worker.housekeeping.sample_queues`` keeps for charts."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import redis

from middleware.lua_scripts import Scripts
from worker.queue_admin import QueueState, list_queues
from worker.queue_admin.keys import answer, asking
from worker.queue_admin.lives import server_time

#: Minutes for which samples are kept, of which more cannot be asked for.
KEPT: Final = 24 * 60
#: Seconds that an hour's are kept: until its last minute is as old as that.
_KEEP_HOUR: Final = KEPT * 60 + 3_600
#: Queues of one sample: those that are declared, and then the first others by name.
QUEUES_AT_MOST: Final = 200


@dataclass(frozen=True, slots=True)
class DepthSamples:
    """Of one queue, minute by minute on the server's clock, the oldest first. None where no sample has the queue.

    The last minute is the one that is not over yet, so it may have none.
    """

    queue: str
    #: When the first minute began.
    since: datetime
    #: Messages to be fetched, those in its delay queue, and those that processes have; see
    #: :class:`~worker.queue_admin.QueueState`.
    waiting: tuple[int | None, ...]
    delayed: tuple[int | None, ...]
    running: tuple[int | None, ...]
    #: Seconds since the first that waited was sent; also None where nothing waited.
    oldest: tuple[float | None, ...]


def keep_sample(client: redis.Redis, declared: Collection[str] = (), *, namespace: str = "dramatiq") -> bool:
    """Keep how deep queues are now, and tell whether that was the first time in this minute; others are not kept.

    Arguments:
      client: To Redis.
      declared: Queues that are in it beside the four, before all others.
      namespace: Prefix of every key.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking():
        minute = int(server_time(client) // 60_000)
        # Looking takes Redis some time, and of those that have waited for a worker there may be many.
        if client.hexists(_key(namespace, minute // 60), str(minute)):
            return False
    found = list_queues(client, declared, namespace=namespace)
    sample = json.dumps({state.name: _depths(state) for state in found[:QUEUES_AT_MOST]}, separators=(",", ":"))
    return bool(Scripts(client, namespace)("keep_depths", sample, _KEEP_HOUR))


def depth_samples(client: redis.Redis, minutes: int = 60, *, namespace: str = "dramatiq") -> dict[str, DepthSamples]:
    """Return how deep queues were in each of the last ``minutes``, of each queue of which there is a sample, by name.

    It reads a key for each hour.

    Arguments:
      client: To Redis.
      minutes: 1 to 1,440; the last is the one that is not over yet.
      namespace: Prefix of every key.

    Raises:
      ValueError: When ``minutes`` cannot be.
      ConnectionClosed: For any error of Redis.
    """
    if not 1 <= minutes <= KEPT:
        raise ValueError(f"minutes must be 1 to {KEPT}, not {minutes!r}")
    with asking():
        now = int(server_time(client) // 60_000)
        asked = range(now - minutes + 1, now + 1)
        with client.pipeline(transaction=False) as pipeline:
            for hour in range(asked[0] // 60, now // 60 + 1):
                pipeline.hmget(_key(namespace, hour), [str(m) for m in asked if m // 60 == hour])
            found = [data for of_hour in answer(pipeline.execute()) for data in of_hour]
    samples = [_read(data) for data in found]
    since = datetime.fromtimestamp(asked[0] * 60, UTC)
    names = sorted({name for sample in samples for name in sample})
    return {name: _of(name, since, [sample.get(name) for sample in samples]) for name in names}


def _key(namespace: str, hour: int) -> str:
    return f"{namespace}:__dramaturg__.depths.{hour}"


def _depths(state: QueueState) -> list[float | None]:
    oldest = None if state.oldest is None else round(state.oldest, 1)
    return [state.waiting, state.delayed, state.running, oldest]


def _of(queue: str, since: datetime, depths: Sequence[list[Any] | None]) -> DepthSamples:
    waiting, delayed, running, oldest = (tuple(None if one is None else one[n] for one in depths) for n in range(4))
    return DepthSamples(queue, since, waiting, delayed, running, oldest)


def _read(data: bytes | None) -> dict[str, list[Any]]:
    """Return a sample; what is none of ours is left out."""
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: depths for name, depths in found.items() if _are_depths(depths)}


def _are_depths(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value[:3])
        and (value[3] is None or isinstance(value[3], int | float))
    )
