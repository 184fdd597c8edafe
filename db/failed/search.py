"""Finds failed jobs, newest first, page by page.

A page begins where the one before it ended, by key and not by number: the thousandth costs what the first does, and
what fails meanwhile moves no row to another page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from db.failed.filters import SEARCHED, Filter, InvalidFilter, contains, spelled_out
from db.failed.foreign_json import read
from db.failed.groups import group_conditions
from db.failed.originals import SEALED
from db.failed.statuses import STATUSES, Status
from db.far_time import moment_of
from db.session import tenant_of

#: Jobs of a page, at most.
PAGE_AT_MOST: Final = 1_000
#: Characters of the message in a list.
MESSAGE_IN_LIST: Final = 500
#: Statuses times fingerprints that are looked for one by one, each in order; beyond, all are sorted.
_BRANCHES: Final = 64
#: Newest jobs in which a text is looked for before all are.
LOOKED_AT: Final = 5_000


@dataclass(frozen=True, slots=True)
class FailedJobSummary:
    """A failed job as a list shows it."""

    id: UUID
    task_id: str
    task_name: str
    queue: str | None
    worker: str | None
    tenant_id: UUID | None
    error_type: str
    exception_class: str
    #: The beginning of it.
    error_message: str
    retry_count: int
    status: Status
    correlation_id: UUID | None
    failed_at: datetime
    fingerprint: str | None
    #: How often it failed for good: more than once where a replay failed.
    failures: int


@dataclass(frozen=True, slots=True)
class FailedJob(FailedJobSummary):
    """Everything that is known of a failed job, but for its history and its original."""

    last_retry_at: datetime | None
    resolved_at: datetime | None
    remediation_notes: str | None
    #: Redacted; None where they were forgotten.
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    traceback: str | None
    #: The last executions, as :class:`db.failures.Attempt` gives them; None where nobody counted.
    attempts: list[dict[str, Any]] | None
    forgotten_at: datetime | None
    #: Whether the message is kept as it was fetched, and encrypted; None where the session may not know.
    has_original: bool | None
    original_sealed: bool | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some failed jobs, and where the next begin: None after the last."""

    jobs: list[FailedJobSummary]
    next: str | None
    #: When the last job failed that was looked at for the text; None where all were that could matter.
    looked_to: datetime | None = None


_SUMMARY: Final = f"""
    job.id, job.task_id, job.task_name, job.queue, job.worker, job.tenant_id, job.error_type, job.exception_class,
    left(job.error_message, {MESSAGE_IN_LIST}) AS error_message, job.retry_count, job.status, job.correlation_id,
    job.failed_at, details.fingerprint, coalesce(details.failures, 1) AS failures
"""
_FROM: Final = "worker_failed_jobs job LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id"


def find(
    session: Session, where: Filter, *, after: str | None = None, limit: int = 50, look_through: bool = True
) -> Page:
    """Return a page of the jobs that match, newest first.

    Arguments:
      session: An operator's, or one that is bound to a tenant, and then sees that one's alone.
      where: Which.
      after: ``next`` of the page before.
      limit: Jobs of a page, 1 to 1,000.
      look_through: Whether to look for a text in all of a tenant's jobs, which no index does, and which takes seconds
        for some hundred thousand. Where not, it is looked for in :data:`LOOKED_AT` of them, and ``next`` goes on there.

    Raises:
      InvalidFilter: When ``after`` or ``limit`` cannot be.
    """
    if not 1 <= limit <= PAGE_AT_MOST:
        raise InvalidFilter(f"limit must be 1 to {PAGE_AT_MOST}, not {limit!r}")
    where = spelled_out(session, where)
    begin = _parse(after) if after is not None else None
    if where.text is None:
        rows = list(session.execute(*_summaries(*_newest(where, begin, limit + 1))))
    else:
        # Only who is bound to none may use the index.
        rows, last = _containing(session, where, begin, limit + 1, all_=look_through or tenant_of(session) is None)
        if last is not None:
            jobs = [FailedJobSummary(**row._mapping) for row in rows]
            return Page(jobs, _key_of(*last), last[0])
    jobs = [FailedJobSummary(**row._mapping) for row in rows[:limit]]
    return Page(jobs, beyond(jobs[-1]) if len(rows) > limit else None)


def beyond(job: FailedJobSummary) -> str:
    """Return what to give :func:`find` as ``after`` for those that failed before a job, whether that matches or not."""
    return _key_of(job.failed_at, job.id)


