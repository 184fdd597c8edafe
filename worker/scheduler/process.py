"""The loop of a scheduler: look, send what is due, wait for the next tick.

Nothing is remembered here between two looks, so it may be killed at any moment and there may be any number of it. Time
is the Redis server's: the host's clock decides nothing, and only measures how long to wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.deliveries import Entry
from middleware.job_metrics import Counts
from middleware.lossless_broker import LosslessBroker
from middleware.metric_families import LATENESS, LET_BE, MISSED, ON_TIME, SCHEDULED
from middleware.metrics import Teller
from middleware.unique import Outcome, policy_of
from worker.scheduler.jobs import Job
from worker.scheduler.plan import Due, due
from worker.scheduler.state import Looked, State
from worker.scheduler.tick import message_of

#: Seconds between two looks at most, so that a clock that was set is noticed; and between two while Redis is away.
LOOK_EVERY, AGAIN_AFTER = 5.0, 1.0
#: Seconds between two lines of the log about the same trouble.
ALARM_EVERY: Final = 60.0


class Scheduler:
    """Sends jobs when their time comes.

    Arguments:
      broker: Which knows their actors.
      jobs: All of them, also those that are off.
      state: That all schedulers share.
      facts: About this process: ``name`` and the like.
      wait: Waits so many seconds, and tells whether to stop.
      clock: Seconds that only go forward.
    """

    def __init__(
        self,
        broker: LosslessBroker,
        jobs: Sequence[Job],
        state: State,
        facts: Mapping[str, Any],
        wait: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._broker = broker
        self._jobs = jobs
        self._state = state
        self._facts = dict(facts, jobs=sum(job.on for job in jobs), since=None, next=None, next_job=None, left=False)
        self._wait = wait
        self._clock = clock
        self._counts = Counts() if broker.metrics is None else broker.metrics
        # Where nothing is to be told there is nobody to tell it.
        self._teller = None if broker.metrics is None else Teller(self._counts, broker.run)
        self._away: float | None = None
        self._alarmed: dict[str, float] = {}

    def run(self) -> None:
        """Run until told to stop."""
        while True:
            try:
                pause = self.turn()
            except ConnectionClosed as e:
                self._redis_is_away(e)
                pause = AGAIN_AFTER
            else:
                self._redis_is_there()
            if pause > 0 and self._wait(pause):
                return

    def turn(self) -> float:
        """Look, and send what is due; return for how many seconds there is nothing to do.

        Raises:
          ConnectionClosed: For any error of Redis; it may have taken what was sent.
        """
        began, first = self._clock(), self._facts["since"] is None
        looked = self._state.look(self._facts, self._jobs, first=first)
        if first:
            self._facts["since"] = looked.now.timestamp()
            self._introduce()
        done = [self._handle(job, looked) for job in self._jobs if job.on]
        following = self._note_next(looked)
        if self._teller is not None:
            self._teller.tell()
        if first or any(done):
            # What comes next is told at once.
            return 0.0
        if following is None:
            return LOOK_EVERY
        until = (following - looked.now).total_seconds() - (self._clock() - began)
        # One that could not be sent is due still.
        return LOOK_EVERY if until < 0 else min(max(until, 0.001), LOOK_EVERY)

    def leave(self, state: State) -> None:
        """Say that this scheduler ends.

        Arguments:
          state: To say it with.

        Raises:
          ConnectionClosed: For any error of Redis. Then others notice within seconds.
        """
        state.look({**self._facts, "left": True}, ())

    def _handle(self, job: Job, looked: Looked) -> bool:
        """Send what is due of a job, and tell whether anything was."""
        found = due(job, looked.handled[job.name], looked.now)
        if found is None:
            return False
        try:
            self._take(job, looked.handled[job.name], found)
        except ConnectionClosed:
            raise
        except Exception as e:  # noqa: BLE001 - whatever is wrong with one job, the others go on
            if self._alarm(job.name):
                logger.opt(exception=True).error("{} cannot be sent for {}: {!r}", job.name, _said(found.tick), e)
            return False
        return True

    def _take(self, job: Job, handled: datetime, found: Due) -> None:
        entry: Entry | None = None
        policy = ""
        known: dict[str, Any] = {"message_id": None, "by": self._facts["name"]}
        if found.send:
            message = message_of(self._broker, job, found.tick)
            # As every message is sent, up to the step that puts it on its queue: that one takes the tick as well.
            with self._broker.collecting() as collected:
                policy = policy_of(self._broker.enqueue(message).options)
            ((known["message_id"], entry),) = collected
        taken = self._state.take(job, handled, found.tick, entry, known, policy)
        if not taken:
            # Another scheduler was faster.
            return
        if isinstance(taken, Outcome):
            self._counts.add(SCHEDULED, job.name, LET_BE)
            # Where nobody works on its queue, at every tick.
            if self._alarm(f"one already: {job.name}"):
                logger.warning(
                    "{} is not sent for {}, because there is one already: message {} is {}",
                    *(job.name, _said(found.tick), taken.because_of, taken.state),
                )
            return
        late = found.late.total_seconds()
        self._counts.add(SCHEDULED, job.name, LET_BE if not found.send else MISSED if found.missed else ON_TIME)
        self._counts.observe(LATENESS, late)
        if not found.send:
            logger.warning("{} was missed at {}, {:.0f} s ago, and is let be", job.name, _said(found.tick), late)
        elif found.missed:
            logger.warning(
                "{} was missed at {}, {:.0f} s ago, and is sent now: {}",
                *(job.name, _said(found.tick), late, known["message_id"]),
            )
        else:
            logger.info("{} is sent for {}: {}", job.name, _said(found.tick), known["message_id"])

    def _introduce(self) -> None:
        """Count no tick of each job yet: of a series that begins with 1 Prometheus sees no increase."""
        for job in self._jobs:
            if job.on:
                for outcome in (ON_TIME, MISSED, LET_BE):
                    self._counts.add(SCHEDULED, job.name, outcome, n=0)

    def _note_next(self, looked: Looked) -> datetime | None:
        """Keep which tick comes next, to be told with the next sign of life."""
        ticks = ((job.cron.after(looked.handled[job.name]), job.name) for job in self._jobs if job.on)
        following = min(((tick, name) for tick, name in ticks if tick is not None), default=None)
        self._facts["next"] = None if following is None else following[0].timestamp()
        self._facts["next_job"] = None if following is None else following[1]
        return None if following is None else following[0]

    def _redis_is_away(self, error: Exception) -> None:
        now = self._clock()
        if self._away is None:
            self._away = now
        if self._alarm(""):
            logger.warning("nothing is scheduled, for {:.0f} s by now: {}", now - self._away, error)

    def _redis_is_there(self) -> None:
        if self._away is not None:
            logger.info("Redis is back after {:.0f} s", self._clock() - self._away)
            self._away = None
            self._alarmed.pop("", None)

    def _alarm(self, about: str) -> bool:
        """Tell whether to say so again."""
        now = self._clock()
        if now - self._alarmed.get(about, float("-inf")) < ALARM_EVERY:
            return False
        self._alarmed[about] = now
        return True


def _said(tick: datetime) -> str:
    return f"{tick:%Y-%m-%d %H:%M:%S} UTC"
