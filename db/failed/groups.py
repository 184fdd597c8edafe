"""Failures of one cause, together: what there is to understand, instead of ten thousand rows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.filters import Filter, InvalidFilter, spelled_out
from db.failed.statuses import STATUSES

#: Matching rows that are looked at for their groups, where the filter is not one of groups.
_LOOKED_AT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Group:
    """Failures with one fingerprint, of all tenants that the session sees.

    Where rows are asked for by what groups do not know (text, ids, a correlation id, a replay), these are the groups
    that such rows are in, each with all its counts.
    """

    fingerprint: str
    task_name: str
    queue: str | None
    error_type: str
    exception_class: str
    #: The message without the values in it.
    title: str | None
    #: The innermost function of the application's own code.
    place: str | None
    first_seen: datetime
    last_seen: datetime
    #: Failures recorded, of rows that were purged, too.
    failures: int
    #: Rows by status.
    pending: int
    in_progress: int
    resolved: int
    abandoned: int
    #: How many tenants it touched, and whether some of its failures are of none.
    tenants: int
    without_tenant: bool
    #: Its newest row.
    sample_id: UUID | None
    #: When the last open row was resolved, where none is open anywhere.
    resolved_at: datetime | None
    #: When it failed again after it had been resolved; None where it did not, or is resolved since.
    regressed_at: datetime | None
    #: How often it did.
    regressions: int

    @property
    def open(self) -> int:
        """Rows that wait for somebody."""
        return self.pending + self.in_progress

    @property
    def regressed(self) -> bool:
        """Whether it was resolved and is back."""
        return self.regressed_at is not None


#: Of a row of groups: whether it is back after it was resolved, and not resolved since.
_BACK: Final = "regressed_at IS NOT NULL AND pending + in_progress > 0"


def find_groups(
    session: Session, where: Filter, *, after: str | None = None, limit: int = 50
) -> tuple[list[Group], str | None]:
    """Return groups, those that are back after they were resolved first, then by when they were last seen, newest
    first; and what to give as ``after`` for the next, None where there are no more.

    Arguments:
      session: An operator's, for sums over tenants, or one that is bound to a tenant.
      where: A group matches where a row of it would. ``status``: that it has such rows. ``since`` and ``until``: that
        it was seen between.
      limit: 1 to 1,000.

    Raises:
      InvalidFilter: When ``after`` or ``limit`` cannot be.
    """
    if not 1 <= limit <= 1_000:
        raise InvalidFilter(f"limit must be 1 to 1000, not {limit!r}")
    where = spelled_out(session, where)
    conditions, parameters = group_conditions(where)
    having = ["true"]
    if where.status:
        having.append(f"sum({' + '.join(dict.fromkeys(where.status))}) > 0")
    if where.since is not None:
        having.append("max(last_seen) >= :since")
        parameters["since"] = where.since
    if where.until is not None:
        having.append("min(first_seen) < :until")
        parameters["until"] = where.until
    begin = ""
    if after is not None:
        back, seen, fingerprint = _parse(after)
        begin = "WHERE (back, last_seen, fingerprint) < (:back, :seen, :after)"
        parameters |= {"back": back, "seen": seen, "after": fingerprint}
    matching = " AND ".join(conditions)
    # Which are on the page is found with little of each row, and the rest of those added up then: there may be as many
    # rows as groups times tenants.
    rows = session.execute(
        text(
            f"""
            WITH page AS MATERIALIZED (
                SELECT * FROM (
                    SELECT fingerprint, max(last_seen) AS last_seen, bool_or({_BACK}) AS back
                    FROM worker_failed_job_groups groups WHERE {matching}
                    GROUP BY fingerprint HAVING {" AND ".join(having)}
                ) found
                {begin}
                ORDER BY back DESC, last_seen DESC, fingerprint DESC LIMIT :limit
            )
            SELECT page.fingerprint, page.last_seen, whole.*
            FROM page CROSS JOIN LATERAL (
                SELECT
                    max(task_name) AS task_name, max(queue) AS queue, max(error_type) AS error_type,
                    max(exception_class) AS exception_class, max(title) AS title, max(place) AS place,
                    min(first_seen) AS first_seen,
                    CAST(sum(failures) AS bigint) AS failures,
                    CAST(sum(pending) AS bigint) AS pending, CAST(sum(in_progress) AS bigint) AS in_progress,
                    CAST(sum(resolved) AS bigint) AS resolved, CAST(sum(abandoned) AS bigint) AS abandoned,
                    count(tenant_id) AS tenants, count(*) > count(tenant_id) AS without_tenant,
                    (array_agg(sample_id ORDER BY groups.last_seen DESC))[1] AS sample_id,
                    CASE WHEN sum(pending) + sum(in_progress) = 0 THEN max(resolved_at) END AS resolved_at,
                    max(regressed_at) FILTER (WHERE {_BACK}) AS regressed_at,
                    CAST(sum(regressions) AS bigint) AS regressions
                FROM worker_failed_job_groups groups
                WHERE groups.fingerprint = page.fingerprint AND {matching}
            ) whole
            ORDER BY page.back DESC, page.last_seen DESC, page.fingerprint DESC
            """
        ),
        {**parameters, "limit": limit + 1},
    ).all()
    groups = [Group(**row._mapping) for row in rows[:limit]]
    return groups, _key(groups[-1]) if len(rows) > limit else None


def get_group(session: Session, fingerprint: str) -> Group | None:
    """Return the group of a fingerprint, or of the beginning of one that is no other's; else None."""
    found, _ = find_groups(session, Filter(fingerprint=(fingerprint,)), limit=2)
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Touched:
    """What a group did to one tenant, or to nobody's work."""

    tenant_id: UUID | None
    open: int
    jobs: int
    last_seen: datetime


