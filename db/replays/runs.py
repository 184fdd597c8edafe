"""Replays as rows: made, looked at, paused, resumed, cancelled; and run by one process at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from db.errors import DramaturgError
from db.failed.events import NAME_AT_MOST, REASON_AT_MOST, checked, write_event
from db.failed.filters import Filter
from db.failed.foreign_json import read
from db.far_time import moment_of
from db.session import tenant_of

State = Literal["running", "paused", "stopped", "cancelled", "finished"]

#: How many may be under way at a time: the next when as many as this have ended well.
RAMP: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)

#: Seconds for which a process has a replay to itself after each sign of life.
LEASE: Final = 15.0

#: Pages that are looked at for one, where somebody wrote many that nobody can read.
_LOOKS: Final = 50

#: Under which a replay's settings keep the request that it was made for.
REQUEST: Final = "request"


class IllegalChange(DramaturgError, ValueError):
    """Raised when a replay cannot take a state from the one that it has; the message says which it has."""


class AlreadyMade(DramaturgError, ValueError):
    """Raised when there is a replay of that id: whoever asked twice gets one."""


class UnreadableReplay(DramaturgError, ValueError):
    """Raised when what a replay is for cannot be read: whoever has SQL of a tenant may write anything there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """How a replay goes.

    Attributes:
      ramp: Jobs under way at a time, step by step.
      rate: Jobs sent a second at most; None for as many as the ramp lets.
      threshold: The share of the last ``window`` that may fail again; beyond it the replay stops by itself.
      window: See there.
      actor: The name of the actor that is to run them, where theirs has another today.
      edit: Of a single job, the ``id`` of the arguments to send instead (see :mod:`db.replays.edits`), and the names
        of those that it ``changed``.

    Raises:
      ValueError: Naming the field that cannot be so.
    """

    ramp: tuple[int, ...] = RAMP
    rate: float | None = None
    threshold: float = 0.2
    window: int = 20
    actor: str | None = None
    edit: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.ramp or any(not 1 <= step <= 1_000_000 for step in self.ramp):
            raise ValueError(f"ramp must be one or more whole numbers from 1 to 1000000, not {self.ramp!r}")
        if self.rate is not None and not 0 < self.rate <= 1_000_000:
            raise ValueError(f"rate must be more than 0 a second, not {self.rate!r}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a share from 0 to 1, not {self.threshold!r}")
        if not 1 <= self.window <= 10_000:
            raise ValueError(f"window must be 1 to 10000, not {self.window!r}")
        if self.actor is not None and (not self.actor or "\0" in self.actor):
            raise ValueError(f"actor must be a name, not {self.actor!r}")

    def as_json(self) -> dict[str, Any]:
        """Return it as it is kept."""
        return {**asdict(self), "ramp": list(self.ramp), "edit": None if self.edit is None else dict(self.edit)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ReplaySettings:
        """Return what was kept; what another version added is left out.

        Raises:
          ValueError, TypeError, AttributeError: When it is none.
        """
        known = {f.name for f in fields(cls)}
        kept: dict[str, Any] = {name: value for name, value in values.items() if name in known}
        if not isinstance(kept.get("actor"), str | None) or not isinstance(kept.get("edit"), Mapping | None):
            raise TypeError("actor must be a name, and edit an object")
        return cls(**{**kept, "ramp": tuple(kept.get("ramp", RAMP))})


@dataclass(frozen=True, slots=True)
class Replay:
    """A replay, and how far it is."""

    id: UUID
    tenant_id: UUID | None
    state: State
    #: Why it stopped, or was paused or cancelled.
    why: str | None
    filter: Filter
    settings: ReplaySettings
    created_by: str
    #: Why, as its author said.
    reason: str | None
    created_at: datetime
    finished_at: datetime | None
    #: Jobs that matched when it began; None before that.
    matched: int | None
    #: The process that runs it, None where none does.
    runner: str | None
    #: Jobs that failed later, by the workers' clocks, are not its own.
    until_at: datetime
    #: When the last job failed up to which it has come, and its id.
    come_to: tuple[datetime, UUID] | None = None
    #: Jobs by what became of them: claimed, sent, succeeded, failed, refused, released.
    items: Mapping[str, int] = field(default_factory=dict)

    @property
    def under_way(self) -> int:
        """Jobs that were claimed and have not ended."""
        return self.items.get("claimed", 0) + self.items.get("sent", 0)


def create(
    session: Session,
    where: Filter,
    settings: ReplaySettings,
    *,
    by: str,
    reason: str | None = None,
    replay_id: UUID | None = None,
    request: str | None = None,
) -> UUID:
    """Make a replay, which whoever is an operator's process then runs, and return its id.

    Arguments:
      session: Whose tenant it is bound to, the replay is.
      where: Which jobs; of those only pending and abandoned ones are sent, and abandoned ones where ``status`` or
        ``ids`` say so.
      replay_id: Its id, where whoever asks may ask twice for the same; a random one by default.
      request: Kept with it, for :mod:`db.replays.keys`.

    Raises:
      AlreadyMade: When there is one of that id; nothing was done.
      ValueError: When ``by`` is empty, or ``where`` is: that is every job there is; or ``reason`` is too long.
    """
    reason = checked("reason", reason, REASON_AT_MOST) if reason else None
    if where.is_empty:
        raise ValueError("say which jobs: by id, or by what they have in common")
    if settings.edit is not None and len(where.ids) != 1:
        raise ValueError("edit is for one job, named by its id")
    if settings.edit is not None and tenant_of(session) is not None:
        raise ValueError("edit is for operators: whoever is bound to a tenant cannot read what a job was called with")
    made: UUID | None = session.execute(
        text(
            """
            INSERT INTO worker_replays (id, tenant_id, filter, settings, created_by, reason, until_at)
            VALUES (
                coalesce(CAST(:id AS uuid), gen_random_uuid()), :tenant_id, :filter, :settings, :by, :reason,
                -- Workers' clocks may be ahead of this one.
                greatest(
                    now(),
                    (SELECT max(failed_at) FROM worker_failed_jobs WHERE status = 'pending'),
                    (SELECT max(failed_at) FROM worker_failed_jobs WHERE status = 'abandoned')
                )
            )
            ON CONFLICT DO NOTHING RETURNING id
            """
        ).bindparams(bindparam("filter", type_=JSONB), bindparam("settings", type_=JSONB)),
        {
            "id": replay_id,
            "tenant_id": tenant_of(session),
            "filter": filter_as_json(where),
            "settings": {**settings.as_json(), **({} if request is None else {REQUEST: request})},
            "by": checked("by", by, NAME_AT_MOST),
            "reason": reason,
        },
    ).scalar()
    if made is None:
        raise AlreadyMade(f"there is a replay {replay_id} already")
    write_event(
        session,
        "replay_started",
        by=by,
        reason=reason,
        tenant_id=tenant_of(session),
        after={"replay_id": str(made), "filter": filter_as_json(where)},
    )
    return made


_ITEMS: Final = """(
    SELECT coalesce(jsonb_object_agg(state, jobs), '{}') FROM (
        SELECT state, count(*) AS jobs FROM worker_replay_items WHERE replay_id = replay.id GROUP BY state
    ) counted
)"""
_NOT_COUNTED: Final = "CAST('{}' AS jsonb)"
_SELECT: Final = """
    SELECT
        id, tenant_id, state, why, CAST(filter AS text) AS filter, CAST(settings AS text) AS settings,
        created_by, reason, created_at, finished_at, matched, until_at,
        CASE WHEN runner_until > now() THEN runner END AS runner, come_to_at, come_to_id, {items} AS items
    FROM worker_replays replay
"""


def get(session: Session, replay_id: UUID, *, counted: bool = True) -> Replay | None:
    """Return a replay; None where there is none that this session sees.

    Arguments:
      counted: Whether to count its items, which takes a quarter of a second for a million.

    Raises:
      UnreadableReplay: When somebody wrote what is none.
    """
    row = session.execute(
        text(_SELECT.format(items=_ITEMS if counted else _NOT_COUNTED) + " WHERE id = :id"), {"id": replay_id}
    ).first()
    return None if row is None else _replay(row)


def find(
    session: Session,
    *,
    states: Sequence[State] = (),
    before: datetime | None = None,
    after: tuple[datetime, UUID] | None = None,
    limit: int = 50,
    counted: bool = True,
) -> list[Replay]:
    """Return replays, newest first; those that nobody can read are left out.

    Arguments:
      states: Which; all by default.
      before: Made before then.
      after: When the last of the page before was made, and its id.
      counted: Whether to count their items; see :func:`get`, and :func:`db.replays.items.counts`.
    """
    found: list[Replay] = []
    for _ in range(_LOOKS):
        rows = session.execute(
            text(
                f"{_SELECT.format(items=_ITEMS if counted else _NOT_COUNTED)}"
                " WHERE (CAST(:states AS text[]) IS NULL OR state = ANY(:states))"
                " AND (CAST(:before AS timestamptz) IS NULL OR created_at < :before)"
                " AND (CAST(:last_id AS uuid) IS NULL"
                "   OR created_at < :last_at OR (created_at = :last_at AND id > :last_id))"
                " ORDER BY created_at DESC, id LIMIT :limit"
            ),
            {
                "states": list(states) or None,
                "before": before,
                "last_at": after[0] if after else None,
                "last_id": after[1] if after else None,
                "limit": limit,
            },
        ).all()
        for row in rows:
            with suppress(UnreadableReplay):
                found.append(_replay(row))
        if len(rows) < limit or len(found) >= limit:
            break
        # Those that were left out hide none that are older.
        after = rows[-1].created_at, rows[-1].id
    return found[:limit]


def ids_beginning(session: Session, beginning: str, *, limit: int) -> list[UUID]:
    """Return the ids of replays that begin so.

    Raises:
      ValueError: When it can be the beginning of none, or is shorter than four characters.
    """
    if not re.fullmatch("[0-9a-f-]{4,36}", beginning.lower()):
        raise ValueError(
            f"a replay's id is a UUID, or what it begins with, four characters at least, not {beginning!r}"
        )
    found = session.scalars(
        text("SELECT id FROM worker_replays WHERE CAST(id AS text) LIKE :beginning ORDER BY id LIMIT :limit"),
        {"beginning": f"{beginning.lower()}%", "limit": limit},
    )
    return list(found)


def _replay(row: Row[Any]) -> Replay:
    values = dict(row._mapping)
    try:
        values["filter"] = filter_from_json(read(values["filter"]))
        values["settings"] = ReplaySettings.from_json(read(values["settings"]))
    except (ValueError, TypeError, AttributeError, KeyError) as e:
        raise UnreadableReplay(f"replay {values['id']}: its filter or its settings cannot be read") from e
    at, last = values.pop("come_to_at"), values.pop("come_to_id")
    values["come_to"] = None if last is None else (at, last)
    return Replay(**values)


def pause(session: Session, replay_id: UUID, *, by: str, why: str | None = None) -> None:
    """Let it send no more for now; what was sent goes on.

    Raises:
      LookupError: When there is no such replay.
      IllegalChange: When it is not running.
    """
    _change(session, replay_id, ("running",), "paused", by=by, why=why or "paused by hand")


def resume(session: Session, replay_id: UUID, *, by: str) -> None:
    """Let one that is paused, or has stopped by itself, go on, from the first step of its ramp; what failed again
    before counts no more. Otherwise as :func:`pause`."""
    _change(session, replay_id, ("paused", "stopped"), "running", by=by, why=None)


def cancel(session: Session, replay_id: UUID, *, by: str, why: str | None = None) -> None:
    """Let it send no more, ever; what was sent goes on, and what was claimed only goes back. As :func:`pause`."""
    _change(session, replay_id, ("running", "paused", "stopped"), "cancelled", by=by, why=why or "cancelled by hand")


def stop(session: Session, replay_id: UUID, *, runner: str, why: str) -> None:
    """Let it send no more, because too many fail again."""
    _change(session, replay_id, ("running",), "stopped", by=runner, why=why)


def finish(session: Session, replay_id: UUID, *, runner: str) -> None:
    """Say that all of it has ended."""
    _change(session, replay_id, ("running",), "finished", by=runner, why=None)


_CHANGE: Final = text(
    """
    UPDATE worker_replays SET
        state = :to, why = :why, finished_at = CASE WHEN :ends THEN now() END,
        counted_from = CASE WHEN :goes_on THEN clock_timestamp() ELSE counted_from END
    WHERE id = :id AND state = ANY(:sources) RETURNING tenant_id
    """
)


def _change(
    session: Session, replay_id: UUID, sources: tuple[State, ...], to: State, *, by: str, why: str | None
) -> None:
    changed = session.execute(
        _CHANGE,
        {
            "id": replay_id,
            "sources": list(sources),
            "to": to,
            "why": why,
            "ends": to in {"finished", "cancelled"},
            "goes_on": to == "running",
        },
    ).first()
    if changed is None:
        state = session.execute(text("SELECT state FROM worker_replays WHERE id = :id"), {"id": replay_id}).scalar()
        if state is None:
            raise LookupError(f"there is no replay {replay_id}")
        raise IllegalChange(f"replay {replay_id} is {state}: only one that is {' or '.join(sources)} can become {to}")
    write_event(
        session,
        f"replay_{to}",
        by=by,
        reason=why,
        tenant_id=changed.tenant_id,
        after={"replay_id": str(replay_id)},
    )


def take(session: Session, runner: str, replay_id: UUID) -> UUID | None:
    """Take a running replay that no other process runs, or keep the one that this runs, for :data:`LEASE` seconds.

    Arguments:
      session: An operator's.
      runner: Names this process, and no other.
      replay_id: Which.

    Returns:
      Its id, or None.
    """
    found: UUID | None = session.execute(
        text(
            f"""
            UPDATE worker_replays SET
                runner = :runner, runner_until = clock_timestamp() + make_interval(secs => {LEASE})
            WHERE id = :id AND state = 'running'
              AND (runner = :runner OR runner_until IS NULL OR runner_until < clock_timestamp())
            RETURNING id
            """
        ),
        {"runner": runner, "id": replay_id},
    ).scalar()
    return found


def waiting(session: Session, limit: int) -> list[UUID]:
    """Return running replays that no process runs, the oldest first."""
    return list(
        session.scalars(
            text(
                """
                SELECT id FROM worker_replays
                WHERE state = 'running' AND (runner_until IS NULL OR runner_until < now())
                ORDER BY created_at LIMIT :limit
                """
            ),
            {"limit": limit},
        )
    )


def leave(session: Session, runner: str, replay_id: UUID) -> None:
    """Let another process run it."""
    session.execute(
        text("UPDATE worker_replays SET runner = NULL, runner_until = NULL WHERE id = :id AND runner = :runner"),
        {"id": replay_id, "runner": runner},
    )


def filter_as_json(where: Filter) -> dict[str, Any]:
    """Return what a filter asks for, and nothing else, as it is kept and shown."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        if isinstance(value, UUID):
            return str(value)
        return value.isoformat() if isinstance(value, datetime) else value

    return {f.name: plain(value) for f in fields(where) if (value := getattr(where, f.name))}


def filter_from_json(values: Mapping[str, Any]) -> Filter:
    """Return what was kept.

    Raises:
      InvalidFilter: When it is none.
    """
    kinds: dict[str, Callable[[Any], Any]] = {
        **dict.fromkeys(("ids", "tenant_id", "correlation_id", "replay"), UUID),
        **dict.fromkeys(("since", "until"), moment_of),
    }

    def made(name: str, value: Any) -> Any:
        kind = kinds.get(name, lambda same: same)
        return tuple(kind(each) for each in value) if isinstance(value, list) else kind(value)

    return Filter(**{name: made(name, value) for name, value in values.items()})
