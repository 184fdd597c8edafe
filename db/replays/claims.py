"""Takes failed jobs for a replay, so that each is sent once, whoever else tries, and whenever a process dies.

A job is claimed, as an item of its replay, in the statement that makes it ``in_progress``; its message is then sent
under the item's id, which Redis takes once. An item that is still ``claimed`` when its process is gone is sent again
under the same id, or released once Redis has promised to take it no more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.actions import LOCK_GROUPS
from db.failed.filters import Filter, spelled_out
from db.failed.foreign_json import read, read_object
from db.failed.statuses import Status
from db.replays.runs import LEASE, Replay, State

#: Why a job that matched could not be claimed.
ELSEWHERE: Final = "somebody else had it, or it was closed, when it was to be claimed"


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
    #: As the row has them: tenants may write anything.
    task_args: Any
    task_kwargs: Any
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
    job.id, job.task_id, job.task_name, job.queue, job.tenant_id, job.error_type,
    CAST(job.task_args AS text) AS task_args, CAST(job.task_kwargs AS text) AS task_kwargs,
    job.correlation_id, job.failed_at, details.forgotten_at, kept.original
"""
_BESIDE: Final = """
    LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
    LEFT JOIN worker_failed_job_originals kept ON kept.failed_job_id = job.id
"""


def _candidate(values: Mapping[str, Any]) -> Candidate:
    args, kwargs = read(values["task_args"]), read(values["task_kwargs"])
    return Candidate(**{**values, "task_args": args, "task_kwargs": kwargs})


def replayable(replay: Replay) -> tuple[Status, ...]:
    """Return the statuses that a replay takes jobs from: abandoned ones only where it asks for them."""
    if replay.filter.status:
        return tuple(s for s in ("pending", "abandoned") if s in replay.filter.status)
    return ("pending", "abandoned") if replay.filter.ids else ("pending",)


#: Bytes of originals that are in memory at a time, but for a single one that is larger.
BYTES_AT_ONCE: Final = 16 * 1024 * 1024


def _condition(replay: Replay, where: Filter) -> tuple[str, dict[str, Any]]:
    condition, parameters = where.where()
    if replay.tenant_id is not None:
        # It was made by somebody bound to a tenant: the session that runs it is not.
        condition += " AND job.tenant_id = :bound"
        parameters["bound"] = replay.tenant_id
    # Not called as what the filter says is, which would be overwritten.
    return f"{condition} AND job.failed_at <= :made_until", {**parameters, "made_until": replay.until_at}


def matching(
    session: Session, replay: Replay, come_to: tuple[datetime, UUID] | None, limit: int, where: Filter | None = None
) -> list[Candidate]:
    """Return the next jobs that it may send, in the order in which they failed; none when there are no more.

    Arguments:
      session: An operator's: it reads originals.
      replay: Jobs that have failed since it was made are not its own.
      come_to: When the last one failed, and its id.
      limit: How many at most; fewer where their originals are large.
      where: Its filter, where it is spelled out already.
    """
    condition, parameters = _condition(replay, where or spelled_out(session, replay.filter))
    if come_to is not None:
        condition += " AND job.failed_at >= :at AND (job.failed_at, job.id) > (:at, :last)"
        parameters |= {"at": come_to[0], "last": come_to[1]}
    parameters |= {"limit": limit, "most": BYTES_AT_ONCE}
    # Words of ours.
    branches = " UNION ALL ".join(
        f"""
        (SELECT job.id, job.failed_at FROM worker_failed_jobs job
         LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
         WHERE {condition} AND job.status = '{status}'
         ORDER BY job.failed_at, job.id LIMIT :limit)
        """
        for status in replayable(replay)
    )
    if not branches:
        return []
    # The length of what is stored apart is known without reading it.
    rows = session.execute(
        text(
            f"""
            WITH found AS MATERIALIZED (
                SELECT id, failed_at FROM ({branches}) branch ORDER BY failed_at, id LIMIT :limit
            ),
            fit AS MATERIALIZED (
                SELECT
                    id, sum(coalesce(octet_length(kept.original), 0)) OVER sofar AS bytes,
                    row_number() OVER sofar AS n
                FROM found LEFT JOIN worker_failed_job_originals kept ON kept.failed_job_id = found.id
                WINDOW sofar AS (ORDER BY found.failed_at, found.id ROWS UNBOUNDED PRECEDING)
            )
            SELECT {_COLUMNS} FROM fit JOIN worker_failed_jobs job USING (id) {_BESIDE}
            WHERE fit.n = 1 OR fit.bytes <= :most ORDER BY fit.n
            """
        ),
        parameters,
    )
    return [_candidate(dict(row._mapping)) for row in rows]


