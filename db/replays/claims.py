"""Takes failed jobs for a replay, so that each is sent once, whoever else tries, and whenever a process dies.

A job is claimed, as an item of its replay, in the statement that makes it ``in_progress``; its message is then sent
under the item's id, which Redis takes once. An item that is still ``claimed`` when its process is gone is sent again
under the same id, or released once Redis has promised to take it no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.actions import LOCK_GROUPS
from db.failed.filters import spelled_out
from db.failed.statuses import Status
from db.replays.runs import LEASE, Replay


class LeaseTaken(Exception):
    """Raised when another process runs the replay by now, or it runs no more: nothing was done."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A failed job that may be sent again, with all that its message is made of."""

    id: UUID
    task_id: str
    task_name: str
    queue: str | None
    tenant_id: UUID | None
    error_type: str
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    correlation_id: UUID | None
    failed_at: datetime
    forgotten_at: datetime | None
    #: As it is kept: see :mod:`db.failed.originals`.
    original: bytes | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is this replay's to send."""

    item: UUID
    job: Candidate
    edit: Mapping[str, Any] | None


_COLUMNS: Final = """
    job.id, job.task_id, job.task_name, job.queue, job.tenant_id, job.error_type, job.task_args, job.task_kwargs,
    job.correlation_id, job.failed_at, details.forgotten_at, kept.original
"""
_BESIDE: Final = """
    LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
    LEFT JOIN worker_failed_job_originals kept ON kept.failed_job_id = job.id
"""


def replayable(replay: Replay) -> tuple[Status, ...]:
    """Return the statuses that a replay takes jobs from: abandoned ones only where it asks for them."""
    if replay.filter.status:
        return tuple(s for s in ("pending", "abandoned") if s in replay.filter.status)
    return ("pending", "abandoned") if replay.filter.ids else ("pending",)


def matching(session: Session, replay: Replay, come_to: tuple[datetime, UUID] | None, limit: int) -> list[Candidate]:
    """Return the next jobs that it may send, in the order in which they failed.

    Arguments:
      session: An operator's: it reads originals.
      replay: Jobs that have failed since it was made are not its own; so one that fails again is not sent again.
      come_to: When the last one failed, and its id.
      limit: How many at most.
    """
    where = spelled_out(session, replay.filter)
    condition, parameters = where.where()
    if replay.tenant_id is not None:
        # It was made by somebody bound to a tenant: the session that runs it is not.
        condition += " AND job.tenant_id = :bound"
        parameters["bound"] = replay.tenant_id
    if come_to is not None:
        condition += " AND job.failed_at >= :at AND (job.failed_at, job.id) > (:at, :last)"
        parameters |= {"at": come_to[0], "last": come_to[1]}
    parameters |= {"limit": limit, "made": replay.created_at}
    # Words of ours.
    branches = " UNION ALL ".join(
        f"""
        (SELECT job.id, job.failed_at FROM worker_failed_jobs job
         LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
         WHERE {condition} AND job.status = '{status}' AND job.failed_at < :made
         ORDER BY job.failed_at, job.id LIMIT :limit)
        """
        for status in replayable(replay)
    )
    if not branches:
        return []
    rows = session.execute(
        text(
            f"""
            SELECT {_COLUMNS} FROM (
                SELECT id, failed_at FROM ({branches}) branch ORDER BY failed_at, id LIMIT :limit
            ) found
            JOIN worker_failed_jobs job USING (id) {_BESIDE} ORDER BY found.failed_at, found.id
            """
        ),
        parameters,
    )
    return [Candidate(**row._mapping) for row in rows]


def candidate(session: Session, failed_job_id: UUID) -> Candidate | None:
    """Return a failed job as a replay sees it, whatever its status; None where there is none. An operator's session."""
    row = session.execute(
        text(f"SELECT {_COLUMNS} FROM worker_failed_jobs job {_BESIDE} WHERE job.id = :id"), {"id": failed_job_id}
    ).first()
    return None if row is None else Candidate(**row._mapping)


