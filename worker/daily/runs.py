"""The rows of a run: what is to be sent for whom, what was, and how it ended. All of it operators' work.

A run goes on where it was left off, whoever died on the way: what is planned, sent, succeeded or failed is a row, and
each step can be taken again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.models import AttributionEvent, AttributionRun, AttributionRunChild
from worker.recompute import Model
from worker.table_shapes import check_tables

#: Tenants that are planned, or children that are sent, in one transaction.
AT_ONCE: Final = 200
#: The last of all UUIDs.
HIGHEST: Final = "ffffffff-ffff-ffff-ffff-ffffffffffff"
#: Days for which it is kept who the children of a run that is finished were.
KEEP_CHILDREN: Final = 30


@dataclass(frozen=True, slots=True)
class Run:
    """A run.

    Attributes:
      tenant_id: Whose day it recomputes; None for all tenants'.
      expected: How many children it has; None until all are planned.
      sent, succeeded, failed: Of the children; as it was when it finished, once it is.
      recovered: Children that had failed, or were missing, when it finished, and have succeeded since.
      summary: What was said when it finished.
    """

    id: UUID
    tenant_id: UUID | None
    day: date
    correlation_id: UUID
    started_at: datetime
    finished_at: datetime | None
    expected: int | None
    sent: int
    succeeded: int
    failed: int
    recovered: int
    summary: str | None

    @property
    def missing(self) -> int | None:
        """Children that have not ended; None until all are planned."""
        return None if self.expected is None else max(0, self.expected - self.succeeded - self.failed)


@dataclass(frozen=True, slots=True)
class Child:
    """What a run sends: a recompute of its day for one tenant under one model."""

    id: UUID
    tenant_id: UUID
    model: str


def check(session: Session) -> None:
    """See to it that the tables are ours.

    Raises:
      ConfigurationError: Naming the table, and what is wrong with it.
    """
    check_tables(session, (AttributionEvent, AttributionRun, AttributionRunChild))


def begin(session: Session, run_id: UUID, day: date, tenant_id: UUID | None, correlation_id: UUID) -> Run:
    """Begin a run, or find it as it was begun.

    Arguments:
      session: An operator's, as for all that follow.
      run_id: The same for each execution of the message that begins it.
      day: Which; that of the first execution holds, because another may come on the next day.
      tenant_id: Whose; None for all.
      correlation_id: Of it and all that it sends.
    """
    session.execute(_BEGIN, {"id": run_id, "tenant_id": tenant_id, "day": day, "correlation_id": correlation_id})
    found = get(session, run_id)
    assert found is not None  # noqa: S101 - it is there now
    return found


def plan(session: Session, run: Run, models: Sequence[Model], begin_with: UUID) -> UUID | None:
    """Plan the children of the next tenants with events in the day.

    Arguments:
      run: Which.
      models: One child for each.
      begin_with: The lowest tenant that is not planned; what the last call returned.

    Returns:
      What to begin with next, None when all are planned.
    """
    start = datetime.combine(run.day, time(), UTC)
    values: dict[str, Any] = {"start": start, "end": start + timedelta(days=1), "limit": AT_ONCE}
    if run.tenant_id is not None:
        tenants = list(session.scalars(_THE_TENANT, {**values, "tenant_id": run.tenant_id}))
    else:
        tenants = list(session.scalars(_TENANTS, {**values, "begin_with": begin_with}))
    if not tenants:
        return None
    session.execute(
        _PLAN,
        [
            {"id": uuid5(run.id, f"{tenant} {model}"), "run_id": run.id, "tenant_id": tenant, "model": model.value}
            for tenant in tenants
            for model in models
        ],
    )
    last = UUID(str(tenants[-1])).int
    return UUID(int=last + 1) if len(tenants) == AT_ONCE and last < UUID(HIGHEST).int else None


def planned(session: Session, run_id: UUID) -> int:
    """Note that all children are planned, and return how many there are.

    Two executions that plan at once may each have found a tenant that the other did not: the last one counts all.
    """
    return int(session.execute(_PLANNED, {"id": run_id}).scalar_one())


def unsent(session: Session, run_id: UUID, after: Child | None) -> list[Child]:
    """Return the next children that are not known to be sent."""
    values = {
        "run_id": run_id,
        "limit": AT_ONCE,
        "tenant_id": after.tenant_id if after else UUID(int=0),
        "model": after.model if after else "",
    }
    return [Child(*row) for row in session.execute(_UNSENT, values)]


def sent(session: Session, children: Iterable[Child]) -> None:
    """Note that children are sent."""
    session.execute(_SENT, {"ids": [child.id for child in children]})


def note_failures(session: Session, run_id: UUID, actor_name: str) -> None:
    """Note which children are failed jobs by now.

    Arguments:
      run_id: Which run.
      actor_name: Of what it sends.
    """
    session.execute(_NOTE_FAILURES, {"run_id": run_id, "actor": actor_name})


def finish(session: Session, run: Run, summary: str) -> bool:
    """Finish a run as it stands; tell whether this call did. It is never opened again."""
    done = session.execute(
        _FINISH, {"id": run.id, "succeeded": run.succeeded, "failed": run.failed, "summary": summary}
    )
    return done.first() is not None


def left_open(session: Session, wait: timedelta) -> list[UUID]:
    """Return runs that began longer ago than ``wait`` and are not finished."""
    return list(session.scalars(_LEFT_OPEN, {"wait": wait}))


def get(session: Session, run_id: UUID) -> Run | None:
    """Return a run, or ``None``."""
    row = session.execute(_GET, {"id": run_id}).first()
    return None if row is None else _run(row)


def find(session: Session, *, limit: int) -> list[Run]:
    """Return the newest runs."""
    return [_run(row) for row in session.execute(_FIND, {"limit": limit})]


def forget(session: Session) -> int:
    """Remove some children of runs that finished more than :data:`KEEP_CHILDREN` days ago, and return how many."""
    return int(session.execute(_FORGET, {"days": KEEP_CHILDREN, "limit": 10 * AT_ONCE}).scalar_one())


def _run(row: Any) -> Run:
    values = dict(row._mapping)
    succeeded, failed = values.pop("then_succeeded"), values.pop("then_failed")
    values["recovered"] = 0
    if values["finished_at"] is not None:
        # By count, not by time: what succeeds at that moment is in one of both. Fewer than then are there, once who the
        # children were is forgotten.
        values["recovered"] = max(0, values["succeeded"] - succeeded)
        values["succeeded"], values["failed"] = succeeded, failed
    return Run(**values)


# --- SQL ------------------------------------------------------------------------------------------

_BEGIN = text(
    """
    INSERT INTO attribution_runs (id, tenant_id, day, correlation_id)
    VALUES (:id, CAST(:tenant_id AS uuid), :day, :correlation_id)
    ON CONFLICT (id) DO NOTHING
    """
)

_HAS_EVENTS = """
    EXISTS (
        SELECT FROM attribution_events e
        WHERE e.tenant_id = {tenant} AND e.event_type IN ('touch', 'conversion')
          AND e.occurred_at >= :start AND e.occurred_at < :end
    )
