"""How much fails, of what, and since when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from db.failed.filters import Filter, spelled_out
from db.failed.groups import group_conditions
from db.failed.statuses import STATUSES

#: Lines of each list, the most first.
LINES: Final = 20


@dataclass(frozen=True, slots=True)
class Count:
    """How many jobs have something in common: of all, and of those that wait for somebody."""

    name: str | UUID | None
    jobs: int
    open: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of failed jobs.

    A job's queue and error type are counted as its group's newest has them.
    """

    #: By status, each of the four.
    by_status: Mapping[str, int]
    by_queue: list[Count]
    by_error_type: list[Count]
    by_actor: list[Count]
    by_tenant: list[Count]
    #: Groups with open jobs, and those of them that were resolved before.
    open_groups: int
    regressed_groups: int
    #: When the pending job that waits longest failed.
    oldest_pending: datetime | None
    #: Jobs that failed in each of the last 24 hours, oldest first, by when the hour began.
    by_hour: list[tuple[datetime, int]]

    @property
    def jobs(self) -> int:
        """All of them."""
        return sum(self.by_status.values())


_OPEN: Final = "pending + in_progress"
_NAMES: Final = {"by_queue": "queue", "by_error_type": "error_type", "by_actor": "task_name", "by_tenant": "tenant_id"}


def stats(session: Session, where: Filter, *, now: datetime) -> Stats:
    """Return counts of the jobs that match.

    What asks for groups alone (see :attr:`Filter.of_groups`) is counted from their counts, whatever there is; all else
    row by row.

    Arguments:
      session: An operator's, or one that is bound to a tenant.
      where: Which.
      now: With a time zone; the last hour ends there.
    """
    where = spelled_out(session, where)
    source, parameters = _from_groups(where) if where.of_groups else _from_rows(where)
    rows = session.execute(
        text(
            f"""
            WITH counted AS MATERIALIZED ({source})
            SELECT
                GROUPING(queue, error_type, task_name, tenant_id) AS kind, queue, error_type, task_name, tenant_id,
                {", ".join(f"CAST(coalesce(sum({s}), 0) AS bigint) AS {s}" for s in STATUSES)},
                count(DISTINCT fingerprint) FILTER (WHERE {_OPEN} > 0) AS open_groups,
                count(DISTINCT fingerprint) FILTER (WHERE {_OPEN} > 0 AND regressed) AS regressed_groups
            FROM counted
            GROUP BY GROUPING SETS ((), (queue), (error_type), (task_name), (tenant_id))
            """
        ),
        parameters,
    ).all()
    # GROUPING has a bit for each name that a line is not for.
    total = next(row for row in rows if row.kind == 0b1111)
    kinds = {"by_queue": 0b0111, "by_error_type": 0b1011, "by_actor": 0b1101, "by_tenant": 0b1110}
    wanted = where.status or STATUSES
    return Stats(
        by_status={s: getattr(total, s) if s in wanted else 0 for s in STATUSES},
        **{
            name: _counts([row for row in rows if row.kind == kind], _NAMES[name], wanted)
            for name, kind in kinds.items()
        },
        open_groups=total.open_groups,
        regressed_groups=total.regressed_groups,
        oldest_pending=_oldest_pending(session, where),
        by_hour=_by_hour(session, where, now),
    )


def _counts(rows: list[Row[Any]], name: str, wanted: tuple[str, ...]) -> list[Count]:
    counts = [
        Count(
            getattr(row, name),
            sum(getattr(row, s) for s in wanted),
            sum(getattr(row, s) for s in wanted if s in {"pending", "in_progress"}),
        )
        for row in rows
    ]
    counts.sort(key=lambda count: (-count.open, -count.jobs, str(count.name)))
    return [count for count in counts if count.jobs][:LINES]


def _from_groups(where: Filter) -> tuple[str, dict[str, Any]]:
    conditions, parameters = group_conditions(where)
    wanted = where.status or STATUSES
    return (
        "SELECT queue, error_type, task_name, tenant_id, fingerprint,"
        f" {', '.join(s if s in wanted else f'0 AS {s}' for s in STATUSES)},"
        f" regressed_at IS NOT NULL AS regressed FROM worker_failed_job_groups groups WHERE {' AND '.join(conditions)}"
    ), parameters


def _from_rows(where: Filter) -> tuple[str, dict[str, Any]]:
    condition, parameters = where.where()
    return (
        f"""
        SELECT job.queue, job.error_type, job.task_name, job.tenant_id, details.fingerprint,
            {", ".join(f"count(*) FILTER (WHERE job.status = '{s}') AS {s}" for s in STATUSES)},
            EXISTS (
                SELECT FROM worker_failed_job_groups own
                WHERE own.fingerprint = details.fingerprint AND own.tenant_id IS NOT DISTINCT FROM job.tenant_id
                  AND own.regressed_at IS NOT NULL
            ) AS regressed
        FROM worker_failed_jobs job LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
        WHERE {condition}
        GROUP BY job.queue, job.error_type, job.task_name, job.tenant_id, details.fingerprint
        """
    ), parameters


def _oldest_pending(session: Session, where: Filter) -> datetime | None:
    if where.status and "pending" not in where.status:
        return None
    condition, parameters = where.where()
    found: datetime | None = session.execute(
        text(
            f"""
            SELECT job.failed_at FROM worker_failed_jobs job
            LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
            WHERE {condition} AND job.status = 'pending' ORDER BY job.failed_at LIMIT 1
            """
        ),
        parameters,
    ).scalar()
    return found


def _by_hour(session: Session, where: Filter, now: datetime) -> list[tuple[datetime, int]]:
    condition, parameters = where.where()
    # The last bar is the hour that is not over yet.
    first = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=23)
    statuses = where.status or STATUSES
    rows = session.execute(
        text(
            f"""
            SELECT CAST(floor(extract(epoch FROM job.failed_at - :first) / 3600) AS integer) AS hour, count(*) AS jobs
            FROM worker_failed_jobs job
            LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
            WHERE {condition} AND job.status = ANY(:each) AND job.failed_at >= :first AND job.failed_at <= :now
            GROUP BY 1
            """
        ),
        {**parameters, "first": first, "now": now, "each": list(statuses)},
    )
    counts = {row.hour: row.jobs for row in rows}
    return [(first + timedelta(hours=hour), counts.get(hour, 0)) for hour in range(24)]
