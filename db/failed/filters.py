"""Which failed jobs: the same filters for every command, page and function."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.statuses import STATUSES, Status
from db.far_time import moment_of
from db.session import tenant_of

#: Fewer characters of text than these are in too many rows, and no index finds them.
TEXT_AT_LEAST: Final = 3

#: What is searched for text; the index is on this very expression.
SEARCHED: Final = (
    "(job.error_message || ' ' || coalesce(job.traceback, '') || ' ' || coalesce(CAST(job.task_args AS text), '')"
    " || ' ' || coalesce(CAST(job.task_kwargs AS text), ''))"
)

_AGO = re.compile(r"(\d{1,6})\s*(s|m|h|d|w)")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class InvalidFilter(ValueError):
    """Raised when a filter's value cannot be one; the message names the field and the value."""


def moment(name: str, value: str, now: datetime) -> datetime:
    """Return the moment that a person means.

    Arguments:
      name: What the value is called, for the error.
      value: How long ago (``90s``, ``30m``, ``2h``, ``7d``, ``4w``), or a date or time in ISO 8601; UTC without an
        offset.
      now: With a time zone.

    Raises:
      InvalidFilter: When it is neither.
    """
    ago = _AGO.fullmatch(value.strip())
    try:
        if ago:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = moment_of(value.strip())
    except (ValueError, OverflowError):
        raise InvalidFilter(
            f"{name} must be a time such as 2h, 7d, 2026-01-31 or 2026-01-31T08:00+01:00, not {value!r}"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Failed jobs for which all of these hold; of several values of one, any. Empty, it is every job.

    Attributes:
      ids: Of rows.
      status: See :data:`~db.failed.statuses.Status`.
      queue: Names.
      actor: Names, or what follows the last dots of them: ``recompute_window``.
      tenant_id: Whose. What a session may see it does not widen.
      error_type: See the README's table.
      exception: Classes, or what follows the last dots of them: ``OperationalError``.
      fingerprint: Of groups, or what they begin with, four characters at least.
      correlation_id: Of one piece of work.
      since: Failed at that moment or later.
      until: Failed before it.
      text: In message, traceback or arguments, as they are shown; upper and lower case are one.
      replay: Of this replay, whatever became of them in it.

    Raises:
      InvalidFilter: Naming the first field that cannot be so.
    """

    ids: tuple[UUID, ...] = ()
    status: tuple[Status, ...] = ()
    queue: tuple[str, ...] = ()
    actor: tuple[str, ...] = ()
    tenant_id: tuple[UUID, ...] = ()
    error_type: tuple[str, ...] = ()
    exception: tuple[str, ...] = ()
    fingerprint: tuple[str, ...] = ()
    correlation_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    replay: UUID | None = None

    def __post_init__(self) -> None:
        for several in ("ids", "status", "queue", "actor", "tenant_id", "error_type", "exception", "fingerprint"):
            # Twice the same would find the same twice.
            object.__setattr__(self, several, tuple(dict.fromkeys(getattr(self, several))))
        for status in self.status:
            if status not in STATUSES:
                raise InvalidFilter(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        for name in ("queue", "actor", "error_type", "exception"):
            if not all(isinstance(value, str) and value and "\0" not in value for value in getattr(self, name)):
                raise InvalidFilter(f"{name} must be a name, not {getattr(self, name)!r}")
        for value in self.fingerprint:
            if not re.fullmatch("[0-9a-f]{4,32}", value):
                raise InvalidFilter(f"fingerprint must be 4 to 32 of 0-9 and a-f, not {value!r}")
        for name in ("since", "until"):
            time = getattr(self, name)
            if time is not None and time.tzinfo is None:
                raise InvalidFilter(f"{name} must have a time zone, not {time!r}")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidFilter(f"since ({self.since.isoformat()}) must be before until ({self.until.isoformat()})")
        if self.text is not None and (len(self.text.strip()) < TEXT_AT_LEAST or "\0" in self.text):
            raise InvalidFilter(f"text must be at least {TEXT_AT_LEAST} characters, not {self.text!r}")

    @property
    def is_empty(self) -> bool:
        """Whether it is every job."""
        return not any(getattr(self, f.name) for f in fields(self))

    @property
    def of_groups(self) -> bool:
        """Whether all it asks is the same for each job of a group, but for the status, which groups count."""
        return not (self.ids or self.correlation_id or self.since or self.until or self.text or self.replay)

    def where(self) -> tuple[str, dict[str, Any]]:
        """Return it as a condition on ``worker_failed_jobs job`` and ``worker_failed_job_details details``, with its
        parameters. Short names must have been spelled out before: see :func:`spelled_out`."""
        conditions, parameters = ["true"], dict[str, Any]()

        def any_of(column: str, name: str, values: Iterable[object], kind: str) -> None:
            chosen = list(values)
            if len(chosen) == 1:
                # An index gives these in order, and those of an array not.
                conditions.append(f"{column} = CAST(:{name} AS {kind})")
                parameters[name] = chosen[0]
            elif chosen:
                conditions.append(f"{column} = ANY(CAST(:{name} AS {kind}[]))")
                parameters[name] = chosen

        any_of("job.id", "ids", self.ids, "uuid")
        any_of("job.status", "statuses", self.status, "text")
        any_of("job.queue", "queues", self.queue, "text")
        any_of("job.task_name", "actors", self.actor, "text")
        any_of("job.tenant_id", "tenants", self.tenant_id, "uuid")
        any_of("job.error_type", "error_types", self.error_type, "text")
        any_of("job.exception_class", "exceptions", self.exception, "text")
        any_of("details.fingerprint", "fingerprints", self.fingerprint, "text")
        for condition, name, value in (
            ("job.correlation_id = :correlation_id", "correlation_id", self.correlation_id),
            ("job.failed_at >= :since", "since", self.since),
            ("job.failed_at < :until", "until", self.until),
            (f"{SEARCHED} ILIKE :text", "text", None if self.text is None else contains(self.text)),
            (
                "job.id IN (SELECT item.failed_job_id FROM worker_replay_items item WHERE item.replay_id = :of_replay)",
                "of_replay",
                self.replay,
            ),
        ):
            if value is not None:
                conditions.append(condition)
                parameters[name] = value
        return " AND ".join(conditions), parameters


def contains(text: str) -> str:
    """Return the LIKE pattern of what contains ``text``, as it was typed."""
    return f"%{_escaped(text.strip())}%"


def spelled_out(session: Session, where: Filter) -> Filter:
    """Return ``where`` with short names of actors, exceptions and fingerprints as they are in full, and with the tenant
    that the session is bound to.

    Row-level security sees to that tenant anyway. Named, it lets Postgres take the rows in order from an index, which
    the policy's OR keeps it from.
    """
    bound = tenant_of(session)
    if bound is not None and not where.tenant_id:
        where = replace(where, tenant_id=(bound,))
    return replace(
        where,
        actor=_in_full(session, "task_name", where.actor),
        exception=_in_full(session, "exception_class", where.exception),
        # Two may begin the same one; Filter takes each once.
        fingerprint=tuple(
            full
            for beginning in where.fingerprint
            for full in ([beginning] if len(beginning) == 32 else _fingerprints(session, beginning) or [beginning])
        ),
    )


def _in_full(
    session: Session, column: Literal["task_name", "exception_class"], names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return names as rows have them: itself, where there is one, else those that end so after a dot."""
    return tuple(full for name in names for full in _names(session, column, name) or [name])


def _names(session: Session, column: str, name: str) -> Sequence[str]:
    if session.execute(
        text(f"SELECT EXISTS (SELECT FROM worker_failed_jobs WHERE {column} = :name)"), {"name": name}
    ).scalar_one():
        return [name]
    return session.scalars(
        text(f"SELECT DISTINCT {column} FROM worker_failed_job_groups WHERE {column} LIKE :ending ORDER BY 1"),
        {"ending": f"%.{_escaped(name)}"},
    ).all()


def _fingerprints(session: Session, beginning: str) -> Sequence[str]:
    return session.scalars(
        text("SELECT DISTINCT fingerprint FROM worker_failed_job_groups WHERE fingerprint LIKE :beginning ORDER BY 1"),
        {"beginning": f"{beginning}%"},
    ).all()


def _escaped(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)
