"""The table ``worker_failed_jobs``: the one place that writes it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from loguru import logger
from psycopg.errors import CheckViolation, LockNotAvailable
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from db.errors import RowLocked
from db.failed.actions import LOCK_GROUPS
from db.failed.originals import as_kept
from db.failures import Ending, Failure, Success
from db.replays.outcomes import close_all
from db.session import rebind, transaction
from db.tenancy import tenant_context


def failed_job_id(task_id: str, task_name: str, *more: str) -> UUID:
    """Return a row's id: the same for the same message, so that recording twice is one row."""
    return uuid5(NAMESPACE_URL, ":".join((task_id, task_name, *more)))


# What was replayed is told from another failure of the same message by the id that it carries: the message may have
# another actor, or another tenant, by now.
_REPLAYED = text(
    """
    SELECT job.status, details.fingerprint, job.retry_count, EXISTS (
        SELECT FROM worker_replay_items other
        WHERE other.failed_job_id = job.id AND other.id <> :item AND other.state IN ('claimed', 'sent')
    ) AS is_anothers
    FROM worker_failed_jobs job LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
    WHERE job.id = :id FOR UPDATE OF job
    """
)
# In one order, whoever changes them: jobs, groups, items.
_REPLAYED_ALL = text("SELECT FROM worker_failed_jobs WHERE id = ANY(:ids) ORDER BY id FOR UPDATE")
_GROUPS_OF = text(LOCK_GROUPS)
_ITEM_FAILED = text(
    """
    UPDATE worker_replay_items SET state = 'failed', why = left(:why, 500), ended_at = clock_timestamp()
    WHERE id = :item AND state IN ('claimed', 'sent')
    """
)

_NOTE_DELIVERY = text(
    """
    INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
    SELECT :delivery_id, id, tenant_id FROM worker_failed_jobs WHERE id = :id
    ON CONFLICT DO NOTHING
    """
)

_TYPES: Final = {
    **dict.fromkeys(("task_id", "task_name", "queue", "worker"), "varchar"),
    **dict.fromkeys(("task_args", "task_kwargs"), "jsonb"),
    "tenant_id": "uuid",
    **dict.fromkeys(("error_type", "exception_class"), "varchar"),
    **dict.fromkeys(("error_message", "traceback"), "text"),
    "retry_count": "integer",
    "last_retry_at": "timestamptz",
    "correlation_id": "uuid",
    "failed_at": "timestamptz",
}
_COLUMNS: Final = tuple(_TYPES)

# json, because a jsonb holds no more than 256 MiB.
_GIVEN: Final = (
    "json_to_recordset(CAST(:failures AS json)) AS given (id uuid, delivery_id varchar, original text,"
    " fingerprint varchar, title text, place text, attempts jsonb, note text, "
    + ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
    + ")"
)

_KEPT: Final = """
    INSERT INTO worker_failed_job_originals (failed_job_id, tenant_id, original)
    SELECT id, tenant_id, decode(original, 'base64') FROM new WHERE original IS NOT NULL
    ON CONFLICT DO NOTHING
"""

