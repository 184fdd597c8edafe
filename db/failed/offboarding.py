"""Removes what there is of a tenant that has left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.actions import Begin
from db.failed.batches import AT_ONCE, ShouldStop, Where, checked_batch, count, count_in, remove, remove_from
from db.failed.events import NAME_AT_MOST, REASON_AT_MOST, checked, write_event
from db.failed.retention import operators_only
from db.failed.statuses import STATUSES
from db.models import AttributionChannelDay, AttributionRun, AttributionRunChild, Base
from db.tenancy import parse_uuid

#: Times to look for what came meanwhile, before it is said that more keeps coming.
ROUNDS_AT_MOST: Final = 20


@dataclass(slots=True)
class Offboarded:
    """How much of a tenant was removed, or would be.

    Attributes:
      messages: That waited in Redis, by what the callable calls them: queues, for example.
      rows: Failed jobs, by status.
      originals, deliveries, groups, events, rules, once_keys, replays, replay_items: Of the tables beside them.
      outbox: Messages that were sent inside a transaction and had not reached Redis.
      answers: Of a language model.
      attribution: What its channels earned by day, its own runs, and its parts in the runs for all.
      spending: Months in which something was spent on it, what is reserved for calls under way, and the budget.
      held: Rows that are there still because somebody else held them.
      complete: Whether the last look found nothing more.
    """

    messages: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    originals: int = 0
    deliveries: int = 0
    groups: int = 0
    events: int = 0
    rules: int = 0
    once_keys: int = 0
    replays: int = 0
    replay_items: int = 0
    outbox: int = 0
    answers: int = 0
    spending: int = 0
    attribution: int = 0
    held: int = 0
    complete: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return it as an event tells it."""
        return {
            "messages": dict(self.messages),
            "rows": dict(self.rows),
            "originals": self.originals,
            "deliveries": self.deliveries,
            "groups": self.groups,
            "events": self.events,
            "rules": self.rules,
            "once_keys": self.once_keys,
            "replays": self.replays,
            "replay_items": self.replay_items,
            "outbox": self.outbox,
            "answers": self.answers,
            "spending": self.spending,
            "attribution": self.attribution,
            "complete": self.complete,
        }


def offboard(
    begin: Begin,
    tenant_id: UUID | str,
    *,
    by: str,
    reason: str | None,
    messages: Callable[[UUID], Mapping[str, int]] | None = None,
    batch: int = AT_ONCE,
    dry_run: bool = False,
    should_stop: ShouldStop = lambda: False,
) -> Offboarded:
    """Remove a tenant's messages, failed jobs and all that stands beside them; one event remains, for operators.

    That is messages, then rows with their originals, deliveries and details, then history, groups, rules of retention,
    replays, what :func:`db.once.once` recorded, what a language model answered and cost, channels' totals by day, and
    runs; and again, until nothing is found. Stop what sends for the tenant first. A job of the tenant that runs
    meanwhile can still enqueue, record what happens once, and fail, so add a row with all that; one that is delayed or
    spooled where ``messages`` does not look, too. Call it again when the longest time limit has passed: it removes what
    came, and says so. Without the tenant's once keys, a message of it that is delivered again has its effects again.

    The table ``tenants`` is left alone, because its rows, and what refers to them, may be the application's; so are the
    application's own tables, and events, allocations and recomputed windows, which are its data. Rows of no tenant
    stay, such as those of messages whose tenant could not be read. Interrupted, it can be called again, and the event
    tells what that call removed.

    Arguments:
      begin: :func:`db.session.operator_transaction`.
      tenant_id: Whose.
      by: Who.
      reason: Why.
      messages: Removes its waiting messages and returns how many of each kind; called once in each round. It must
        return nothing where there are none left. Without it, messages are left, and each that fails makes a row.
      batch: Rows in one transaction, at most; fewer where they take long.
      dry_run: Count, and remove nothing; ``messages`` is not called.
      should_stop: Asked between batches. What was removed until then is told, by the event, too.

    Raises:
      ValueError: When one of these cannot be so; the message names it.
      PermissionError: When ``begin`` is bound to a tenant.
    """
    tenant_id = parse_uuid("tenant_id", tenant_id)
    by, reason = checked("by", by, NAME_AT_MOST), checked("reason", reason, REASON_AT_MOST) if reason else None
    checked_batch(batch)
    with begin() as session:
        operators_only(session, "off-board a tenant")
    if dry_run:
        return _count(begin, tenant_id)
    done = Offboarded()
    for _ in range(ROUNDS_AT_MOST):
        if should_stop():
            break
        found = Counter(messages(tenant_id)) if messages is not None else Counter[str]()
        done.messages += found
        removed = _remove(begin, tenant_id, by, reason, batch, should_stop, done)
        if not removed and not found.total():
            done.complete = not done.held and not should_stop()
            break
    # Fewer than rows, where it was stopped between them.
    done.events = max(done.events, 0)
    with begin() as session:
        write_event(session, "offboarded", by=by, reason=reason, after={"tenant_id": str(tenant_id), **done.as_json()})
    return done


