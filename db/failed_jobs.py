"""The table ``worker_failed_jobs``: the one place that writes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.session import transaction
from db.tenancy import tenant_context


@dataclass(frozen=True, slots=True)
class Failure:
    """A dead message as it will be recorded. Text is clean and cut, arguments are redacted."""

    #: The Redis id of the delivery that died; the message id on a broker that has none.
    delivery_id: str
    task_id: str
    task_name: str
    queue: str | None
    worker: str | None
    task_args: list[Any] | None
    task_kwargs: dict[str, Any] | None
    tenant_id: UUID | None
    error_type: str
    exception_class: str
    error_message: str
    traceback: str | None
    retry_count: int
    last_retry_at: datetime | None
    correlation_id: UUID
    failed_at: datetime


def failed_job_id(task_id: str, task_name: str, *more: str) -> UUID:
    """Return a row's id: the same for the same message, so that recording twice is one row."""
    return uuid5(NAMESPACE_URL, ":".join((task_id, task_name, *more)))


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

_JSON = [
    bindparam("task_args", type_=JSONB(none_as_null=True)),
    bindparam("task_kwargs", type_=JSONB(none_as_null=True)),
]

# A delivery that is recorded already makes no second row, whatever became of the first.
# One statement, so one round trip, for the row and for the delivery that it answers for. ON CONFLICT has no target: an
# upsert over a row that this tenant cannot see would raise.
_INSERT = text(
    f"""
    WITH recorded AS (
        INSERT INTO worker_failed_jobs (id, status, {", ".join(_COLUMNS)})
        SELECT CAST(:id AS uuid), 'pending', {", ".join(f"CAST(:{c} AS {kind})" for c, kind in _TYPES.items())}
        WHERE NOT EXISTS (SELECT FROM worker_failed_job_deliveries WHERE delivery_id = :delivery_id)
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
    SELECT CAST(:delivery_id AS varchar), id, CAST(:tenant_id AS uuid) FROM recorded
    ON CONFLICT DO NOTHING
    RETURNING failed_job_id
    """
).bindparams(*_JSON)

_DELIVERED = text("SELECT failed_job_id FROM worker_failed_job_deliveries WHERE delivery_id = :delivery_id")

_STATUS = text("SELECT status FROM worker_failed_jobs WHERE id = :id FOR UPDATE")

_CHANGING: Final = tuple(c for c in _COLUMNS if c not in {"task_id", "task_name", "tenant_id", "correlation_id"})

_REOPEN = text(
    f"""
    UPDATE worker_failed_jobs SET status = 'pending', {", ".join(f"{c} = :{c}" for c in _CHANGING)}
    WHERE id = :id AND status IN ('pending', 'in_progress', 'abandoned')
    RETURNING id
    """
).bindparams(*_JSON)

_ADD_DELIVERY = text(
    """
    INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
    VALUES (:delivery_id, :id, :tenant_id) ON CONFLICT DO NOTHING
    """
)


def record(failure: Failure) -> UUID:
    """Write ``failure`` in a transaction of its tenant and return the row's id. Doing it twice is harmless.

    Which row, where the message is known already:

    - the same delivery again: the row it is in;
    - another delivery of the message, beside a row that is not resolved: that row, back in ``pending``;
    - the same beside a resolved row: a new row, for this delivery;
    - beside a row that this tenant may not see: a new row, for this tenant.

    Raises:
      sqlalchemy.exc.SQLAlchemyError: When it could not be written; then nothing was.
    """
    with tenant_context(failure.tenant_id, failure.correlation_id), transaction() as session:
        return _record(session, failure)


def _record(session: Session, failure: Failure) -> UUID:
    values = {name: getattr(failure, name) for name in (*_COLUMNS, "delivery_id")}
    parts: tuple[str, ...] = (failure.task_id, failure.task_name)
    # Each turn adds what tells this failure from the one that holds the id; nothing can hold the last.
    for _ in range(4):
        row_id = failed_job_id(*parts)
        if session.execute(_INSERT, {**values, "id": row_id}).first() is not None:
            return row_id
        delivered = session.execute(_DELIVERED, {"delivery_id": failure.delivery_id}).scalar()
        if delivered is not None:
            return UUID(str(delivered))
        status = session.execute(_STATUS, {"id": row_id}).scalar()
        if status is not None and status != "resolved":
            session.execute(_REOPEN, {**values, "id": row_id})
            session.execute(_ADD_DELIVERY, {**values, "id": row_id})
            return row_id
        # A row that cannot be seen is another tenant's.
        parts = (*parts, str(failure.tenant_id) if status is None else failure.delivery_id)
    raise LookupError(f"no row for message {failure.task_id!r} of {failure.task_name!r}: every id it may have is taken")
