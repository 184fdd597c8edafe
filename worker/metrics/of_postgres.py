"""What Postgres tells: how many failed jobs there are, and how replays stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import Metric

from db.failed.levels import Levels, levels
from db.session import operator_transaction
from worker.metrics.families import gauge

#: Milliseconds that a statement may take.
STATEMENT_TIMEOUT: Final = 3_000


def of_postgres() -> list[Metric]:
    """Return it, of all tenants together. ``db.session`` must have been configured.

    Raises:
      sqlalchemy.exc.SQLAlchemyError: When Postgres cannot be asked.
    """
    with operator_transaction() as session:
        session.connection().exec_driver_sql(
            f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {STATEMENT_TIMEOUT}",
            execution_options={"no_parameters": True},
        )
        found = levels(session)
    return list(_families(found))


def _families(found: Levels) -> Iterator[Metric]:
    yield gauge(
        "failed_jobs",
        "Rows of worker_failed_jobs by status, of all tenants, but for those that have no group.",
        *(((status,), count) for status, count in found.by_status.items()),
        labels=("status",),
    )
    yield gauge(
        "failed_jobs_oldest_pending_age_seconds",
        "Since the pending row failed that waits longest; 0 where none is pending.",
        ((), found.oldest_pending),
    )
    yield gauge(
        "failed_job_groups",
        "Groups that have open rows, and those of them that are back after they were resolved.",
        (("open",), found.open_groups),
        (("regressed",), found.regressed_groups),
        labels=("state",),
    )
    yield gauge(
        "replay_runs",
        "Replays that have not ended: running, paused by somebody, or stopped by themselves.",
        *(((state,), count) for state, count in found.replays.items()),
        labels=("state",),
    )