#: Table and alias, the column by which an index has a tenant's rows in order, and the field that counts them.
_BESIDE: Final = (
    ("worker_failed_job_events beside", "happened_at", "events"),
    ("worker_failed_job_groups beside", "id", "groups"),
    ("worker_failed_job_retention beside", "id", "rules"),
    ("worker_once beside", "key", "once_keys"),
    ("worker_replay_items beside", "id", "replay_items"),
    ("worker_replays beside", "id", "replays"),
    ("worker_outbox beside", "id", "outbox"),
    ("worker_llm_answers beside", "answered_at", "answers"),
)
_OF_TENANT: Final = "tenant_id = CAST(:of_tenant AS uuid)"
#: Of a tenant they have a row for each month, or fewer.
_SPENDING: Final = ("worker_llm_reservations", "worker_llm_spending", "worker_llm_budgets")

#: Of the tables of :mod:`worker.attribution`, those that are ours, and the columns by which we know them; and how
#: what is a tenant's is removed. A run for all that is under way does not wait for what is gone.
_ATTRIBUTION: Final[tuple[tuple[type[Base], str], ...]] = (
    (AttributionChannelDay, f"DELETE FROM attribution_channel_days WHERE {_OF_TENANT} RETURNING 1"),
    (
        AttributionRunChild,
        f"""
        WITH gone AS (DELETE FROM attribution_run_children WHERE {_OF_TENANT} RETURNING run_id),
        fewer AS (
            UPDATE attribution_runs run SET expected = expected - counted.children
            FROM (SELECT run_id, count(*) AS children FROM gone GROUP BY 1) counted
            WHERE run.id = counted.run_id AND run.finished_at IS NULL
        )
        SELECT 1 FROM gone
        """,
    ),
    (AttributionRun, f"DELETE FROM attribution_runs WHERE {_OF_TENANT} RETURNING 1"),
)

# One with rows is of failures that came meanwhile, and goes with them in the next round. Counts that are wrong, because
# somebody switched triggers off, must not keep it for ever.
_WITHOUT_ROWS: Final = f"""
    (({" AND ".join(f"beside.{status} = 0" for status in STATUSES)}) OR NOT EXISTS (
        SELECT FROM worker_failed_job_details details
        WHERE details.fingerprint = beside.fingerprint AND details.tenant_id = beside.tenant_id
    ))
"""


def _of_tenant(table: str, tenant_id: UUID) -> Where:
    return Where(f"{table}.{_OF_TENANT}", {"of_tenant": tenant_id})


def _is_ours(session: Session, table: type[Base]) -> bool:
    """Tell whether a table is there and has all columns of ours: else it is the application's."""
    there = session.scalars(
        text(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped"
        ),
        {"name": table.__tablename__},
    )
    return {column.name for column in table.__table__.columns} <= set(there)


def _remove(
    begin: Begin,
    tenant_id: UUID,
    by: str,
    reason: str | None,
    batch: int,
    should_stop: ShouldStop,
    done: Offboarded,
) -> int:
    """Go over the tables once, add to ``done``, and return how many rows of any table were removed."""
    swept = remove(
        begin,
        _of_tenant("job", tenant_id),
        by=by,
        reason=reason,
        batch=batch,
        oldest_first=True,
        should_stop=should_stop,
    )
    done.rows += swept.rows
    done.originals += swept.originals
    done.deliveries += swept.deliveries
    done.held = swept.held
    removed = swept.count
    # Each removal wrote one of its own.
    done.events -= swept.count
    for table, key, name in _BESIDE:
        where = _of_tenant("beside", tenant_id)
        if name == "groups":
            where = where.but(_WITHOUT_ROWS)
        number, _ = remove_from(begin, table, key, where, batch=batch, should_stop=should_stop)
        setattr(done, name, getattr(done, name) + number)
        removed += number
    for table in _SPENDING:
        if should_stop():
            break
        with begin() as session:
            gone = session.execute(
                text(f"DELETE FROM {table} WHERE {_OF_TENANT} RETURNING 1"), {"of_tenant": tenant_id}
            )
            number = len(gone.all())
        done.spending += number
        removed += number
    for table_of, statement in _ATTRIBUTION:
        if should_stop():
            break
        with begin() as session:
            if _is_ours(session, table_of):
                number = len(session.execute(text(statement), {"of_tenant": tenant_id}).all())
                done.attribution += number
                removed += number
    return removed


def _count(begin: Begin, tenant_id: UUID) -> Offboarded:
    counted = Offboarded(rows=count(begin, _of_tenant("job", tenant_id)))
    for table, _, name in (
        ("worker_failed_job_originals beside", "", "originals"),
        ("worker_failed_job_deliveries beside", "", "deliveries"),
        *_BESIDE,
    ):
        setattr(counted, name, count_in(begin, table, _of_tenant("beside", tenant_id)))
    for table_of, _ in _ATTRIBUTION:
        with begin() as session:
            there = _is_ours(session, table_of)
        if there:
            counted.attribution += count_in(
                begin, table_of.__tablename__, _of_tenant(table_of.__tablename__, tenant_id)
            )
    counted.spending = sum(count_in(begin, table, _of_tenant(table, tenant_id)) for table in _SPENDING)
    return counted