def count_matching(session: Session, replay: Replay) -> int:
    """Count the jobs that a replay is for, and keep the count with it."""
    where = spelled_out(session, replay.filter)
    condition, parameters = where.where()
    if replay.tenant_id is not None:
        condition += " AND job.tenant_id = :bound"
        parameters["bound"] = replay.tenant_id
    matched: int = session.execute(
        text(
            f"""
            UPDATE worker_replays SET matched = (
                SELECT count(*) FROM worker_failed_jobs job
                LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
                WHERE {condition} AND job.status = ANY(:replayable) AND job.failed_at < :made
            )
            WHERE id = :replay RETURNING matched
            """
        ),
        {**parameters, "replay": replay.id, "replayable": list(replayable(replay)), "made": replay.created_at},
    ).scalar_one()
    return matched


def come_to(session: Session, replay_id: UUID) -> tuple[datetime, UUID] | None:
    """Return up to which job a replay has come."""
    row = session.execute(
        text("SELECT come_to_at, come_to_id FROM worker_replays WHERE id = :id"), {"id": replay_id}
    ).one()
    return None if row.come_to_id is None else (row.come_to_at, row.come_to_id)


_HELD: Final = f"""
    held AS MATERIALIZED (
        UPDATE worker_replays SET
            come_to_at = :at, come_to_id = :last, runner_until = now() + make_interval(secs => {LEASE})
        WHERE id = :replay AND runner = :runner AND state = 'running'
        RETURNING
            set_config('app.changed_by', created_by, true), set_config('app.change_reason', 'replay ' || id, true)
    )
"""

_CLAIM: Final = text(
    f"""
    WITH {_HELD},
    picked AS MATERIALIZED (
        SELECT id FROM worker_failed_jobs
        WHERE id = ANY(:ids) AND status IN ('pending', 'abandoned') AND EXISTS (SELECT FROM held)
        ORDER BY id FOR UPDATE SKIP LOCKED
    ),
    locked AS MATERIALIZED ({LOCK_GROUPS.replace(":ids", "ARRAY(SELECT id FROM picked)")}),
    claimed AS (
        UPDATE worker_failed_jobs job SET status = 'in_progress'
        FROM picked WHERE job.id = picked.id AND (SELECT count(*) FROM locked) >= 0
        RETURNING job.id, job.tenant_id
    ),
    noted AS (
        INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id, edit)
        SELECT :replay, id, tenant_id, (
            SELECT settings -> 'edit' FROM worker_replays WHERE id = :replay AND settings ->> 'edit' IS NOT NULL
        )
        FROM claimed
        RETURNING id, failed_job_id
    ),
    refused AS (
        INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id, state, why, ended_at)
        SELECT :replay, given.id, given.tenant_id, 'refused', given.why, now()
        FROM unnest(CAST(:refused AS uuid[]), CAST(:tenants AS uuid[]), CAST(:whys AS text[]))
            AS given (id, tenant_id, why)
        WHERE EXISTS (SELECT FROM held)
    )
    SELECT (SELECT count(*) FROM held) AS held, noted.id, noted.failed_job_id FROM (SELECT) one LEFT JOIN noted ON true
    """
)