def tenants_of_group(session: Session, fingerprint: str, *, limit: int = 10) -> list[Touched]:
    """Return whom a group touched, those with the most open jobs first.

    Arguments:
      session: An operator's, or one that is bound to a tenant, and then knows that one alone.
      fingerprint: In full.
      limit: How many.
    """
    rows = session.execute(
        text(
            f"""
            SELECT tenant_id, pending + in_progress AS open, {" + ".join(STATUSES)} AS jobs, last_seen
            FROM worker_failed_job_groups WHERE fingerprint = :fingerprint
            ORDER BY 2 DESC, 3 DESC, tenant_id LIMIT :limit
            """
        ),
        {"fingerprint": fingerprint, "limit": limit},
    )
    return [Touched(**row._mapping) for row in rows]


def hours_of_group(session: Session, fingerprint: str, *, now: datetime, hours: int = 24) -> list[tuple[datetime, int]]:
    """Return how many jobs of a group last failed in each of the last hours, oldest first, by when the hour began.

    Arguments:
      session: An operator's, or one that is bound to a tenant.
      fingerprint: In full.
      now: With a time zone; the last hour is the one that is not over yet.
      hours: How many.
    """
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours - 1)
    # All of it is in the index of groups.
    rows = session.execute(
        text(
            """
            SELECT CAST(floor(extract(epoch FROM failed_at - :first) / 3600) AS integer) AS hour, count(*) AS jobs
            FROM worker_failed_job_details
            WHERE fingerprint = :fingerprint AND status = ANY(:each) AND failed_at >= :first AND failed_at <= :now
            GROUP BY 1
            """
        ),
        {"fingerprint": fingerprint, "each": list(STATUSES), "first": first, "now": now},
    )
    counts = {row.hour: row.jobs for row in rows}
    return [(first + timedelta(hours=hour), counts.get(hour, 0)) for hour in range(hours)]


@dataclass(frozen=True, slots=True)
class Share:
    """How many of the jobs that match are of one group."""

    fingerprint: str
    exception_class: str
    title: str | None
    jobs: int


