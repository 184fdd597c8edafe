"""Follows a run to its end, which is when each of its children has succeeded or is a failed job."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from dramatiq.errors import Retry
from loguru import logger
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.session import operator_transaction
from worker.arguments import shown
from worker.daily import runs
from worker.daily.runs import Run
from worker.text import counted

#: After which a run is finished, whatever is missing: longer than retries with the default back-off take.
WAIT_AT_MOST: Final = timedelta(days=1)
#: Milliseconds between two looks.
LOOK_SOON: Final = 1_000
LOOK_LATE: Final = 60_000


class NotYet(Retry):
    """Raised when a run is to be looked at again. It has not failed."""


def look_again(_retries: int, error: BaseException) -> bool:
    """Tell whether a run is looked at again; for the actor option ``retry_when``."""
    return isinstance(error, NotYet)


def parse_run_id(value: object) -> UUID:
    """Return the id of a run.

    Raises:
      ValueError: Naming the value.
    """
    try:
        return UUID(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"run_id: {shown(value)} is not a UUID") from None


def follow(run_id: UUID, actor_name: str) -> None:
    """Finish a run whose children have all ended, or that has waited long enough, and log its summary.

    Arguments:
      run_id: Which.
      actor_name: Of its children.

    Raises:
      NotYet: When it is to be looked at again, after a tenth of the time that it has taken, a minute at most.
      ValueError: When there is no such run.
    """
    try:
        with operator_transaction() as session:
            runs.check(session)
            runs.note_failures(session, run_id, actor_name)
            run = runs.get(session, run_id)
            if run is None:
                raise ValueError(f"run_id: there is no run {run_id}")
            now: datetime = session.execute(text("SELECT CURRENT_TIMESTAMP")).scalar_one()
            age = now - run.started_at
            over = run.missing == 0 or age >= WAIT_AT_MOST
            done = over and runs.finish(session, run, summary(run))
    except (OperationalError, InterfaceError, InternalError, PoolTimeout) as e:
        # Postgres is away, busy, or read-only after a failover. What is looked for does not run off.
        raise NotYet(f"run {run_id} cannot be looked at: {type(e).__name__}", delay=LOOK_LATE) from e
    if done:
        log = logger.info if run.succeeded == run.expected else logger.warning
        log("run {}: {}", run_id, summary(run))
    elif not over and run.finished_at is None:
        raise NotYet(f"run {run_id} goes on", delay=_delay(age))


def follow_what_was_left(actor_name: str) -> None:
    """Finish runs that waited long enough, and that nobody has followed to their end: Redis may lose what does.

    Arguments:
      actor_name: Of their children.
    """
    with operator_transaction() as session:
        left = runs.left_open(session, WAIT_AT_MOST)
    for run_id in left:
        follow(run_id, actor_name)


def summary(run: Run) -> str:
    """Return in a sentence how far a run is."""
    if run.expected is None:
        return f"{run.day}: it is not known for whom there was something to recompute; {run.succeeded} succeeded"
    parts = [f"{run.day}: {run.succeeded} of {counted(run.expected, 'recompute')} succeeded"]
    if run.failed:
        parts.append(f"{run.failed} failed")
    if run.missing:
        parts.append(f"{run.missing} missing, {max(0, run.expected - run.sent)} of them not sent")
    return ", ".join(parts)


def _delay(age: timedelta) -> int:
    return int(min(max(age.total_seconds() * 100, LOOK_SOON), LOOK_LATE))