# In one order, whoever writes: two that held what the other waits for would wait for ever.
_GROUPED: Final = """
    INSERT INTO worker_failed_job_groups AS known (
        tenant_id, fingerprint, task_name, queue, error_type, exception_class, title, place,
        first_seen, last_seen, failures, pending, in_progress, abandoned, sample_id
    )
    SELECT
        tenant_id, fingerprint,
        max(task_name), max(queue), max(error_type), max(exception_class), max(title), max(place),
        min(failed_at), max(failed_at), count(*), {pending}, {in_progress}, {abandoned},
        (array_agg(id ORDER BY failed_at DESC))[1]
    FROM new WHERE fingerprint IS NOT NULL
    GROUP BY tenant_id, fingerprint ORDER BY fingerprint
    ON CONFLICT (fingerprint, tenant_id) DO UPDATE SET
        -- The newest say best what it is called now, but for those that came without their details.
        queue = excluded.queue,
        error_type = excluded.error_type,
        title = coalesce(excluded.title, known.title),
        place = coalesce(excluded.place, known.place),
        first_seen = least(known.first_seen, excluded.first_seen),
        last_seen = greatest(known.last_seen, excluded.last_seen),
        failures = known.failures + excluded.failures,
        pending = known.pending + excluded.pending,
        in_progress = known.in_progress + excluded.in_progress,
        abandoned = known.abandoned + excluded.abandoned,
        sample_id = excluded.sample_id,
        regressed_at = CASE WHEN known.resolved_at IS NULL THEN known.regressed_at ELSE excluded.last_seen END,
        regressions = known.regressions + CASE WHEN known.resolved_at IS NULL THEN 0 ELSE 1 END,
        resolved_at = NULL
"""

# A delivery that is recorded already makes no second row, whatever became of the first.
# One statement, so one round trip, for rows and all that stands beside them. ON CONFLICT has no target: an upsert over
# a row that this tenant cannot see would raise.
_INSERT = text(
    f"""
    WITH given AS MATERIALIZED (SELECT * FROM {_GIVEN}),
    recorded AS (
        INSERT INTO worker_failed_jobs (id, status, remediation_notes, {", ".join(_COLUMNS)})
        SELECT id, 'pending', note, {", ".join(_COLUMNS)} FROM given
        -- As a value, which is looked up in the index: of a table that has just begun to grow, Postgres reads all.
        WHERE (SELECT true FROM worker_failed_job_deliveries d WHERE d.delivery_id = given.delivery_id) IS NOT TRUE
        ON CONFLICT DO NOTHING
        RETURNING id
    ),
    new AS MATERIALIZED (SELECT given.* FROM recorded JOIN given USING (id)),
    kept AS ({_KEPT}),
    detailed AS (
        INSERT INTO worker_failed_job_details (failed_job_id, tenant_id, fingerprint, status, failed_at, attempts)
        SELECT id, tenant_id, fingerprint, 'pending', failed_at, attempts FROM new
    ),
    told AS (
        INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, reason, after, happened_at)
        SELECT
            id, tenant_id, 'captured', coalesce(worker, 'unknown'), note,
            jsonb_build_object(
                'status', 'pending', 'task_name', task_name, 'error_type', error_type,
                'exception_class', exception_class, 'retry_count', retry_count
            ),
            failed_at
        FROM new
    ),
    grouped AS ({_GROUPED.format(pending="count(*)", in_progress=0, abandoned=0)})
    INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
    SELECT delivery_id, id, tenant_id FROM new
    ON CONFLICT DO NOTHING
    RETURNING failed_job_id
    """
)

_DELIVERED = text("SELECT failed_job_id FROM worker_failed_job_deliveries WHERE delivery_id = :delivery_id")

_LOCK = text("SELECT status FROM worker_failed_jobs WHERE id = :id FOR UPDATE")
# After the row is locked, in a statement of its own: one that waited for the lock would see what was there before.
_GROUP_OF = text("SELECT fingerprint FROM worker_failed_job_details WHERE failed_job_id = :id")

_CHANGING: Final = tuple(c for c in _COLUMNS if c not in {"task_id", "task_name", "tenant_id", "correlation_id"})
_OPEN: Final = ("pending", "in_progress", "abandoned")

