"""What this process has counted for whoever is on call, until :mod:`middleware.metrics` tells it to Redis.

Counted in memory, because it is counted for every message: one lock, a few additions.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Container
from typing import Any, Final

from dramatiq.common import current_millis
from loguru import logger

from middleware.classification import UNKNOWN as UNCLASSIFIED
from middleware.classification import Classifier
from middleware.deliveries import REPLAY, Delivery
from middleware.dramatiq_internals import exception_of
from middleware.errors import WorkerLost
from middleware.message_checks import MILLISECONDS_AT_MOST
from middleware.metric_families import (
    DURATION,
    ERRORS,
    GIVEN_BACK,
    JOBS,
    OUTCOMES,
    QUARANTINES,
    REDELIVERIES,
    REPLAYS,
    RUNNING,
    SPOOLED,
    UNKNOWN,
    WAIT,
    WAITING,
    Family,
)
from middleware.tally import FAILED, RETRIED, SUCCEEDED

#: The option that says when a message was due, in milliseconds since 1970, where that is not when it was sent: Dramatiq
#: takes ``eta`` out of one that it moves off a delay queue. Whoever sends a message anew leaves it out.
DUE: Final = "dramaturg_due"
#: Seconds that a wait may count as: a clock that is years behind would be all that its sum tells.
WAIT_AT_MOST: Final = 30 * 86_400.0

#: A family and the values of its labels.
Series = tuple[Family, tuple[str, ...]]


class Counts:
    """Counters and histograms of this process; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: dict[Series, list[int]] = {}

    def add(self, family: Family, *labels: str, n: int = 1) -> None:
        """Add to a counter; ``n=0`` makes that it is there, so that its first increase is seen as one."""
        with self._lock:
            self._of(family, labels)[0] += n

    def observe(self, family: Family, seconds: float, *labels: str) -> None:
        """Add to a histogram."""
        with self._lock:
            _observe(family, self._of(family, labels), seconds)

    def take(self) -> dict[Series, list[int]]:
        """Return what was counted since this was last asked."""
        with self._lock:
            series, self._series = self._series, {}
        return series

    def _of(self, family: Family, labels: tuple[str, ...]) -> list[int]:
        values = self._series.get((family, labels))
        if values is None:
            # While Redis is away there is no more of it here than there may be there.
            if len(self._series) >= 2 * JOBS.at_most:
                labels = family.other(labels)
            values = self._series.setdefault((family, labels), [0] * family.values)
        return values


def _observe(family: Family, values: list[int], seconds: float) -> None:
    values[bisect_left(family.bounds, seconds)] += 1
    values[-1] += int(seconds * 1e6)


class _OfActor:
    """What has ended of one queue and actor: every message is counted here, so that it is looked up once."""

    __slots__ = ("durations", "outcomes", "waits")

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.durations = [0] * DURATION.values
        self.waits = [0] * WAIT.values


class JobMetrics(Counts):
    """Counts what becomes of messages. Nothing that goes wrong here is anything to them.

    Arguments:
      classify: Gives exceptions their error type, the same that failure rows have.
    """

    def __init__(self, classify: Callable[[BaseException | None], str] | None = None) -> None:
        super().__init__()
        self._classify = classify or Classifier()
        self._jobs: dict[tuple[str, str], _OfActor] = {}

    def ended(self, message: Delivery, outcome: str, queue: str, actors: Container[str]) -> None:
        """Count an execution whose end Redis knows. Raises nothing.

        Arguments:
          message: Which.
          outcome: One of :data:`~middleware.metric_families.OUTCOMES`.
          queue: Of those that this process consumes; a delay queue counts as its queue.
          actors: Those that are declared here: whatever else a message names is ``(unknown)``.
        """
        try:
            actor, began, took = message.actor_name, message.began, message.took or 0.0
            if actor not in actors:
                actor = UNKNOWN
            waited = None if began is None or outcome == GIVEN_BACK else _waited(message, began[0])
            with self._lock:
                of = self._jobs.get((queue, actor))
                if of is None:
                    of = self._jobs[queue, actor] = _OfActor()
                of.outcomes[outcome] += 1
                if waited is not None:
                    of.durations[bisect_left(DURATION.bounds, took)] += 1
                    of.durations[-1] += int(took * 1e6)
                    of.waits[bisect_left(WAIT.bounds, waited)] += 1
                    of.waits[-1] += int(waited * 1e6)
            if outcome != SUCCEEDED or message.to_spool is not None or REPLAY in message.options:
                self._count_more(message, outcome, queue)
        except Exception:  # noqa: BLE001 - the message has ended, and must be let go of
            logger.opt(exception=True).error("the end of message {} is not counted", message.message_id)

    def _count_more(self, message: Delivery, outcome: str, queue: str) -> None:
        """Count what few messages have."""
        if outcome in {FAILED, RETRIED}:
            error = exception_of(message)
            self.add(ERRORS, queue, self._error_type(error), outcome)
            if isinstance(error, WorkerLost):
                self.add(QUARANTINES, queue)
        if message.to_spool is not None:
            self.add(SPOOLED, queue)
        if outcome in {SUCCEEDED, FAILED} and REPLAY in message.options:
            self.add(REPLAYS, queue, outcome)

    def take(self) -> dict[Series, list[int]]:
        with self._lock:
            jobs, self._jobs = self._jobs, {}
            for labels, of in jobs.items():
                for outcome, count in of.outcomes.items():
                    if count:
                        self._of(JOBS, (*labels, outcome))[0] += count
                for family, values in ((DURATION, of.durations), (WAIT, of.waits)):
                    if any(values):
                        had = self._of(family, labels)
                        had[:] = map(sum, zip(had, values, strict=True))
            series, self._series = self._series, {}
        return series

    def _error_type(self, error: BaseException | None) -> str:
        try:
            return str(self._classify(error))
        except Exception:  # noqa: BLE001 - a user's exception, which may raise whatever is asked of it
            return UNCLASSIFIED

    def redelivered(self, queue: str, count: int, running: int) -> None:
        """Count messages that went back because their worker was lost.

        Arguments:
          count: How many.
          running: How many of these were running.
        """
        queue = queue.removesuffix(".DQ")
        self.add(REDELIVERIES, queue, RUNNING, n=running)
        self.add(REDELIVERIES, queue, WAITING, n=count - running)


def note_due(options: dict[str, Any], due: float) -> None:
    """Note in a message's options when it was due."""
    options[DUE] = int(due)


def note_sent_now(options: dict[str, Any]) -> None:
    """Note in the options of what follows from a job that it is sent now: it may have been made long before."""
    options[DUE] = current_millis()


def _waited(message: Delivery, began: float) -> float:
    due = message.options.get(DUE)
    if type(due) is not int or not 0 <= due <= MILLISECONDS_AT_MOST:
        due = _bounded(due, _bounded(message._message.message_timestamp, 0))
    return min(max(0.0, began - due / 1000), WAIT_AT_MOST)


def _bounded(milliseconds: object, otherwise: float) -> float:
    """Return milliseconds since 1970, or something else for what is no time: anybody who can write to Redis may have
    written it."""
    if not isinstance(milliseconds, int | float) or milliseconds != milliseconds:
        return otherwise
    return min(max(0, milliseconds), MILLISECONDS_AT_MOST)
