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


class JobMetrics(Counts):
    """Counts what becomes of messages. Nothing that goes wrong here is anything to them.

    Arguments:
      classify: Gives exceptions their error type, the same that failure rows have.
    """

    def __init__(self, classify: Callable[[BaseException | None], str] | None = None) -> None:
        super().__init__()
        self._classify = classify or Classifier()

    def ended(self, message: Delivery, outcome: str, queue: str, actors: Container[str]) -> None:
        """Count an execution whose end Redis knows. Raises nothing.

        Arguments:
          message: Which.
          outcome: One of :data:`~middleware.metric_families.OUTCOMES`.
          queue: Of those that this process consumes; a delay queue counts as its queue.
          actors: Those that are declared here: whatever else a message names is ``(unknown)``.
        """
        try:
            self._ended(message, outcome, queue, actors)
        except Exception:  # noqa: BLE001 - the message has ended, and must be let go of
            logger.opt(exception=True).error("the end of message {} is not counted", message.message_id)

    def _ended(self, message: Delivery, outcome: str, queue: str, actors: Container[str]) -> None:
        actor = message.actor_name if message.actor_name in actors else UNKNOWN
        labels = (queue, str(actor))
        error = exception_of(message) if outcome in {FAILED, RETRIED} else None
        error_type = self._error_type(error) if outcome in {FAILED, RETRIED} else None
        waited = None if message.began is None or outcome == GIVEN_BACK else _waited(message, message.began[0])
        with self._lock:
            self._of(JOBS, (*labels, outcome))[0] += 1
            if waited is not None:
                _observe(DURATION, self._of(DURATION, labels), message.took or 0.0)
                _observe(WAIT, self._of(WAIT, labels), waited)
            if error_type is not None:
                self._of(ERRORS, (queue, error_type, outcome))[0] += 1
                if isinstance(error, WorkerLost):
                    self._of(QUARANTINES, (queue,))[0] += 1
            if message.to_spool is not None:
                self._of(SPOOLED, (queue,))[0] += 1
            if outcome in {SUCCEEDED, FAILED} and REPLAY in message.options:
                self._of(REPLAYS, (queue, outcome))[0] += 1

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
    due = _moment(message.options.get(DUE))
    if due is None:
        due = _moment(message.message_timestamp) or 0.0
    return min(max(0.0, began - due), WAIT_AT_MOST)


def _moment(milliseconds: object) -> float | None:
    """Return seconds since 1970; None for what is no time. Anybody who can write to Redis may have written it."""
    if not isinstance(milliseconds, int | float) or milliseconds != milliseconds:
        return None
    return min(max(0, milliseconds), MILLISECONDS_AT_MOST) / 1000
