"""What became of the jobs of a replay, one by one and by reason."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
class Part:
    """What became of a job in a replay."""

    replay_id: UUID
    #: Who made the replay, and how it stands; None where the session does not see it, but its job alone.
    by: str | None
    replay_state: str | None
    state: str
    why: str | None
    #: Whether it was sent with other arguments than its own.
    edited: bool
    claimed_at: datetime
    ended_at: datetime | None

    @property
    def has_it(self) -> bool:
        """Whether the job has not ended there."""
        return self.state in {"claimed", "sent"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A replay that is to send a job that it names, and has not come to it."""

    replay_id: UUID
    by: str
    created_at: datetime
    #: Whether a process runs it.
    runs: bool


def of_job(session: Session, failed_job_id: UUID, *, limit: int = 10) -> list[Part]:
    """Return what became of a job in the replays that have come to it, the last first."""
    rows = session.execute(
        text(
            """
            SELECT
                item.replay_id, replay.created_by AS by, replay.state AS replay_state, item.state, item.why,
                item.edit IS NOT NULL AS edited, item.claimed_at, item.ended_at
            FROM worker_replay_items item LEFT JOIN worker_replays replay ON replay.id = item.replay_id
            WHERE item.failed_job_id = :id ORDER BY item.claimed_at DESC, item.id LIMIT :limit
            """
        ),
        {"id": failed_job_id, "limit": limit},
    )
    return [Part(**row._mapping) for row in rows]


def waiting_for(session: Session, failed_job_id: UUID) -> Waiting | None:
    """Return the replay that is to send a job and names it, and has not come to it; None where there is none."""
    row = session.execute(
        text(
            """
            SELECT id AS replay_id, created_by AS by, created_at, coalesce(runner_until > now(), false) AS runs
            FROM worker_replays replay
            WHERE state = 'running' AND filter -> 'ids' @> to_jsonb(CAST(:id AS text))
              AND NOT EXISTS (
                SELECT FROM worker_replay_items item
                WHERE item.failed_job_id = CAST(:id AS uuid) AND item.replay_id = replay.id
              )
            ORDER BY created_at LIMIT 1
            """
        ),
        {"id": str(failed_job_id)},
    ).first()
    return None if row is None else Waiting(**row._mapping)


def counts(session: Session, replay_ids: Sequence[UUID]) -> dict[UUID, dict[str, int]]:
    """Return how many jobs of each of those replays have which state, which takes a quarter of a second for a
    million."""
    rows = session.execute(
        text(
            """
            SELECT replay_id, state, count(*) AS jobs FROM worker_replay_items
            WHERE replay_id = ANY(:ids) GROUP BY replay_id, state
            """
        ),
        {"ids": list(replay_ids)},
    )
    found: dict[UUID, dict[str, int]] = {replay_id: {} for replay_id in replay_ids}
    for row in rows:
        found[row.replay_id][row.state] = row.jobs
    return found


def ended_within(session: Session, replay_id: UUID, seconds: float) -> int:
    """Return how many jobs of a replay have ended, well or not, within the last seconds."""
    return int(
        session.execute(
            text(
                """
                SELECT count(*) FROM worker_replay_items
                WHERE replay_id = :id AND state IN ('succeeded', 'failed')
                  AND ended_at > clock_timestamp() - make_interval(secs => :seconds)
                """
            ),
            {"id": replay_id, "seconds": seconds},
        ).scalar_one()
    )


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