"""

_THE_TENANT = text(f"SELECT CAST(:tenant_id AS uuid) WHERE {_HAS_EVENTS.format(tenant='CAST(:tenant_id AS uuid)')}")

# From one tenant to the next by the index, whose order that is: events are many, and tenants may be the application's
# own table, which operators need not be able to read. Read as far as the limit asks for.
_TENANTS = text(
    f"""
    WITH RECURSIVE known (tenant_id) AS (
        (SELECT tenant_id FROM attribution_events WHERE tenant_id >= :begin_with ORDER BY tenant_id LIMIT 1)
        UNION ALL
        SELECT (
            SELECT e.tenant_id FROM attribution_events e
            WHERE e.tenant_id > known.tenant_id ORDER BY e.tenant_id LIMIT 1
        )
        FROM known WHERE known.tenant_id IS NOT NULL
    )
    SELECT tenant_id FROM known WHERE tenant_id IS NOT NULL AND {_HAS_EVENTS.format(tenant="known.tenant_id")}
    LIMIT :limit
    """
)

_PLAN = text(
    """
    INSERT INTO attribution_run_children (id, run_id, tenant_id, model)
    VALUES (:id, :run_id, :tenant_id, :model)
    ON CONFLICT DO NOTHING
    """
)

_PLANNED = text(
    """
    UPDATE attribution_runs
    SET expected = (SELECT count(*) FROM attribution_run_children WHERE run_id = :id)
    WHERE id = :id
    RETURNING expected
    """
)

_UNSENT = text(
    """
    SELECT id, tenant_id, model FROM attribution_run_children
    WHERE run_id = :run_id AND (tenant_id, model) > (:tenant_id, :model) AND sent_at IS NULL
    ORDER BY tenant_id, model LIMIT :limit
    """
)

_SENT = text("UPDATE attribution_run_children SET sent_at = CURRENT_TIMESTAMP WHERE id = ANY(:ids) AND sent_at IS NULL")

# Only of those that are open, by the index of each message's id.
_NOTE_FAILURES = text(
    """
    UPDATE attribution_run_children child
    SET failed_at = (
        SELECT max(job.failed_at) FROM worker_failed_jobs job
        WHERE job.task_id = CAST(child.id AS text) AND job.task_name = :actor
    )
    WHERE run_id = :run_id AND succeeded_at IS NULL AND failed_at IS NULL AND EXISTS (
        SELECT FROM worker_failed_jobs job
        WHERE job.task_id = CAST(child.id AS text) AND job.task_name = :actor
    )
    """
)

_FINISH = text(
    """
    UPDATE attribution_runs
    SET finished_at = CURRENT_TIMESTAMP, succeeded = :succeeded, failed = :failed, summary = :summary
    WHERE id = :id AND finished_at IS NULL
    RETURNING id
    """
)

_LEFT_OPEN = text(
    """
    SELECT id FROM attribution_runs
    WHERE finished_at IS NULL AND started_at <= CURRENT_TIMESTAMP - CAST(:wait AS interval)
    ORDER BY started_at
    """
)

_RUNS = """
    SELECT run.id, run.tenant_id, run.day, run.correlation_id, run.started_at, run.finished_at, run.expected,
        run.succeeded AS then_succeeded, run.failed AS then_failed, run.summary, counted.*
    FROM ({which}) run
    CROSS JOIN LATERAL (
        SELECT count(*) FILTER (WHERE sent_at IS NOT NULL) AS sent,
            count(*) FILTER (WHERE succeeded_at IS NOT NULL) AS succeeded,
            count(*) FILTER (WHERE succeeded_at IS NULL AND failed_at IS NOT NULL) AS failed
        FROM attribution_run_children WHERE run_id = run.id
    ) counted
    ORDER BY run.started_at DESC, run.id
"""

_GET = text(_RUNS.format(which="SELECT * FROM attribution_runs WHERE id = :id"))

_FIND = text(_RUNS.format(which="SELECT * FROM attribution_runs ORDER BY started_at DESC, id LIMIT :limit"))

_FORGET = text(
    """
    WITH gone AS (
        DELETE FROM attribution_run_children WHERE id IN (
            SELECT child.id FROM attribution_runs run JOIN attribution_run_children child ON child.run_id = run.id
            WHERE run.finished_at < CURRENT_TIMESTAMP - make_interval(days => :days) LIMIT :limit
        ) RETURNING 1
    )
    SELECT count(*) FROM gone
    """
)
