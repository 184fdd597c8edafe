"""Closes the rows of replays that have succeeded, in the tenant of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Final

from psycopg.errors import LockNotAvailable
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.errors import RowLocked
from db.failed.actions import LOCK_GROUPS
from db.failures import Success
from db.session import rebind, transaction
from db.tenancy import tenant_context

#: Milliseconds to wait for a row that somebody else holds.
WAIT_FOR_ROW: Final = 300

# The delivery is noted with the row: if the worker dies before the message leaves Redis, it is ended and not run again.
_CLOSE: Final = text(
    f"""
    WITH given AS MATERIALIZED (
        SELECT *, set_config('app.changed_by', worker, true), set_config('app.change_event', 'replayed', true)
        FROM unnest(
            CAST(:items AS uuid[]), CAST(:rows AS uuid[]), CAST(:deliveries AS text[]), CAST(:workers AS text[])
        ) AS given (item, id, delivery_id, worker)
    ),
    ended AS (
        UPDATE worker_replay_items item SET state = 'succeeded', ended_at = clock_timestamp()
        FROM given WHERE item.id = given.item AND item.state IN ('claimed', 'sent')
    ),
    picked AS MATERIALIZED (
        SELECT job.id FROM worker_failed_jobs job
        WHERE job.id IN (SELECT id FROM given) AND job.status IN ('pending', 'in_progress') ORDER BY job.id FOR UPDATE
    ),
    locked AS MATERIALIZED ({LOCK_GROUPS.replace(":ids", "ARRAY(SELECT id FROM picked)")}),
    delivered AS (
        INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
        SELECT given.delivery_id, job.id, job.tenant_id FROM given JOIN worker_failed_jobs job USING (id)
        ON CONFLICT DO NOTHING
    )
    UPDATE worker_failed_jobs job SET status = 'resolved', resolved_at = now()
    FROM picked WHERE job.id = picked.id AND (SELECT count(*) FROM locked) >= 0
    """
)


def close_all(successes: Sequence[Success], before_commit: Callable[[], object] = lambda: None) -> None:
    """Resolve the rows that successes close, in one transaction. Doing it twice is harmless.

    A row that was resolved, abandoned or purged meanwhile stays so.

    Arguments:
      successes: Of any tenants.
      before_commit: Called last; what it raises undoes everything.

    Raises:
      RowLocked: When somebody holds a row of theirs for longer than a moment.
      sqlalchemy.exc.SQLAlchemyError: When they could not be written.
    """
    try:
        _close_all(successes, before_commit)
    except OperationalError as e:
        if isinstance(e.orig, LockNotAvailable):
            # Postgres is there, and the others need not wait.
            raise RowLocked("somebody else holds the row, or its group") from e
        raise


def _close_all(successes: Sequence[Success], before_commit: Callable[[], object]) -> None:
    in_order = sorted(successes, key=lambda s: (s.tenant_id is None, str(s.tenant_id), s.replayed_row))
    with tenant_context(in_order[0].tenant_id), transaction(lock_timeout_ms=WAIT_FOR_ROW) as session:
        for n, (tenant_id, group) in enumerate(groupby(in_order, key=lambda s: s.tenant_id)):
            if n:
                with tenant_context(tenant_id):
                    rebind(session)
            _close(session, list(group))
        before_commit()


def _close(session: Session, successes: list[Success]) -> None:
    session.execute(
        _CLOSE,
        {
            "items": [s.replay_item for s in successes],
            "rows": [s.replayed_row for s in successes],
            "deliveries": [s.delivery_id for s in successes],
            "workers": [s.worker or "unknown" for s in successes],
        },
    )