def candidate(session: Session, failed_job_id: UUID) -> Candidate | None:
    """Return a failed job as a replay sees it, whatever its status; None where there is none. An operator's session."""
    row = session.execute(
        text(f"SELECT {_COLUMNS} FROM worker_failed_jobs job {_BESIDE} WHERE job.id = :id"), {"id": failed_job_id}
    ).first()
    return None if row is None else _candidate(dict(row._mapping))


def count_matching(session: Session, replay: Replay, where: Filter | None = None) -> int:
    """Count the jobs that a replay is for, and keep the count with it. Otherwise as :func:`matching`."""
    condition, parameters = _condition(replay, where or spelled_out(session, replay.filter))
    matched: int = session.execute(
        text(
            f"""
            UPDATE worker_replays SET matched = (
                SELECT count(*) FROM worker_failed_jobs job
                LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
                WHERE {condition} AND job.status = ANY(:replayable)
            )
            WHERE id = :replay RETURNING matched
            """
        ),
        {**parameters, "replay": replay.id, "replayable": list(replayable(replay))},
    ).scalar_one()
    return matched


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
        WHERE id = ANY(:ids) AND status = ANY(:replayable) AND EXISTS (SELECT FROM held)
          AND NOT EXISTS (
            SELECT FROM worker_replay_items item WHERE item.failed_job_id = worker_failed_jobs.id
              AND item.replay_id = :replay
          )
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
        SELECT :replay, given.id, given.tenant_id, 'refused', coalesce(given.why, :elsewhere), clock_timestamp()
        FROM unnest(CAST(:all AS uuid[]), CAST(:tenants AS uuid[]), CAST(:whys AS text[])) AS given (id, tenant_id, why)
        WHERE EXISTS (SELECT FROM held) AND given.id NOT IN (SELECT id FROM picked)
        -- One that has failed again since this replay sent it.
        ON CONFLICT DO NOTHING
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
      jobs: At least one, as :func:`matching` gave them. Those that somebody else has by now are refused, and those
        that this replay has sent before left out.
      refused: By id, why a job cannot be sent; such a job stays as it is.
      runner: This process, which must hold the replay.

    Raises:
      LeaseTaken: When it does not, or the replay was paused or cancelled.
    """
    by_id = {job.id: job for job in jobs}
    ready = [job.id for job in jobs if job.id not in refused]
    rows = session.execute(
        _CLAIM,
        {
            "replay": replay.id,
            "runner": runner,
            "at": jobs[-1].failed_at,
            "last": jobs[-1].id,
            "ids": ready,
            "replayable": list(replayable(replay)),
            "all": list(by_id),
            "tenants": [job.tenant_id for job in by_id.values()],
            "whys": [refused.get(job_id) for job_id in by_id],
            "elsewhere": ELSEWHERE,
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
            WITH open AS MATERIALIZED (
                SELECT item.id AS item, item.edit, job.id,
                    sum(coalesce(octet_length(kept.original), 0)) OVER sofar AS bytes, row_number() OVER sofar AS n
                FROM worker_replay_items item
                JOIN worker_failed_jobs job ON job.id = item.failed_job_id
                    AND job.tenant_id IS NOT DISTINCT FROM item.tenant_id AND job.status = 'in_progress'
                LEFT JOIN worker_failed_job_originals kept ON kept.failed_job_id = job.id
                WHERE item.replay_id = :id AND item.state = 'claimed'
                WINDOW sofar AS (ORDER BY item.id ROWS UNBOUNDED PRECEDING)
            )
            SELECT open.item, CAST(open.edit AS text) AS edit, {_COLUMNS}
            FROM open JOIN worker_failed_jobs job USING (id) {_BESIDE}
            WHERE open.n = 1 OR (open.n <= :limit AND open.bytes <= :most) ORDER BY open.n
            """
        ),
        {"id": replay_id, "limit": limit, "most": BYTES_AT_ONCE},
    )
    claims = []
    for row in rows:
        values = dict(row._mapping)
        item, edit = values.pop("item"), values.pop("edit")
        # One that is none names no edit: its job is let go.
        claims.append(Claim(item, _candidate(values), None if edit is None else read_object(edit) or {}))
    return claims


def astray(session: Session, replay_id: UUID) -> list[UUID]:
    """Return items that were claimed and must not be sent: their jobs are another tenant's by now, or closed."""
    return list(
        session.scalars(
            text(
                """
                SELECT item.id FROM worker_replay_items item
                LEFT JOIN worker_failed_jobs job ON job.id = item.failed_job_id
                WHERE item.replay_id = :id AND item.state = 'claimed'
                  AND (job.status IS DISTINCT FROM 'in_progress' OR job.tenant_id IS DISTINCT FROM item.tenant_id)
                """
            ),
            {"id": replay_id},
        )
    )