def claim(
    session: Session,
    replay: Replay,
    jobs: list[Candidate],
    refused: Mapping[UUID, str],
    *,
    runner: str,
) -> list[Claim]:
    """Claim those of ``jobs`` that are not refused, and move on past all of them, in one statement.

    Arguments:
      session: An operator's.
      replay: Whose.
      jobs: At least one, as :func:`matching` gave them. Those that somebody else has by now are left out.
      refused: By id, why a job cannot be sent; such a job stays as it is.
      runner: This process, which must hold the replay.

    Raises:
      LeaseTaken: When it does not, or the replay was paused or cancelled.
    """
    by_id = {job.id: job for job in jobs}
    rows = session.execute(
        _CLAIM,
        {
            "replay": replay.id,
            "runner": runner,
            "at": jobs[-1].failed_at,
            "last": jobs[-1].id,
            "ids": [job.id for job in jobs if job.id not in refused],
            "refused": list(refused),
            "tenants": [by_id[job_id].tenant_id for job_id in refused],
            "whys": list(refused.values()),
        },
    ).all()
    if not rows[0].held:
        raise LeaseTaken(f"replay {replay.id} is not this process' any more, or does not run")
    return [Claim(row.id, by_id[row.failed_job_id], replay.settings.edit) for row in rows if row.id is not None]


def unsent(session: Session, replay_id: UUID, limit: int) -> list[Claim]:
    """Return jobs that were claimed and are not known to be sent, by a process that is gone."""
    rows = session.execute(
        text(
            f"""
            SELECT item.id AS item, item.edit, {_COLUMNS}
            FROM worker_replay_items item JOIN worker_failed_jobs job ON job.id = item.failed_job_id {_BESIDE}
            WHERE item.replay_id = :id AND item.state = 'claimed' ORDER BY item.id LIMIT :limit
            """
        ),
        {"id": replay_id, "limit": limit},
    )
    claims = []
    for row in rows:
        values = dict(row._mapping)
        item, edit = values.pop("item"), values.pop("edit")
        claims.append(Claim(item, Candidate(**values), edit))
    return claims


def sent(session: Session, items: Iterable[UUID]) -> None:
    """Note that the messages of items are in Redis; one that has ended meanwhile stays so."""
    session.execute(
        text(
            "UPDATE worker_replay_items SET state = 'sent', sent_at = now() WHERE id = ANY(:ids) AND state = 'claimed'"
        ),
        {"ids": list(items)},
    )


_RELEASE: Final = text(
    f"""
    WITH released AS MATERIALIZED (
        UPDATE worker_replay_items SET state = 'released', why = :why, ended_at = now()
        WHERE id = ANY(:items) AND state = 'claimed'
        RETURNING
            failed_job_id,
            set_config('app.changed_by', :by, true), set_config('app.change_reason', :why, true)
    ),
    locked AS MATERIALIZED ({LOCK_GROUPS.replace(":ids", "ARRAY(SELECT failed_job_id FROM released)")})
    UPDATE worker_failed_jobs job SET status = 'pending'
    FROM released
    WHERE job.id = released.failed_job_id AND job.status = 'in_progress' AND (SELECT count(*) FROM locked) >= 0
    """
)


def release(session: Session, items: Iterable[UUID], *, by: str, why: str) -> None:
    """Return jobs whose messages will never be sent to ``pending``."""
    session.execute(_RELEASE, {"items": list(items), "by": by, "why": why})


def unsent_of_ended(session: Session, limit: int) -> list[UUID]:
    """Return items of cancelled replays that were claimed and are not known to be sent."""
    return list(
        session.scalars(
            text(
                """
                SELECT item.id FROM worker_replays replay JOIN worker_replay_items item ON item.replay_id = replay.id
                WHERE replay.state = 'cancelled' AND item.state = 'claimed'
                  AND (replay.runner_until IS NULL OR replay.runner_until < now())
                ORDER BY item.id LIMIT :limit
                """
            ),
            {"limit": limit},
        )
    )


def latest_outcomes(session: Session, replay_id: UUID, window: int) -> list[bool]:
    """Return how the last items ended, the newest first: whether each succeeded."""
    return list(
        session.scalars(
            text(
                """
                SELECT state = 'succeeded' FROM worker_replay_items
                WHERE replay_id = :id AND state IN ('succeeded', 'failed') AND ended_at IS NOT NULL
                ORDER BY ended_at DESC LIMIT :window
                """
            ),
            {"id": replay_id, "window": window},
        )
    )
