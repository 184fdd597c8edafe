"""What a person asks for, as it was typed, and as the library takes it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from db.failed import STATUSES, Filter, InvalidFilter, Status, ids_beginning, moment
from db.replays import runs
from db.tenancy import parse_uuid
from worker.tenants import tenant_named

#: Jobs that wait for somebody.
OPEN: Final[tuple[Status, ...]] = ("pending", "in_progress")
_WORDS: Final[dict[str, tuple[Status, ...]]] = {"open": OPEN, "all": (), **{s: (s,) for s in STATUSES}}
#: Candidates that an error names.
_CANDIDATES: Final = 5


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, as it was typed."""

    ids: list[str] | None = None
    status: list[str] | None = None
    queue: list[str] | None = None
    actor: list[str] | None = None
    tenant: list[str] | None = None
    error_type: list[str] | None = None
    exception: list[str] | None = None
    fingerprint: list[str] | None = None
    correlation_id: str | None = None
    since: str | None = None
    until: str | None = None
    text: str | None = None
    replay: str | None = None
    as_tenant: str | None = None

    @property
    def narrows(self) -> bool:
        """Whether it says which jobs, in any way."""
        return any(getattr(self, field.name) for field in fields(self) if field.name != "as_tenant")

    def arguments(self, where: Filter) -> str:
        """Return it as arguments of a command that is to find the same later: what was relative is not any more."""
        words = list(self.ids or ())
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in {"since", "until"}:
                moment = getattr(where, field.name)
                value = moment.isoformat() if moment else None
            if field.name != "ids" and value:
                option = f"--{field.name.replace('_', '-')}"
                words += [w for v in (value if isinstance(value, list) else [value]) for w in (option, v)]
        return shlex.join(words)


def to_filter(session: Session, asked: Asked, now: datetime, *, by_default: tuple[Status, ...] = ()) -> Filter:
    """Return what was asked for as the library takes it.

    Arguments:
      by_default: Statuses where none was asked for, and no ids.

    Raises:
      InvalidFilter: When a value cannot be one.
      ValueError: When an id or a tenant's name is nobody's, or more than one's.
    """
    return Filter(
        ids=tuple(dict.fromkeys(find_id(session, given) for given in asked.ids or ())),
        status=statuses(asked) or (() if asked.status or asked.ids else by_default),
        queue=_distinct(asked.queue),
        actor=_distinct(asked.actor),
        tenant_id=tuple(dict.fromkeys(tenant_named(session, given) for given in asked.tenant or ())),
        error_type=_distinct(asked.error_type),
        exception=_distinct(asked.exception),
        fingerprint=tuple(f.lower() for f in _distinct(asked.fingerprint)),
        correlation_id=parse_uuid("correlation-id", asked.correlation_id) if asked.correlation_id else None,
        since=moment("since", asked.since, now) if asked.since else None,
        until=moment("until", asked.until, now) if asked.until else None,
        text=asked.text,
        replay=find_replay(session, asked.replay) if asked.replay else None,
    )


def statuses(asked: Asked) -> tuple[Status, ...]:
    """Return the statuses that were asked for; none for all."""
    found: list[Status] = []
    for word in asked.status or ():
        if word not in _WORDS:
            raise InvalidFilter(f"status must be one of {', '.join([*STATUSES, 'open', 'all'])}, not {word!r}")
        if word == "all":
            return ()
        found += _WORDS[word]
    return tuple(dict.fromkeys(found))


class NoSuchJob(ValueError):
    """Raised when no failed job that the session sees has such an id."""


def find_id(session: Session, given: str) -> UUID:
    """Return the id that a person means: in full, whether there is such a job or not, or by its beginning.

    Raises:
      NoSuchJob: When none begins so.
      ValueError: When several do; the message names them.
      InvalidFilter: When it can be the beginning of none.
    """
    try:
        return UUID(given)
    except ValueError:
        pass
    found = ids_beginning(session, given, limit=_CANDIDATES + 1)
    if not found:
        raise NoSuchJob(f"no failed job's id begins with {given!r}")
    if len(found) > 1:
        named = ", ".join(map(str, found[:_CANDIDATES])) + (", …" if len(found) > _CANDIDATES else "")
        raise ValueError(f"id {given!r} is the beginning of several: {named}")
    return found[0]


class NoSuchReplay(NoSuchJob):
    """Raised when no replay that the session sees has such an id; so no failed job is of it, either."""


def find_replay(session: Session, given: str) -> UUID:
    """Return the id of the replay that a person means, in full or by its beginning.

    Raises:
      NoSuchReplay: When there is none.
      ValueError: When there are several, which the message names; or it can be the beginning of none.
    """
    found = runs.ids_beginning(session, given, limit=_CANDIDATES + 1)
    if not found:
        raise NoSuchReplay(
            f"no replay's id begins with {given!r}" if len(given) < 36 else f"there is no replay {given}"
        )
    if len(found) > 1:
        named = ", ".join(map(str, found[:_CANDIDATES])) + (", …" if len(found) > _CANDIDATES else "")
        raise ValueError(f"id {given!r} is the beginning of several: {named}")
    return found[0]


def narrowed(where: Filter, statuses: tuple[Status, ...]) -> Filter | None:
    """Return ``where`` for those of ``statuses`` alone that it asks for; None where it asks for none of them."""
    wanted = tuple(s for s in statuses if not where.status or s in where.status)
    return replace(where, status=wanted) if wanted else None


def _distinct(values: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values or ()))
