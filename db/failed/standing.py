"""How many failed jobs wait for somebody, and for how long: few numbers, cheap enough to be asked every few seconds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.session import tenant_of


@dataclass(frozen=True, slots=True)
class Standing:
    """What is open, as :class:`db.failed.Stats` counts it."""

    pending: int
    in_progress: int
    #: Groups with open jobs, and those of them that were resolved before.
    open_groups: int
    regressed_groups: int
    #: Groups that there ever were.
    groups: int
    #: The pending job that waits longest, and when it failed; None where none is pending.
    oldest_id: UUID | None
    oldest: datetime | None

    @property
    def open(self) -> int:
        """Jobs that wait for somebody."""
        return self.pending + self.in_progress


def standing(session: Session) -> Standing:
    """Return it, from the counts of groups.

    Arguments:
      session: An operator's, or one that is bound to a tenant.
    """
    tenant_id = tenant_of(session)
    # Said as well, so that Postgres may use the index of the tenant's rows.
    of_tenant = "" if tenant_id is None else "AND tenant_id = CAST(:tenant_id AS uuid)"
    row = session.execute(
        text(
            f"""
            WITH summed AS (
                SELECT sum(pending) AS pending, sum(in_progress) AS in_progress,
                    bool_or(regressed_at IS NOT NULL AND pending + in_progress > 0) AS regressed
                FROM worker_failed_job_groups GROUP BY fingerprint
            ),
            oldest AS (
                SELECT id, failed_at FROM worker_failed_jobs
                WHERE status = 'pending' {of_tenant} ORDER BY failed_at LIMIT 1
            )
            SELECT
                CAST(coalesce(sum(pending), 0) AS bigint) AS pending,
                CAST(coalesce(sum(in_progress), 0) AS bigint) AS in_progress,
                count(*) FILTER (WHERE pending + in_progress > 0) AS open_groups,
                count(*) FILTER (WHERE regressed) AS regressed_groups,
                count(*) AS groups,
                (SELECT id FROM oldest) AS oldest_id,
                (SELECT failed_at FROM oldest) AS oldest
            FROM summed
            """
        ),
        {} if tenant_id is None else {"tenant_id": tenant_id},
    ).one()
    return Standing(**row._mapping)
