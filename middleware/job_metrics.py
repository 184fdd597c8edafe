"""What this process has counted for whoever is on call, until :mod:`middleware.metrics` tells it to Redis.

Counted in memory, because it is counted for every message: one lock, a few additions.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import deque
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
    RECORDING,
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

#: Messages that are noted before they are added up.
ADD_UP_AFTER: Final = 256

#: Of a message that has ended: queue, actor, outcome, when it began and how long it took, as :class:`Delivery` has it,
#: what it says of when it was due, and when it was sent.
_Ended = tuple[str, str, str, tuple[float, float] | None, float | None, Any, int]
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

    What ends is only noted, and added up by the hundred: code that has just run costs a fifth of what it costs after
    all that a message runs through.

    Arguments:
      classify: Gives exceptions their error type, the same that failure rows have.

    Attributes:
      actors: Names of those that are declared here: whatever else a message names is ``(unknown)``.
    """

    def __init__(self, classify: Callable[[BaseException | None], str] | None = None) -> None:
        super().__init__()
        self.actors: Container[str] = ()
        self._classify = classify or Classifier()
        self._noted: deque[_Ended] = deque()

    def ended(self, message: Delivery, outcome: str, queue: str) -> None:
        """Count an execution whose end Redis knows. Raises nothing.

        Arguments:
          message: Which.
          outcome: One of :data:`~middleware.metric_families.OUTCOMES`.
          queue: Of those that this process consumes; a delay queue counts as its queue.
        """
        try:
            options = message.options
            sent = message._message.message_timestamp
            self._noted.append(
                (queue, message.actor_name, outcome, message.began, message.took, options.get(DUE), sent)
            )
            if outcome != SUCCEEDED or message.to_spool is not None or REPLAY in options:
                self._count_more(message, outcome, queue)
            if len(self._noted) >= ADD_UP_AFTER:
                self._add_up()
        except Exception:  # noqa: BLE001 - the message has ended, and must be let go of
            logger.opt(exception=True).error("the end of message {} is not counted", message.message_id)

    def take(self) -> dict[Series, list[int]]:
        self._add_up()
        return super().take()

    def _add_up(self) -> None:
        with self._lock:
            while self._noted:
                try:
                    queue, actor, outcome, began, took, due, sent = self._noted.popleft()
                except IndexError:
                    # Another thread was faster.
                    return
                labels = (queue, actor if actor in self.actors else UNKNOWN)
                self._of(JOBS, (*labels, outcome))[0] += 1
                if began is not None and outcome != GIVEN_BACK:
                    _observe(DURATION, self._of(DURATION, labels), took or 0.0)
                    _observe(WAIT, self._of(WAIT, labels), _waited(began[0], due, sent))

    def _count_more(self, message: Delivery, outcome: str, queue: str) -> None:
        """Count what few messages have."""
        if outcome in {FAILED, RETRIED}:
            error = exception_of(message)
            # Of one that ends later the exception is not kept until then.
            self.add(ERRORS, queue, message.error_type or self._error_type(error), outcome)
            if isinstance(error, WorkerLost):
                self.add(QUARANTINES, queue)
        if outcome == FAILED and message.began is not None and message.took is not None:
            self.observe(RECORDING, time.perf_counter() - message.began[1] - message.took, queue)
        if message.to_spool is not None:
            self.add(SPOOLED, queue)
        if outcome in {SUCCEEDED, FAILED} and REPLAY in message.options:
            self.add(REPLAYS, queue, outcome)

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


def _waited(began: float, due: object, sent: object) -> float:
    due = _milliseconds(due, _milliseconds(sent, 0))
    return min(max(0.0, began - due / 1000), WAIT_AT_MOST)


def _milliseconds(since_1970: object, otherwise: float) -> float:
    """Return a time, or something else for what is none: anybody who can write to Redis may have written it."""
    if not isinstance(since_1970, int | float) or since_1970 != since_1970:
        return otherwise
    return min(max(0, since_1970), MILLISECONDS_AT_MOST)