# The counts change places with the row where its group is another now, in the status that it has: the trigger, which
# comes last, then moves it to pending. What changed it was a worker.
_REOPEN: Final = f"""
    WITH new AS MATERIALIZED (
        SELECT given.*, set_config('app.changed_by', coalesce(worker, 'unknown'), true) FROM {_GIVEN}
    ),
    detailed AS (
        INSERT INTO worker_failed_job_details AS known
            (failed_job_id, tenant_id, fingerprint, status, failed_at, attempts)
        SELECT id, tenant_id, fingerprint, :status, failed_at, attempts FROM new
        ON CONFLICT (failed_job_id) DO UPDATE SET
            fingerprint = excluded.fingerprint, failures = known.failures + 1, attempts = excluded.attempts
    ),
    left_behind AS (
        UPDATE worker_failed_job_groups old SET {", ".join(f"{s} = old.{s} - CAST(:{s} AS int)" for s in _OPEN)}
        FROM new WHERE old.fingerprint = :leaves
          AND (old.tenant_id = new.tenant_id OR (old.tenant_id IS NULL AND new.tenant_id IS NULL))
    ),
    grouped AS ({_GROUPED.format(**{s: f"CAST(:{s} AS int)" for s in _OPEN})}),
    kept AS ({_KEPT}),
    delivered AS (
        INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
        SELECT delivery_id, id, tenant_id FROM new
        ON CONFLICT DO NOTHING
    )
    UPDATE worker_failed_jobs job SET status = 'pending', {{changes}}
    FROM new WHERE job.id = new.id
    """
_AS_IT_FAILED = text(_REOPEN.format(changes=", ".join(f"{c} = new.{c}" for c in _CHANGING)))
# What a replay runs with may have been edited, or forgotten since: the row keeps what it has.
_AS_ITS_REPLAY_FAILED = text(
    _REOPEN.format(changes=", ".join(f"{c} = new.{c}" for c in _CHANGING if c not in {"task_args", "task_kwargs"}))
)


def record(failure: Failure) -> UUID:
    """Write ``failure`` in a transaction of its tenant and return the row's id. Doing it twice is harmless.

    Which row, where the message is known already:

    - the same delivery again: the row it is in;
    - another delivery of the message, beside a row that is not resolved: that row, back in ``pending``;
    - the same beside a resolved row: a new row, for this delivery;
    - beside a row that this tenant may not see: a new row, for this tenant.

    What Postgres will never take of its details is left out, and so is its group where that counts no further: a row
    without them beats no row.

    Raises:
      RowLocked: When somebody holds its row for longer than a moment.
      sqlalchemy.exc.SQLAlchemyError: When it could not be written; then nothing was.
    """
    return _write_one(failure, lambda: None)


def _write_one(failure: Failure, before_commit: Callable[[], object]) -> UUID:
    try:
        return _write_without_group_if_need_be(failure, before_commit)
    except DataError as e:
        # Not its text: Postgres quotes what it does not take, and the original is not redacted.
        state = getattr(e.orig, "sqlstate", None)
        logger.error("failure of message {} is recorded without its details: SQLSTATE {}", failure.task_id, state)
        return _write_without_group_if_need_be(_bare(failure), before_commit)


def _write_without_group_if_need_be(failure: Failure, before_commit: Callable[[], object]) -> UUID:
    try:
        return _write([failure], before_commit)[0]
    except IntegrityError as e:
        if not isinstance(e.orig, CheckViolation):
            raise
        logger.error("failure of message {} is recorded without a group, which counts no further", failure.task_id)
        return _write([replace(failure, fingerprint=None)], before_commit)[0]


def record_all(failures: Sequence[Failure], before_commit: Callable[[], object] = lambda: None) -> None:
    """Write failures of any tenants in one transaction, all of them or none. Otherwise as :func:`record`.

    Where Postgres will never take a detail of one, each is written by itself.

    Arguments:
      failures: Which.
      before_commit: Called last; what it raises undoes everything.

    Raises:
      RowLocked: When somebody holds a row of theirs for longer than a moment.
      sqlalchemy.exc.SQLAlchemyError: When they could not be written.
    """
    try:
        _write(failures, before_commit)
    except (DataError, IntegrityError):
        # One of them, which is then told from the others.
        for failure in failures:
            _write_one(failure, before_commit)


