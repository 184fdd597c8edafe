"""Which tenants have failures, and how many."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.filters import InvalidFilter


@dataclass(frozen=True, slots=True)
class TenantFailures:
    """Failures of one tenant, or of none (None). Its name, where it has one, ``worker.tenants.tenant_names`` knows."""

    tenant_id: UUID | None
    #: Groups that have open jobs.
    open_groups: int
    #: Of these groups, those that were resolved before.
    regressed_groups: int
    pending: int
    in_progress: int
    #: Jobs that failed in the last 24 hours, whatever became of them; counted one by one.
    last_day: int
    #: When it last had a failure, of a job that is gone, too.
    last_failure: datetime

    @property
    def open(self) -> int:
        """Jobs that wait for somebody."""
        return self.pending + self.in_progress


@dataclass(frozen=True, slots=True)
class TenantPage:
    """A page of tenants."""

    tenants: list[TenantFailures]
    #: What to give as ``after`` for the next; None where there are no more.
    next: str | None
    #: How many tenants there are in all, or among those asked for, that ever had a failure.
    total: int


def failures_by_tenant(
    session: Session,
    *,
    now: datetime,
    among: Collection[UUID] | None = None,
    after: str | None = None,
    limit: int = 50,
) -> TenantPage:
    """Return the tenants that have or had failures, those with most open jobs first.

    What is open is counted from the groups' counts, so it costs the same however many rows there are; a row that has no
    group, because no fingerprint of it could be taken, is not in it.

    Arguments:
      session: An operator's; one that is bound to a tenant sees that one.
      now: With a time zone; the last day ends there.
      among: Of these alone; of all by default.
      after: What a page gave as its next.
      limit: 1 to 1,000.

    Raises:
      InvalidFilter: When ``after`` or ``limit`` cannot be.
    """
    if not 1 <= limit <= 1_000:
        raise InvalidFilter(f"limit must be 1 to 1000, not {limit!r}")
    begin, of_these, parameters = "", "", dict[str, Any]()
    if among is not None:
        of_these = "WHERE tenant_id = ANY(CAST(:among AS uuid[]))"
        parameters["among"] = list(among)
    if after is not None:
        begin = "WHERE (open, last_failure, key) < (:open, :last_failure, :key)"
        parameters |= _parse(after)
    rows = session.execute(
        text(
            f"""
            WITH summed AS MATERIALIZED (
                SELECT
                    tenant_id, coalesce(CAST(tenant_id AS text), '') AS key,
                    count(*) FILTER (WHERE pending + in_progress > 0) AS open_groups,
                    count(*) FILTER (WHERE pending + in_progress > 0 AND regressed_at IS NOT NULL) AS regressed_groups,
                    CAST(sum(pending) AS bigint) AS pending, CAST(sum(in_progress) AS bigint) AS in_progress,
                    CAST(sum(pending + in_progress) AS bigint) AS open, max(last_seen) AS last_failure
                FROM worker_failed_job_groups {of_these} GROUP BY tenant_id
            ),
            page AS (SELECT * FROM summed {begin} ORDER BY open DESC, last_failure DESC, key DESC LIMIT :limit)
            SELECT
                tenant_id, open_groups, regressed_groups, pending, in_progress, last_failure,
                CASE WHEN tenant_id IS NULL THEN (
                    SELECT count(*) FROM worker_failed_jobs
                    WHERE tenant_id IS NULL AND failed_at >= :day AND failed_at <= :now
                ) ELSE (
                    SELECT count(*) FROM worker_failed_jobs job
                    WHERE job.tenant_id = page.tenant_id AND job.failed_at >= :day AND job.failed_at <= :now
                ) END AS last_day,
                (SELECT count(*) FROM summed) AS total
            FROM page ORDER BY open DESC, last_failure DESC, key DESC
            """
        ),
        {**parameters, "limit": limit + 1, "day": now - timedelta(days=1), "now": now},
    ).all()
    found = [TenantFailures(**{name: getattr(row, name) for name in TenantFailures.__slots__}) for row in rows[:limit]]
    return TenantPage(found, _key(found[-1]) if len(rows) > limit else None, rows[0].total if rows else 0)


def _key(last: TenantFailures) -> str:
    return f"{last.open}~{last.last_failure.isoformat()}~{last.tenant_id or ''}"


def _parse(after: str) -> dict[str, Any]:
    jobs, _, rest = after.partition("~")
    seen, _, tenant_id = rest.partition("~")
    try:
        open_jobs, last_failure = int(jobs), datetime.fromisoformat(seen)
        key = str(UUID(tenant_id)) if tenant_id else ""
        if last_failure.tzinfo is None or abs(open_jobs) >= 2**63:
            raise ValueError(after)
    except ValueError:
        raise InvalidFilter(f"after must be what a page gave as its next, not {after!r}") from None
    return {"open": open_jobs, "last_failure": last_failure, "key": key}
