"""What alerts are made of: the groups that are open, and how many jobs failed lately; a few numbers of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

#: Failures of one actor that are counted: beyond it nobody asks how many exactly.
COUNTED_AT_MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class OpenGroup:
    """A group with open jobs, of all tenants together. Times are seconds since 1970."""

    fingerprint: str
    error_type: str
    #: Failures recorded, and how often it failed again after it had been resolved, for any tenant.
    failures: int
    regressions: int
    #: Since when it is open for those tenants for whom it is, since it first failed or last came back: for the tenant
    #: for whom it is so longest, and shortest.
    open_since: float
    open_lately: float


def open_groups(session: Session, without: Collection[str] = ()) -> list[OpenGroup]:
    """Return the groups with open jobs, by fingerprint.

    Arguments:
      session: An operator's.
      without: Actors whose groups are left out.
    """
    rows = session.execute(
        text(
            f"""
            SELECT fingerprint, max(error_type) AS error_type,
                CAST(sum(failures) AS bigint) AS failures, CAST(sum(regressions) AS bigint) AS regressions,
                min({_SINCE}) FILTER (WHERE {_OPEN}) AS open_since,
                max({_SINCE}) FILTER (WHERE {_OPEN}) AS open_lately
            FROM worker_failed_job_groups WHERE NOT task_name = ANY(:without)
            GROUP BY fingerprint HAVING bool_or({_OPEN})
            ORDER BY fingerprint
            """
        ),
        {"without": list(without)},
    )
    # In the order of its fields: by name it takes longer, and there may be a hundred thousand.
    return [OpenGroup(*row) for row in rows]


_OPEN: Final = "pending + in_progress > 0"
_SINCE: Final = "CAST(extract(epoch FROM coalesce(regressed_at, first_seen)) AS double precision)"


def regressions_by_group(session: Session) -> dict[str, int]:
    """Return every group there is, open or not, with how often it came back."""
    rows = session.execute(
        text(
            "SELECT fingerprint, CAST(sum(regressions) AS bigint) AS regressions"
            " FROM worker_failed_job_groups GROUP BY fingerprint"
        )
    )
    return {row.fingerprint: row.regressions for row in rows}


def groups_that_are_gone(session: Session, fingerprints: Sequence[str]) -> list[str]:
    """Return those of the fingerprints of which there is no group any more."""
    rows = session.execute(
        text(
            """
            SELECT fingerprint FROM unnest(CAST(:fingerprints AS text[])) AS asked (fingerprint)
            WHERE NOT EXISTS (SELECT FROM worker_failed_job_groups own WHERE own.fingerprint = asked.fingerprint)
            """
        ),
        {"fingerprints": list(fingerprints)},
    )
    return list(rows.scalars())


def failures_by_actor(session: Session, within: timedelta, without: Collection[str] = ()) -> dict[str, int]:
    """Return how many jobs of each actor last failed within this time, by Postgres' clock; of each
    :data:`COUNTED_AT_MOST` at most.

    Arguments:
      session: An operator's.
      within: Until now.
      without: Actors that are left out.
    """
    rows = session.execute(
        # Of each actor a range of an index is read; Postgres skips from name to name by itself only from 18 on.
        text(
            """
            WITH RECURSIVE actors AS (
                (SELECT task_name FROM worker_failed_jobs ORDER BY task_name LIMIT 1)
                UNION ALL
                SELECT (
                    SELECT job.task_name FROM worker_failed_jobs job
                    WHERE job.task_name > actors.task_name ORDER BY job.task_name LIMIT 1
                )
                FROM actors WHERE actors.task_name IS NOT NULL
            )
            SELECT actors.task_name, counted.failures
            FROM actors
            CROSS JOIN LATERAL (
                SELECT count(*) AS failures FROM (
                    SELECT FROM worker_failed_jobs job
                    WHERE job.task_name = actors.task_name AND job.failed_at > now() - CAST(:within AS interval)
                      -- By workers' clocks, which may be a little ahead.
                      AND job.failed_at < now() + interval '1 minute'
                    LIMIT :at_most
                ) lately
            ) counted
            WHERE counted.failures > 0 AND NOT actors.task_name = ANY(:without)
            """
        ),
        {"within": within, "at_most": COUNTED_AT_MOST, "without": list(without)},
    )
    return {row.task_name: row.failures for row in rows}