def largest_groups(session: Session, where: Filter, *, limit: int = 3, at_most: int | None = None) -> list[Share]:
    """Return of which groups most of the jobs are that match, the most first.

    Arguments:
      session: An operator's, or one that is bound to a tenant.
      where: Which jobs; unlike in :func:`find_groups` only they are counted.
      limit: How many groups.
      at_most: How many jobs are looked at, any of them; all by default. What asks for groups alone (see
        :attr:`Filter.of_groups`) is then summed from their counts, all of it.
    """
    where = spelled_out(session, where)
    if at_most is not None and where.of_groups:
        return _from_counts(session, where, limit)
    condition, parameters = where.where()
    some = "" if at_most is None else "LIMIT :at_most"
    rows = session.execute(
        text(
            f"""
            SELECT counted.fingerprint, named.exception_class, named.title, counted.jobs FROM (
                SELECT fingerprint, count(*) AS jobs FROM (
                    SELECT details.fingerprint
                    FROM worker_failed_jobs job JOIN worker_failed_job_details details ON details.failed_job_id = job.id
                    WHERE {condition} AND details.fingerprint IS NOT NULL {some}
                ) matching
                GROUP BY fingerprint ORDER BY 2 DESC, 1 LIMIT :limit
            ) counted
            CROSS JOIN LATERAL (
                SELECT exception_class, title FROM worker_failed_job_groups known
                WHERE known.fingerprint = counted.fingerprint ORDER BY last_seen DESC LIMIT 1
            ) named
            ORDER BY counted.jobs DESC, counted.fingerprint
            """
        ),
        {**parameters, "limit": limit, **({} if at_most is None else {"at_most": at_most})},
    )
    return [Share(**row._mapping) for row in rows]


def _from_counts(session: Session, where: Filter, limit: int) -> list[Share]:
    conditions, parameters = group_conditions(where)
    matching, counted = " AND ".join(conditions), f"sum({' + '.join(where.status or STATUSES)})"
    rows = session.execute(
        text(
            f"""
            WITH largest AS MATERIALIZED (
                SELECT fingerprint, CAST({counted} AS bigint) AS jobs
                FROM worker_failed_job_groups groups WHERE {matching}
                GROUP BY fingerprint HAVING {counted} > 0 ORDER BY 2 DESC, 1 LIMIT :limit
            )
            SELECT largest.fingerprint, named.exception_class, named.title, largest.jobs
            FROM largest CROSS JOIN LATERAL (
                SELECT exception_class, title FROM worker_failed_job_groups groups
                WHERE groups.fingerprint = largest.fingerprint AND {matching} ORDER BY last_seen DESC LIMIT 1
            ) named
            ORDER BY largest.jobs DESC, largest.fingerprint
            """
        ),
        {**parameters, "limit": limit},
    )
    return [Share(**row._mapping) for row in rows]


def group_conditions(where: Filter) -> tuple[list[str], dict[str, Any]]:
    """Return what a filter asks of ``worker_failed_job_groups groups``, status and times left out."""
    conditions, parameters = _named(where)
    if where.ids or where.correlation_id is not None or where.text is not None or where.replay is not None:
        condition, of_rows = where.where()
        conditions.append(
            f"""
            groups.fingerprint IN (
                SELECT details.fingerprint FROM worker_failed_jobs job
                JOIN worker_failed_job_details details ON details.failed_job_id = job.id
                WHERE {condition} LIMIT {_LOOKED_AT}
            )
            """
        )
        parameters |= of_rows
    return conditions, parameters


def _named(where: Filter) -> tuple[list[str], dict[str, Any]]:
    """Return what a filter asks by the columns that groups have."""
    conditions, parameters = ["true"], dict[str, Any]()
    for column, values in (
        ("queue", where.queue),
        ("task_name", where.actor),
        ("tenant_id", where.tenant_id),
        ("error_type", where.error_type),
        ("exception_class", where.exception),
        ("fingerprint", where.fingerprint),
    ):
        if values:
            kind = "uuid" if column == "tenant_id" else "text"
            conditions.append(f"groups.{column} = ANY(CAST(:{column} AS {kind}[]))")
            parameters[column] = list(values)
    return conditions, parameters


def _key(group: Group) -> str:
    return f"{int(group.regressed)}~{group.last_seen.isoformat()}~{group.fingerprint}"


def _parse(after: str) -> tuple[bool, datetime, str]:
    back, _, rest = after.partition("~")
    seen, _, fingerprint = rest.partition("~")
    try:
        key = bool(int(back)), datetime.fromisoformat(seen), fingerprint
    except ValueError:
        key = None
    if key is None or key[1].tzinfo is None or "\0" in fingerprint:
        raise InvalidFilter(f"after must be what a page gave as its next, not {after!r}")
    return key