def _key_of(failed_at: datetime, job_id: UUID) -> str:
    # As one word, to be typed.
    return f"{failed_at.isoformat().replace(' ', '_')}~{job_id}"


def iterate(session: Session, where: Filter) -> Iterator[FailedJob]:
    """Give every job that matches, newest first, with few of them in memory at a time.

    Each page is what there is when it is asked for, so a job that changes its status meanwhile may be missing.
    """
    after: str | None = None
    while True:
        page = find(session, where, after=after, limit=200)
        in_full = {job.id: job for job in _get_all(session, [job.id for job in page.jobs])}
        yield from (in_full[job.id] for job in page.jobs if job.id in in_full)
        after = page.next
        if after is None:
            return


def count(session: Session, where: Filter) -> int:
    """Return how many jobs match."""
    condition, parameters = spelled_out(session, where).where()
    details = _beside(where)
    return int(session.execute(text(f"SELECT count(*) FROM {details} WHERE {condition}"), parameters).scalar_one())


def count_up_to(session: Session, where: Filter, most: int) -> tuple[int, bool]:
    """Return how many jobs match, and whether these are all; of more than ``most`` it returns that, and that they are
    not.

    What asks for groups alone (see :attr:`Filter.of_groups`) is summed from their counts, and then these are all,
    however many.
    """
    where = spelled_out(session, where)
    if where.of_groups:
        by_status, is_all = count_by_status(session, where, most)
        return sum(by_status.values()), is_all
    condition, parameters = where.where()
    # No column, so an index may do.
    found = session.execute(
        text(f"SELECT count(*) FROM (SELECT FROM {_beside(where)} WHERE {condition} LIMIT :most) counted"),
        {**parameters, "most": most + 1},
    ).scalar_one()
    return min(int(found), most), int(found) <= most


def count_by_status(session: Session, where: Filter, most: int) -> tuple[dict[Status, int], bool]:
    """Return how many jobs match, by each status that is asked for. Otherwise as :func:`count_up_to`; of more than
    ``most`` it counts that many, whichever they are."""
    where = spelled_out(session, where)
    wanted = where.status or STATUSES
    if where.of_groups:
        conditions, parameters = group_conditions(where)
        sums = ", ".join(f"CAST(coalesce(sum({status}), 0) AS bigint) AS {status}" for status in wanted)
        row = session.execute(
            text(f"SELECT {sums} FROM worker_failed_job_groups groups WHERE {' AND '.join(conditions)}"), parameters
        ).one()
        return {status: int(row._mapping[status]) for status in wanted}, True
    condition, parameters = where.where()
    rows = session.execute(
        text(
            f"""
            SELECT status, count(*) AS jobs
            FROM (SELECT job.status FROM {_beside(where)} WHERE {condition} LIMIT :most) counted GROUP BY status
            """
        ),
        {**parameters, "most": most + 1},
    )
    found = {row.status: int(row.jobs) for row in rows}
    is_all = sum(found.values()) <= most
    if not is_all:
        # The one that only tells that there are more.
        found[max(found, key=lambda status: found[status])] -= 1
    return {status: found.get(status, 0) for status in wanted}, is_all


def _beside(where: Filter) -> str:
    """Return the tables that a filter is about."""
    return _FROM if where.fingerprint else "worker_failed_jobs job"


def get(session: Session, job_id: UUID) -> FailedJob | None:
    """Return one job in full; None where there is none that this session sees."""
    found = _get_all(session, [job_id])
    return found[0] if found else None


def ids_beginning(session: Session, prefix: str, *, limit: int = 2) -> list[UUID]:
    """Return ids of jobs that begin so, as people copy them from a list.

    Arguments:
      prefix: Four characters at least, dashes or not.
      limit: How many to look for; two tell whether it is one.

    Raises:
      InvalidFilter: When it can be the beginning of no id.
    """
    digits = prefix.replace("-", "").lower()
    if not 4 <= len(digits) <= 32 or any(digit not in "0123456789abcdef" for digit in digits):
        raise InvalidFilter(f"id must be a UUID, or the first four characters of one or more, not {prefix!r}")
    return list(
        session.execute(
            text("SELECT id FROM worker_failed_jobs WHERE id BETWEEN :first AND :last ORDER BY id LIMIT :limit"),
            {"first": UUID(digits.ljust(32, "0")), "last": UUID(digits.ljust(32, "f")), "limit": limit},
        ).scalars()
    )


