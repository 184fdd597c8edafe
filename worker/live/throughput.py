"""How many messages end in a minute, of each queue."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import redis

from middleware.tally import FAILED, OUTCOMES, RETRIED, SUCCEEDED
from worker.queue_admin.keys import answer, asking
from worker.queue_admin.lives import server_time

#: Minutes for which counts are kept, of which more cannot be asked for.
KEPT: Final = 180
#: Full minutes that a rate is of.
RATED: Final = 5


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of one queue, minute by minute on the server's clock, the oldest first. The last minute is not over yet.

    A minute has what processes told in it, which they do every two seconds. What one that was killed had not told is
    missing, and what it told when Redis' answer was lost may be there twice: see :mod:`middleware.tally`. What stock
    Dramatiq's workers ended and what an operator removed is not in it.
    """

    queue: str
    #: When the first minute began.
    since: datetime
    #: Messages that ended well, and those that became a row of ``worker_failed_jobs``.
    succeeded: tuple[int, ...]
    failed: tuple[int, ...]
    #: Executions that failed and are to be tried again, so that their message has not ended.
    retried: tuple[int, ...]
    #: Messages that ended, well or not, a minute: on average of the last five full ones.
    rate: float

    @property
    def ended(self) -> tuple[int, ...]:
        """Messages that ended, well or not."""
        return tuple(map(sum, zip(self.succeeded, self.failed, strict=True)))


def throughput(
    client: redis.Redis, minutes: int = 60, *, queues: Collection[str] = (), namespace: str = "dramatiq"
) -> dict[str, Throughput]:
    """Return how many messages ended in each of the last ``minutes``, of each queue of which any did, by name.

    It reads a key for each minute, whatever ended.

    Arguments:
      client: To Redis.
      minutes: 1 to 180; the last is the one that is not over yet.
      queues: These are in it, though nothing of them ended.
      namespace: Prefix of every key.

    Raises:
      ValueError: When ``minutes`` cannot be.
      ConnectionClosed: For any error of Redis.
    """
    if not 1 <= minutes <= KEPT:
        raise ValueError(f"minutes must be 1 to {KEPT}, not {minutes!r}")
    with asking():
        now = int(server_time(client) // 60_000)
        read = max(minutes, RATED + 1)
        # Not a transaction, which a full Redis 7 takes none of.
        with client.pipeline(transaction=False) as pipeline:
            for minute in range(now - read + 1, now + 1):
                pipeline.hgetall(f"{namespace}:__dramaturg__.ended.{minute}")
            found = answer(pipeline.execute())
    counts: dict[str, dict[str, list[int]]] = {}
    for n, of_minute in enumerate(found):
        for name, count in of_minute.items():
            outcome, _, queue = name.decode("utf-8", "replace").partition(":")
            if outcome in OUTCOMES:
                _empty(counts, queue, read)[outcome][n] = int(count)
    for queue in queues:
        _empty(counts, queue, read)
    since = datetime.fromtimestamp((now - minutes + 1) * 60, UTC)
    return {queue: _of(queue, since, minutes, counts[queue]) for queue in sorted(counts)}


def _empty(counts: dict[str, dict[str, list[int]]], queue: str, minutes: int) -> dict[str, list[int]]:
    return counts.setdefault(queue, {outcome: [0] * minutes for outcome in OUTCOMES})


def _of(queue: str, since: datetime, minutes: int, counts: dict[str, list[int]]) -> Throughput:
    ended = sum(sum(counts[outcome][-RATED - 1 : -1]) for outcome in (SUCCEEDED, FAILED))
    last = {outcome: tuple(counts[outcome][-minutes:]) for outcome in OUTCOMES}
    return Throughput(queue, since, last[SUCCEEDED], last[FAILED], last[RETRIED], ended / RATED)