def end_all(endings: Sequence[Ending], before_commit: Callable[[], object] = lambda: None) -> None:
    """Write failures, and what the success of replays closes, of any tenants. Otherwise as :func:`record_all`, for
    either."""
    failures = [ending for ending in endings if isinstance(ending, Failure)]
    successes = [ending for ending in endings if isinstance(ending, Success)]
    if failures:
        record_all(failures, before_commit)
    if successes:
        close_all(successes, before_commit)


def is_recorded(delivery_id: str) -> bool:
    """Tell whether the failure of a delivery is recorded for the current tenant.

    Raises:
      sqlalchemy.exc.SQLAlchemyError: When Postgres cannot be asked.
    """
    with transaction() as session:
        return session.execute(_DELIVERED, {"delivery_id": delivery_id}).first() is not None


def _bare(failure: Failure) -> Failure:
    return replace(
        failure,
        task_args=None,
        task_kwargs=None,
        error_message="(not recordable; see the worker's log)",
        traceback=None,
        title=None,
        place=None,
        attempts=None,
    )


#: Milliseconds to wait for a row that somebody else holds, in psql for example, while other failures wait.
WAIT_FOR_ROW = 300


def _write(failures: Sequence[Failure], before_commit: Callable[[], object]) -> list[UUID]:
    try:
        return _write_locked(failures, before_commit)
    except OperationalError as e:
        if isinstance(e.orig, LockNotAvailable):
            raise RowLocked("somebody else holds the row, or the table") from e
        raise


def _write_locked(failures: Sequence[Failure], before_commit: Callable[[], object]) -> list[UUID]:
    if not failures:
        return []
    ids: dict[int, UUID] = {}
    # In one order, whoever writes: two that held what the other waits for would wait for ever.
    in_order = sorted(range(len(failures)), key=lambda n: _lock_order(failures[n]))
    bound = failures[in_order[0]].tenant_id
    correlation_id = failures[0].correlation_id if len(failures) == 1 else None
    with tenant_context(bound, correlation_id), transaction(lock_timeout_ms=WAIT_FOR_ROW) as session:
        for tenant_id, group in groupby(in_order, key=lambda n: failures[n].tenant_id):
            if tenant_id != bound:
                with tenant_context(tenant_id):
                    rebind(session)
                bound = tenant_id
            of_tenant = list(group)
            ids.update(zip(of_tenant, _of_one_tenant(session, [failures[n] for n in of_tenant]), strict=True))
        before_commit()
    return [ids[n] for n in range(len(failures))]


def _lock_order(failure: Failure) -> tuple[bool, str, str]:
    # As Postgres sorts tenants: null last.
    return failure.tenant_id is None, str(failure.tenant_id), failure.task_id


def _of_one_tenant(session: Session, failures: list[Failure]) -> list[UUID]:
    # In the order of their groups, as far as they do not change them.
    of_replays = sorted(
        (n for n, f in enumerate(failures) if f.replayed_row is not None), key=lambda n: failures[n].fingerprint or ""
    )
    if len(of_replays) > 1:
        rows = {"ids": [failures[n].replayed_row for n in of_replays]}
        session.execute(_REPLAYED_ALL, rows)
        session.execute(_GROUPS_OF, rows)
    replayed = {n: row_id for n in of_replays if (row_id := _fail_again(session, failures[n])) is not None}
    others = [f for n, f in enumerate(failures) if n not in replayed]
    found = iter(_of_one_tenant_anew(session, others) if others else ())
    return [replayed[n] if n in replayed else next(found) for n in range(len(failures))]