def chain(session: Session, correlation_id: UUID, *, limit: int = 50) -> list[FailedJobSummary]:
    """Return the failed jobs of one piece of work, in the order in which they failed."""
    rows = session.execute(
        text(
            f"SELECT {_SUMMARY} FROM {_FROM} WHERE job.correlation_id = :correlation_id"
            " ORDER BY job.failed_at, job.id LIMIT :limit"
        ),
        {"correlation_id": correlation_id, "limit": limit},
    )
    return [FailedJobSummary(**row._mapping) for row in rows]


def _get_all(session: Session, ids: list[UUID]) -> list[FailedJob]:
    # Who is bound to a tenant may not look at originals.
    may_look = session.execute(text("SELECT has_table_privilege('worker_failed_job_originals', 'SELECT')")).scalar_one()
    original = (
        f"(SELECT substring(kept.original FOR {len(SEALED)}) = :sealed"
        " FROM worker_failed_job_originals kept WHERE kept.failed_job_id = job.id)"
        if may_look
        else "NULL"
    )
    # Of none it is null, and so it is where nobody may look.
    has_original = f"{original} IS NOT NULL" if may_look else "NULL"
    rows = session.execute(
        text(
            f"""
            SELECT {_SUMMARY.replace(f"left(job.error_message, {MESSAGE_IN_LIST})", "job.error_message")},
                job.last_retry_at, job.resolved_at, job.remediation_notes, CAST(job.task_args AS text) AS task_args,
                CAST(job.task_kwargs AS text) AS task_kwargs, job.traceback, CAST(details.attempts AS text) AS attempts,
                details.forgotten_at, {has_original} AS has_original,
                {original} AS original_sealed
            FROM {_FROM} WHERE job.id = ANY(:ids)
            """
        ),
        {"ids": ids, **({"sealed": SEALED} if may_look else {})},
    )
    return [_in_full(dict(row._mapping)) for row in rows]


def _in_full(values: dict[str, Any]) -> FailedJob:
    args, kwargs, attempts = (read(values[name]) for name in ("task_args", "task_kwargs", "attempts"))
    # Tenants with SQL of their own write what they like.
    if isinstance(attempts, list):
        attempts = [attempt for attempt in attempts if isinstance(attempt, dict)]
    return FailedJob(
        **{
            **values,
            "task_args": args if isinstance(args, list | None) else [args],
            "task_kwargs": kwargs if isinstance(kwargs, dict | None) else {"kwargs": kwargs},
            "attempts": attempts if isinstance(attempts, list) else None,
        }
    )


#: Where a page begins: what it comes after.
_Begin = tuple[datetime, UUID] | None


def _containing(
    session: Session, where: Filter, begin: _Begin, limit: int, *, all_: bool
) -> tuple[list[Row[Any]], tuple[datetime, UUID] | None]:
    """Return the newest jobs with a text; and the last that was looked at, where that was not ``all_``.

    Postgres cannot know in how many rows a text is, and takes each for rare: one that is in a third of a million rows
    it would gather from all of them. So the text is looked for in the newest jobs first. If those do not suffice it is
    not in every hundredth, and the rest is gathered: from its index, or where this role may not use it, because that
    would look at other tenants' rows, from all of the tenant's.
    """
    newest, parameters = _newest(replace(where, text=None), begin, LOOKED_AT)
    # OFFSET 0: otherwise Postgres would take its index here as well.
    statement = f"""
        WITH newest AS MATERIALIZED ({newest})
        SELECT newest.id, newest.failed_at
        FROM newest CROSS JOIN LATERAL (
            SELECT {SEARCHED} AS searched FROM worker_failed_jobs job WHERE job.id = newest.id OFFSET 0
        ) one
        WHERE one.searched ILIKE :text ORDER BY newest.failed_at DESC, newest.id DESC LIMIT :wanted
    """
    asked = {**parameters, "text": contains(where.text or ""), "wanted": limit}
    found = list(session.execute(*_summaries(statement, asked)))
    if len(found) == limit:
        return found, None
    last = session.execute(
        text(f"SELECT failed_at, id, count(*) OVER () AS jobs FROM ({newest}) each ORDER BY failed_at, id LIMIT 1"),
        parameters,
    ).first()
    if last is None or last.jobs < LOOKED_AT:
        return found, None
    if not all_:
        return found, (last.failed_at, last.id)
    session.execute(_REMEMBER_ROWS)
    rest = session.execute(*_summaries(*_gathered(where, (last.failed_at, last.id), limit - len(found))))
    return found + list(rest), None


