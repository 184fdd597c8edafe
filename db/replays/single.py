"""Sends one failed job again, once, however many ask for it at the same time."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.filters import Filter
from db.failed.statuses import IllegalMove, Status, why_not
from db.replays import items, runs
from db.replays.runs import ReplaySettings

#: What a replay takes jobs from.
REPLAYABLE: Final[tuple[Status, ...]] = ("pending", "abandoned")


class OnItsWay(IllegalMove):
    """Raised when a job is being sent again already; the message says by whom."""


def create(
    session: Session, failed_job_id: UUID, settings: ReplaySettings, *, by: str, reason: str | None = None
) -> UUID:
    """Make a replay of one job, and return the replay's id; otherwise as :func:`db.replays.runs.create`.

    Raises:
      LookupError: When the session sees no such job.
      OnItsWay: When it is being sent again already.
      IllegalMove: When it cannot be sent again as it stands.
    """
    hold(session, failed_job_id)
    return runs.create(session, Filter(ids=(failed_job_id,)), settings, by=by, reason=reason)


def hold(session: Session, failed_job_id: UUID) -> None:
    """Keep others from making a replay of a job until the transaction ends. Raises as :func:`create`."""
    # Not the row: a replay of many, for which this is one more, would pass it over.
    session.execute(
        text("SELECT pg_advisory_xact_lock(hashtextextended('dramaturg replay of ' || CAST(:id AS text), 0))"),
        {"id": str(failed_job_id)},
    )
    check(session, failed_job_id)


def check(session: Session, failed_job_id: UUID) -> None:
    """Return where a job could be sent again now. Raises as :func:`create`."""
    status: Status | None = session.execute(
        text("SELECT status FROM worker_failed_jobs WHERE id = :id"), {"id": failed_job_id}
    ).scalar()
    if status is None:
        raise LookupError(f"there is no failed job {failed_job_id}")
    if status == "in_progress":
        raise OnItsWay(f"{failed_job_id} is being worked on already")
    if status not in REPLAYABLE:
        raise IllegalMove(f"{failed_job_id} {why_not(status, 'in_progress')}")
    waiting = items.waiting_for(session, failed_job_id)
    if waiting is not None:
        raise OnItsWay(f"{failed_job_id} is being sent again already, by replay {waiting.replay_id} of {waiting.by}")