def _fail_again(session: Session, failure: Failure) -> UUID | None:
    """Return the row of a replay that has failed to ``pending``; None where the row is none to return to any more:
    purged, resolved meanwhile, or hidden from this tenant. Then it is a failure like any other."""
    row_id = failure.replayed_row
    assert row_id is not None  # noqa: S101 - the caller looked
    known = session.execute(_REPLAYED, {"id": row_id, "item": failure.replay_item}).first()
    session.execute(_ITEM_FAILED, {"item": failure.replay_item, "why": failure.exception_class})
    delivered = session.execute(_DELIVERED, {"delivery_id": failure.delivery_id}).scalar()
    if delivered is not None:
        return UUID(str(delivered))
    if known is None or known.status not in _OPEN:
        return None
    if known.is_anothers:
        # Somebody did not wait for this execution, and had the job sent again: how that ends is what counts.
        session.execute(_NOTE_DELIVERY, {"delivery_id": failure.delivery_id, "id": row_id})
        return row_id
    counted = replace(
        failure,
        # Every execution after the first of all: those of the replay, too.
        retry_count=min(known.retry_count + failure.retry_count + 1, 2**31 - 1),
        last_retry_at=failure.last_retry_at or failure.failed_at,
        # What was sent is not what was kept: it may have been edited, and the original forgotten since.
        original=None,
        original_key=None,
    )
    _reopen(session, row_id, counted, known.status, known.fingerprint, _AS_ITS_REPLAY_FAILED)
    return row_id


def _of_one_tenant_anew(session: Session, failures: list[Failure]) -> list[UUID]:
    row_ids = [failed_job_id(f.task_id, f.task_name) for f in failures]
    # Of two deliveries of one message the second finds the row of the first.
    first = dict(zip(reversed(row_ids), reversed(failures), strict=True))
    new = _insert(session, first.items())
    return [
        row_id if row_id in new and failure is first[row_id] else _settle(session, failure)
        for row_id, failure in zip(row_ids, failures, strict=True)
    ]


def _insert(session: Session, failures: Iterable[tuple[UUID, Failure]]) -> set[UUID]:
    """Insert what is not known yet, and return those rows' ids."""
    return set(session.execute(_INSERT, {"failures": _json(failures)}).scalars())


def _json(failures: Iterable[tuple[UUID, Failure]]) -> str:
    return json.dumps([_given(row_id, failure) for row_id, failure in failures])


def _given(row_id: UUID, failure: Failure) -> dict[str, Any]:
    given = {**failure.as_json(), "id": str(row_id)}
    if failure.original is not None:
        given["original"] = b64encode(as_kept(failure.original, failure.original_key)).decode("ascii")
    return given


def _settle(session: Session, failure: Failure) -> UUID:
    """Find the row of a failure that is known already, or whose id is taken."""
    parts: tuple[str, ...] = (failure.task_id, failure.task_name)
    # Each turn adds what tells this failure from the one that holds the id; nothing can hold the last.
    for _ in range(4):
        row_id = failed_job_id(*parts)
        if _insert(session, [(row_id, failure)]):
            return row_id
        delivered = session.execute(_DELIVERED, {"delivery_id": failure.delivery_id}).scalar()
        if delivered is not None:
            return UUID(str(delivered))
        status = session.execute(_LOCK, {"id": row_id}).scalar()
        if status in _OPEN:
            _reopen(session, row_id, failure, status, session.execute(_GROUP_OF, {"id": row_id}).scalar())
            return row_id
        # A row that cannot be seen is another tenant's.
        parts = (*parts, str(failure.tenant_id) if status is None else failure.delivery_id)
    raise LookupError(f"no row for message {failure.task_id!r} of {failure.task_name!r}: every id it may have is taken")


def _reopen(
    session: Session,
    row_id: UUID,
    failure: Failure,
    status: str,
    fingerprint: str | None,
    statement: TextClause = _AS_IT_FAILED,
) -> None:
    """Return the row to ``pending`` with what it failed with now.

    Arguments:
      status: Which it has, and under which its group counts it.
      fingerprint: Of the group that it is in.
    """
    moves = fingerprint != failure.fingerprint
    session.execute(
        statement,
        {
            "failures": _json([(row_id, failure)]),
            "status": status,
            "leaves": fingerprint if moves else None,
            **{each: int(moves and each == status) for each in _OPEN},
        },
    )