# With less it remembers pages instead of rows, and looks at each row of those. Until the transaction ends.
_REMEMBER_ROWS: Final = text(
    "SELECT set_config('work_mem', '64MB', true)"
    " WHERE pg_size_bytes(current_setting('work_mem')) < pg_size_bytes('64MB')"
)


def _gathered(where: Filter, begin: tuple[datetime, UUID], limit: int) -> tuple[str, dict[str, Any]]:
    """Return what gathers all jobs with a text and gives the keys of the newest, and its parameters."""
    condition, parameters = where.where()
    # OFFSET 0: otherwise Postgres might go through them in order until it has a page, and that may be all there are.
    return (
        f"""
        SELECT id, failed_at FROM (
            SELECT job.id, job.failed_at FROM {_beside(where)}
            WHERE {condition} AND job.failed_at <= :at AND (job.failed_at, job.id) < (:at, :before) OFFSET 0
        ) matching
        ORDER BY failed_at DESC, id DESC LIMIT :limit
        """,
        {**parameters, "at": begin[0], "before": begin[1], "limit": limit},
    )


def _newest(where: Filter, begin: _Begin, limit: int) -> tuple[str, dict[str, Any]]:
    """Return what gives the keys of the newest jobs, and its parameters.

    One branch for each status, and each fingerprint, because an index has those of one in order: each takes as many as
    are wanted, of which the newest are.
    """
    condition, parameters = where.where()
    parameters |= {"limit": limit}
    statuses: tuple[str | None, ...] = where.status or STATUSES
    fingerprints: tuple[str | None, ...] = where.fingerprint or (None,)
    if where.ids or len(statuses) * len(fingerprints) > _BRANCHES:
        statuses = fingerprints = (None,)
    elif not where.status and not where.fingerprint and _has_order(where):
        statuses = (None,)
    # The index of details has their order as well.
    table, key = ("details", "failed_job_id") if where.fingerprint else ("job", "id")
    joined = _FROM.replace("LEFT JOIN", "JOIN") if where.fingerprint else "worker_failed_jobs job"
    branches: list[str] = []
    for status in statuses:
        for n, fingerprint in enumerate(fingerprints):
            one = [condition]
            if status is not None:
                # A word of ours.
                one.append(f"{table}.status = '{status}'")
            if fingerprint is not None:
                one.append(f"details.fingerprint = :fingerprint_{n}")
                parameters[f"fingerprint_{n}"] = fingerprint
            if begin is not None:
                one.append(f"{table}.failed_at <= :at AND ({table}.failed_at, {table}.{key}) < (:at, :before)")
                parameters |= {"at": begin[0], "before": begin[1]}
            # Selected from, because one branch by itself may not be put in order twice.
            branches.append(
                f"SELECT * FROM (SELECT {table}.{key} AS id, {table}.failed_at FROM {joined} WHERE {' AND '.join(one)}"
                f" ORDER BY {table}.failed_at DESC, {table}.{key} DESC LIMIT :limit) branch_{len(branches)}"
            )
    return (
        f"SELECT id, failed_at FROM ({' UNION ALL '.join(branches)}) branches"
        " ORDER BY failed_at DESC, id DESC LIMIT :limit"
    ), parameters


def _has_order(where: Filter) -> bool:
    """Tell whether there is an index that has the rows of one value in order, of whatever status."""
    return any(len(values) == 1 for values in (where.tenant_id, where.actor, where.error_type, where.exception))


def _summaries(keys: str, parameters: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the statement that shows the jobs whose keys a statement gives, and its parameters."""
    statement = f"""
        SELECT {_SUMMARY}
        FROM ({keys}) found
        JOIN worker_failed_jobs job USING (id)
        LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
        ORDER BY found.failed_at DESC, found.id DESC
    """
    return text(statement), parameters


def _parse(after: str) -> tuple[datetime, UUID]:
    at, _, job_id = after.partition("~")
    try:
        key = moment_of(at.replace("_", " ")), UUID(job_id)
    except ValueError:
        key = None
    if key is None or key[0].tzinfo is None:
        raise InvalidFilter(f"after must be what a page gave as its next, not {after!r}")
    return key
