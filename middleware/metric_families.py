"""What worker and scheduler processes count for whoever is on call, and how far each may grow.

No family has a tenant among its labels, and none a message, a process or a host: what may be asked of those is in
Postgres, and in what lives at this moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from middleware.tally import FAILED, RETRIED, SUCCEEDED

#: What an actor is called that the process does not know, and what stands for all that a family has no room for.
UNKNOWN, OTHER = "(unknown)", "(other)"
#: An execution that a shutdown interrupted, so that its message went back as it was.
GIVEN_BACK: Final = "given_back"
#: How an execution may end.
OUTCOMES: Final = (SUCCEEDED, FAILED, RETRIED, GIVEN_BACK)
#: What a lost worker was doing with a message: running it, or holding it for later.
RUNNING, WAITING = "running", "waiting"
#: How a tick went: in time, later than a minute, or not at all.
ON_TIME, MISSED, LET_BE = "on_time", "missed", "let_be"

#: Pairs of queue and actor that are told apart.
_PAIRS: Final = 500
#: Of names that an application makes.
_OPEN: Final = frozenset({"queue", "actor", "error_type"})

#: Upper bounds of histograms, in seconds. Whoever changes them changes :data:`VERSION`, too.
_DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0)
_WAITS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 21600.0)
_LATENESS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0)
#: Of what Redis keeps: values under other bounds are others.
VERSION: Final = 1


# Each is itself alone: whatever is counted looks it up.
@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """A counter, or a histogram where it has bounds, by its name without prefix and suffix.

    Attributes:
      name: Such as ``jobs``, which is shown as ``dramaturg_jobs_total``.
      help: What it is, in a sentence.
      labels: Names of its labels.
      at_most: How many series of it Redis keeps, beside those that stand for all others.
      bounds: Seconds, upper bounds of a histogram's buckets; the last, infinity, is not named.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    at_most: int
    bounds: tuple[float, ...] = ()

    @property
    def values(self) -> int:
        """How many numbers a series of it is: one, or of a histogram one for each bucket and the sum of all, in
        microseconds."""
        return len(self.bounds) + 2 if self.bounds else 1

    def other(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Return the labels of what stands for a series that there is no room for."""
        return tuple(OTHER if name in _OPEN else value for name, value in zip(self.labels, labels, strict=True))


JOBS: Final = Family(
    "jobs",
    "Executions of messages that have ended: succeeded; failed for good, which is a row of worker_failed_jobs, also "
    "where nothing ran (expired, unknown actor, no message, no tenant); retried, which are to run again; given_back, "
    "which a shutdown interrupted.",
    ("queue", "actor", "outcome"),
    _PAIRS * len(OUTCOMES),
)
ERRORS: Final = Family(
    "job_errors",
    "Executions that failed, for good or to be retried, by error_type as worker_failed_jobs has it.",
    ("queue", "error_type", "outcome"),
    1_000,
)
DURATION: Final = Family(
    "job_duration_seconds",
    "How long executions ran that have ended, whatever their outcome, but for those given back.",
    ("queue", "actor"),
    _PAIRS,
    _DURATIONS,
)
WAIT: Final = Family(
    "job_wait_seconds",
    "How long messages had waited when an execution of theirs began, since they were sent, or since they were due "
    "where they were delayed or retried. When that was is told by the clock of whoever sent them, which may be wrong: "
    "what would be less than 0 counts as 0, more than 30 days as 30 days.",
    ("queue", "actor"),
    _PAIRS,
    _WAITS,
)
REDELIVERIES: Final = Family(
    "redeliveries",
    "Messages that went back to their queue because their worker was lost: running, which run again alone, or waiting "
    "in its process.",
    ("queue", "state"),
    1_000,
)
QUARANTINES: Final = Family(
    "quarantines",
    "Messages that lost too many workers and are not started again: rows of worker_lost.",
    ("queue",),
    500,
)
REPLAYS: Final = Family(
    "replays",
    "Replayed failed jobs that have ended: succeeded, which closed their row, or failed, which opened it again.",
    ("queue", "outcome"),
    1_000,
)
SPOOLED: Final = Family(
    "spooled",
    "Failures, and successes of replays, that went into the spool in Redis because Postgres did not take them.",
    ("queue",),
    500,
)
RECORDING: Final = Family(
    "failure_recording_seconds",
    "How long failed messages were held from their failure to their end, which comes once it is recorded, or in the "
    "spool: what grows where Postgres is slow.",
    ("queue",),
    500,
    _DURATIONS,
)
SCHEDULED: Final = Family(
    "scheduled",
    "Ticks of scheduled actors: sent on time, sent though they were missed by more than a minute, or let be.",
    ("actor", "outcome"),
    _PAIRS * 3,
)
LATENESS: Final = Family(
    "schedule_lateness_seconds",
    "How late ticks of scheduled actors were sent or let be, on the clock of Redis.",
    (),
    1,
    _LATENESS,
)

FAMILIES: Final = (
    JOBS, ERRORS, DURATION, WAIT, REDELIVERIES, QUARANTINES, REPLAYS, SPOOLED, RECORDING, SCHEDULED, LATENESS
)  # fmt: skip