def follow_the_moved(session: Session, replay_id: UUID) -> int:
    """Close, or return, jobs that were handed to another tenant while they were under way: the worker that ended them,
    bound to the tenant before, does not see them any more. Return how many."""
    moved = session.execute(_MOVED, {"id": replay_id})
    return len(moved.all())


_MOVED: Final = text(
    f"""
    WITH picked AS MATERIALIZED (
        SELECT job.id, item.state, set_config('app.changed_by', 'replay ' || item.replay_id, true)
        FROM worker_failed_jobs job JOIN worker_replay_items item ON item.failed_job_id = job.id
        WHERE job.status = 'in_progress' AND item.replay_id = :id AND item.state IN ('succeeded', 'failed')
          AND item.tenant_id IS DISTINCT FROM job.tenant_id
          AND NOT EXISTS (
            SELECT FROM worker_replay_items other
            WHERE other.failed_job_id = job.id AND other.claimed_at > item.claimed_at
          )
        ORDER BY job.id FOR UPDATE OF job
    ),
    locked AS MATERIALIZED ({LOCK_GROUPS.replace(":ids", "ARRAY(SELECT id FROM picked)")})
    UPDATE worker_failed_jobs job SET
        status = CASE picked.state WHEN 'succeeded' THEN 'resolved' ELSE 'pending' END,
        resolved_at = CASE picked.state WHEN 'succeeded' THEN now() ELSE job.resolved_at END
    FROM picked WHERE job.id = picked.id AND (SELECT count(*) FROM locked) >= 0
    RETURNING job.id
    """
)


def sent(session: Session, items: Iterable[UUID]) -> None:
    """Note that the messages of items are in Redis; one that has ended meanwhile stays so."""
    session.execute(
        text(
            "UPDATE worker_replay_items SET state = 'sent', sent_at = now() WHERE id = ANY(:ids) AND state = 'claimed'"
        ),
        {"ids": list(items)},
    )


# Jobs, then groups, then items: in the order of whoever else changes them.
_RELEASE: Final = text(
    f"""
    WITH given AS MATERIALIZED (
        SELECT failed_job_id, set_config('app.changed_by', :by, true), set_config('app.change_reason', :why, true)
        FROM worker_replay_items WHERE id = ANY(:items) AND state = ANY(:states)
    ),
    picked AS MATERIALIZED (
        SELECT id FROM worker_failed_jobs WHERE id IN (SELECT failed_job_id FROM given) AND status = 'in_progress'
        ORDER BY id FOR UPDATE
    ),
    locked AS MATERIALIZED ({LOCK_GROUPS.replace(":ids", "ARRAY(SELECT id FROM picked)")}),
    released AS (
        UPDATE worker_replay_items SET state = 'released', why = :why, ended_at = clock_timestamp()
        WHERE id = ANY(:items) AND state = ANY(:states)
    )
    UPDATE worker_failed_jobs job SET status = 'pending'
    FROM picked WHERE job.id = picked.id AND (SELECT count(*) FROM locked) >= 0
    RETURNING job.id
    """
)


def release(
    session: Session, items: Iterable[UUID], *, by: str, why: str, states: Collection[str] = ("claimed",)
) -> int:
    """Return jobs whose messages will never be sent, or never run, to ``pending``; return how many.

    Arguments:
      states: Of the items that are meant: with ``sent``, those whose messages were removed from Redis, too.
    """
    released = session.execute(_RELEASE, {"items": list(items), "by": by, "why": why, "states": list(states)})
    return len(released.all())


@dataclass(frozen=True, slots=True)
class Unsent:
    """An item that was claimed and is not known to be sent, of a replay that does not go on by itself."""

    item: UUID
    replay_id: UUID
    state: State


def unsent_of_idle(session: Session, limit: int) -> list[Unsent]:
    """Return what was claimed and is not known to be sent, of replays that are cancelled, or that wait for a person,
    once the process that ran them is gone."""
    rows = session.execute(
        text(
            """
            SELECT item.id AS item, replay.id AS replay_id, replay.state
            FROM worker_replays replay JOIN worker_replay_items item ON item.replay_id = replay.id
            WHERE replay.state IN ('paused', 'stopped', 'cancelled') AND item.state = 'claimed'
              AND (replay.runner_until IS NULL OR replay.runner_until < now())
            ORDER BY replay.id, item.id LIMIT :limit
            """
        ),
        {"limit": limit},
    )
    return [Unsent(**row._mapping) for row in rows]


