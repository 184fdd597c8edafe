"""How many failed jobs there are of each status, for how long one has waited, and how replays stand: for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.statuses import STATUSES

#: States of replays that have not ended for good.
REPLAY_STATES: Final = ("running", "paused", "stopped")


@dataclass(frozen=True, slots=True)
class Levels:
    """Of all tenants together."""

    #: Failed jobs by status, each of the four, as their groups count them.
    by_status: Mapping[str, int]
    #: Seconds since the pending job failed that waits longest; 0 where none is pending.
    oldest_pending: float
    #: Groups that have open jobs, and those of them that were resolved before.
    open_groups: int
    regressed_groups: int
    #: Replays by state, of those that have not ended for good.
    replays: Mapping[str, int]


_LEVELS: Final = text(
    f"""
    WITH summed AS (
        SELECT {", ".join(f"sum({status}) AS {status}" for status in STATUSES)},
            bool_or(regressed_at IS NOT NULL AND pending + in_progress > 0) AS regressed
        FROM worker_failed_job_groups GROUP BY fingerprint
    )
    SELECT
        {", ".join(f"CAST(coalesce(sum({status}), 0) AS bigint) AS {status}" for status in STATUSES)},
        count(*) FILTER (WHERE pending + in_progress > 0) AS open_groups,
        count(*) FILTER (WHERE regressed) AS regressed_groups,
        (
            SELECT extract(epoch FROM clock_timestamp() - failed_at) FROM worker_failed_jobs
            WHERE status = 'pending' ORDER BY failed_at LIMIT 1
        ) AS oldest_pending
    FROM summed
    """
)
_REPLAYS: Final = text(
    f"SELECT state, count(*) AS replays FROM worker_replays WHERE state IN {REPLAY_STATES} GROUP BY state"
)


def levels(session: Session) -> Levels:
    """Return it, mostly from the counts of groups.

    Arguments:
      session: An operator's.
    """
    row = session.execute(_LEVELS).one()
    replays = {row.state: row.replays for row in session.execute(_REPLAYS)}
    return Levels(
        by_status={status: getattr(row, status) for status in STATUSES},
        oldest_pending=max(0.0, float(row.oldest_pending or 0)),
        open_groups=row.open_groups,
        regressed_groups=row.regressed_groups,
        replays={state: replays.get(state, 0) for state in REPLAY_STATES},
    )
