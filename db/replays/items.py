"""What became of the jobs of a replay, one by one and by reason."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.replays.runs import State


@dataclass(frozen=True, slots=True)
class Refailed:
    """A job that failed again, as it stands now."""

    failed_job_id: UUID
    ended_at: datetime
    #: Which exception it failed with in this replay.
    exception_class: str | None
    #: None where the job was removed meanwhile.
    task_name: str | None
    error_message: str | None
    status: str | None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why jobs were not sent, or let go before that."""

    why: str
    jobs: int
    #: One of them.
    example: UUID


@dataclass(frozen=True, slots=True)
class Holder:
    """The replay that a job is in progress for."""

    id: UUID
    #: None of both where the session does not see the replay: of an operator's, whoever is bound to a tenant.
    state: State | None
    created_by: str | None


def holders(session: Session, ids: Collection[UUID]) -> dict[UUID, Holder]:
    """Return, of those of the jobs that a replay has claimed or sent and that have not ended, which replay that is."""
    rows = session.execute(
        text(
            """
            SELECT DISTINCT ON (item.failed_job_id) item.failed_job_id, item.replay_id, replay.state, replay.created_by
            FROM worker_replay_items item LEFT JOIN worker_replays replay ON replay.id = item.replay_id
            WHERE item.failed_job_id = ANY(:ids) AND item.state IN ('claimed', 'sent')
            ORDER BY item.failed_job_id, item.claimed_at DESC
            """
        ),
        {"ids": list(ids)},
    )
    return {row.failed_job_id: Holder(row.replay_id, row.state, row.created_by) for row in rows}


def last_failures(session: Session, replay_id: UUID, *, limit: int = 10) -> list[Refailed]:
    """Return the jobs of a replay that failed again, the last first."""
    rows = session.execute(
        text(
            """
            SELECT
                item.failed_job_id, item.ended_at, item.why AS exception_class,
                job.task_name, job.error_message, job.status
            FROM worker_replay_items item LEFT JOIN worker_failed_jobs job ON job.id = item.failed_job_id
            WHERE item.replay_id = :id AND item.state = 'failed' ORDER BY item.ended_at DESC LIMIT :limit
            """
        ),
        {"id": replay_id, "limit": limit},
    )
    return [Refailed(**row._mapping) for row in rows]


def reasons(session: Session, replay_id: UUID, *, limit: int = 20) -> list[Reason]:
    """Return why jobs of a replay were refused or let go, the most frequent first."""
    rows = session.execute(
        text(
            """
            SELECT coalesce(why, 'for no reason that was given') AS why, count(*) AS jobs,
                (array_agg(failed_job_id ORDER BY id))[1] AS example
            FROM worker_replay_items WHERE replay_id = :id AND state IN ('refused', 'released')
            GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :limit
            """
        ),
        {"id": replay_id, "limit": limit},
    )
    return [Reason(**row._mapping) for row in rows]