# As if they had not been claimed: whoever resumes the replay comes by them again. The replay first, as whoever claims.
_GIVE_BACK: Final = text(
    f"""
    WITH held AS MATERIALIZED (
        SELECT id, set_config('app.changed_by', :by, true),
            set_config('app.change_reason', 'its replay is ' || state || ', and what ran it is gone', true)
        FROM worker_replays
        WHERE id = :replay AND state IN ('paused', 'stopped') AND (runner_until IS NULL OR runner_until < now())
        FOR UPDATE
    ),
    given AS MATERIALIZED (
        SELECT id, failed_job_id FROM worker_replay_items
        WHERE id = ANY(:items) AND state = 'claimed' AND replay_id IN (SELECT id FROM held)
    ),
    picked AS MATERIALIZED (
        SELECT id, failed_at FROM worker_failed_jobs
        WHERE id IN (SELECT failed_job_id FROM given) AND status = 'in_progress' ORDER BY id FOR UPDATE
    ),
    locked AS MATERIALIZED ({LOCK_GROUPS.replace(":ids", "ARRAY(SELECT id FROM picked)")}),
    gone AS (DELETE FROM worker_replay_items WHERE id IN (SELECT id FROM given)),
    comes_again AS (
        UPDATE worker_replays replay SET
            come_to_at = earliest.failed_at, come_to_id = '00000000-0000-0000-0000-000000000000'
        FROM (SELECT min(failed_at) AS failed_at FROM picked) earliest
        WHERE replay.id = :replay AND earliest.failed_at <= replay.come_to_at
    )
    UPDATE worker_failed_jobs job SET status = 'pending'
    FROM picked WHERE job.id = picked.id AND (SELECT count(*) FROM locked) >= 0
    RETURNING job.id
    """
)


def give_back(session: Session, replay_id: UUID, items: Iterable[UUID], *, by: str) -> int:
    """Return jobs whose messages will never be sent to ``pending``, for their replay to take them again when it goes
    on; return how many. Of one that goes on already, or has ended, nothing is given back."""
    given = session.execute(_GIVE_BACK, {"replay": replay_id, "items": list(items), "by": by})
    return len(given.all())


def moved(session: Session, limit: int) -> list[UUID]:
    """Return replays whose executions have ended for jobs that were handed to another tenant meanwhile, and that are
    in progress still: see :func:`follow_the_moved`."""
    return list(
        session.scalars(
            text(
                """
                SELECT DISTINCT item.replay_id
                FROM (SELECT id, tenant_id FROM worker_failed_jobs WHERE status = 'in_progress' LIMIT 2000) job
                -- OFFSET 0: few jobs are in progress, and of items there may be millions.
                CROSS JOIN LATERAL (
                    SELECT replay_id FROM worker_replay_items item
                    WHERE item.failed_job_id = job.id AND item.state IN ('succeeded', 'failed')
                      AND item.tenant_id IS DISTINCT FROM job.tenant_id
                    OFFSET 0
                ) item
                LIMIT :limit
                """
            ),
            {"limit": limit},
        )
    )


@dataclass(frozen=True, slots=True)
class Pulse:
    """What is looked at often, so it costs little, however many items there are.

    Attributes:
      under_way: Items that have not ended.
      succeeded: Those that have since the replay was made or let go on, as far as was asked.
      latest: How the last ones ended since then, the newest first: whether each succeeded.
    """

    under_way: int
    succeeded: int
    latest: list[bool]


_PULSE: Final = text(
    """
    WITH replay AS MATERIALIZED (SELECT id, counted_from FROM worker_replays WHERE id = :id)
    SELECT
        (
            SELECT count(*) FROM worker_replay_items item
            WHERE item.replay_id = :id AND item.state IN ('claimed', 'sent')
        ) AS under_way,
        (
            SELECT count(*) FROM (
                SELECT FROM worker_replay_items item
                WHERE item.replay_id = :id AND item.state = 'succeeded'
                  AND item.ended_at > (SELECT counted_from FROM replay)
                LIMIT :enough
            ) ended
        ) AS succeeded,
        ARRAY(
            SELECT ended.ok FROM (
                (SELECT true AS ok, ended_at FROM worker_replay_items
                 WHERE replay_id = :id AND state = 'succeeded' AND ended_at > (SELECT counted_from FROM replay)
                 ORDER BY ended_at DESC LIMIT :window)
                UNION ALL
                (SELECT false, ended_at FROM worker_replay_items
                 WHERE replay_id = :id AND state = 'failed' AND ended_at > (SELECT counted_from FROM replay)
                 ORDER BY ended_at DESC LIMIT :window)
            ) ended ORDER BY ended.ended_at DESC LIMIT :window
        ) AS latest
    """
)


def pulse(session: Session, replay_id: UUID, *, window: int, enough: int) -> Pulse:
    """Return how a replay goes.

    Arguments:
      window: How many of the last outcomes.
      enough: Successes that need not be counted further.
    """
    row = session.execute(_PULSE, {"id": replay_id, "window": window, "enough": enough}).one()
    return Pulse(row.under_way, row.succeeded, list(row.latest))
