"""The history of failed jobs: who did what, when and why, and what was there before.

It is written by triggers in the transaction of each change; who and why are what :func:`say` told Postgres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.failed.filters import Filter, InvalidFilter
from db.failed.foreign_json import read_object

#: Characters of a name, and of a reason.
NAME_AT_MOST, REASON_AT_MOST = 255, 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    id: int
    #: None where it concerns no single job.
    failed_job_id: UUID | None
    tenant_id: UUID | None
    event: str
    #: Who, as they said; and whom Postgres knew them as.
    changed_by: str
    database_user: str
    reason: str | None
    #: The columns that changed.
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    happened_at: datetime


_COLUMNS = (
    "id, failed_job_id, tenant_id, event, changed_by, database_user, reason, CAST(before AS text) AS before,"
    " CAST(after AS text) AS after, happened_at"
)


def say(session: Session, *, by: str, reason: str | None = None, event: str | None = None) -> None:
    """Tell Postgres, until the transaction ends, who changes rows in it and why.

    Arguments:
      by: A person or a program.
      reason: For the history.
      event: What it is called there; by default what the change of status says.

    Raises:
      ValueError: When ``by`` is empty, or either is too long; the message names it.
    """
    session.execute(
        text(
            "SELECT set_config('app.changed_by', :by, true), set_config('app.change_reason', :reason, true),"
            " set_config('app.change_event', :event, true)"
        ),
        {"by": checked("by", by, NAME_AT_MOST), "reason": reason or "", "event": event or ""},
    )


def checked(name: str, value: str, at_most: int) -> str:
    """Return ``value`` without the space around it.

    Raises:
      ValueError: When nothing is left, it is too long, or holds a NUL, which Postgres does not take.
    """
    stripped = value.strip()
    if not stripped:
        raise ValueError(f"{name} must not be empty")
    if len(stripped) > at_most:
        raise ValueError(f"{name} must be at most {at_most:,} characters, not {len(stripped):,}")
    if "\0" in stripped:
        raise ValueError(f"{name} must not hold a NUL character: {stripped!r}")
    return stripped


def write_event(
    session: Session,
    event: str,
    *,
    by: str,
    reason: str | None = None,
    failed_job_id: UUID | None = None,
    tenant_id: UUID | None = None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Write what no row of a failed job shows: a queue that was paused, a rule that was changed.

    Raises:
      ValueError: When ``by`` is empty or too long.
    """
    session.execute(
        text(
            """
            INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, reason, before, after)
            VALUES (:failed_job_id, :tenant_id, :event, :by, :reason, :before, :after)
            """
        ).bindparams(
            bindparam("before", type_=JSONB(none_as_null=True)), bindparam("after", type_=JSONB(none_as_null=True))
        ),
        {
            "failed_job_id": failed_job_id,
            "tenant_id": tenant_id,
            "event": event,
            "by": checked("by", by, NAME_AT_MOST),
            "reason": reason,
            "before": None if before is None else dict(before),
            "after": None if after is None else dict(after),
        },
    )


def history(session: Session, failed_job_id: UUID, *, limit: int = 1_000) -> list[Event]:
    """Return what happened to a job, oldest first, also where it is gone; of more than ``limit`` the newest."""
    rows = session.execute(
        text(
            f"SELECT {_COLUMNS} FROM worker_failed_job_events WHERE failed_job_id = :id ORDER BY id DESC LIMIT :limit"
        ),
        {"id": failed_job_id, "limit": limit},
    ).all()
    return [_event(row) for row in reversed(rows)]


def audit(
    session: Session,
    *,
    by: Sequence[str] = (),
    events: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int = 50,
) -> list[Event]:
    """Return what people did, newest first: all but the failures themselves.

    Arguments:
      session: An operator's, or one that is bound to a tenant, and then sees that one's alone.
      by: Who, as they said; anybody by default.
      events: What, as events are called; anything by default.
      since: At that moment or later.
      until: Before it.
      before: Id of the last event of the page before.
      limit: 1 to 1,000.

    Raises:
      InvalidFilter: When ``limit`` cannot be, or nothing is between ``since`` and ``until``.
    """
    if not 1 <= limit <= 1_000:
        raise InvalidFilter(f"limit must be 1 to 1000, not {limit!r}")
    # It checks both.
    Filter(since=since, until=until)
    rows = session.execute(
        text(
            f"""
            SELECT {_COLUMNS} FROM worker_failed_job_events
            WHERE event NOT IN ('captured', 'failed_again')
              AND (CAST(:by AS text[]) IS NULL OR changed_by = ANY(:by))
              AND (CAST(:events AS text[]) IS NULL OR event = ANY(:events))
              AND (CAST(:since AS timestamptz) IS NULL OR happened_at >= :since)
              AND (CAST(:until AS timestamptz) IS NULL OR happened_at < :until)
              AND (CAST(:before AS bigint) IS NULL OR id < :before)
            ORDER BY id DESC LIMIT :limit
            """
        ),
        {
            "by": list(by) or None,
            "events": list(events) or None,
            "since": since,
            "until": until,
            "before": before,
            "limit": limit,
        },
    )
    return [_event(row) for row in rows]


def _event(row: Row[Any]) -> Event:
    values = dict(row._mapping)
    # Tenants with SQL of their own write what they like.
    return Event(**{**values, "before": read_object(values["before"]), "after": read_object(values["after"])})
