"""Which failed jobs, and on whose behalf: the options that every command has."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Concatenate, Final, ParamSpec
from uuid import UUID

import typer
from sqlalchemy.orm import Session

from db.failed import STATUSES, Begin, Filter, InvalidFilter, Status, ids_beginning, moment
from db.replays import runs
from db.session import operator_transaction, transaction
from db.tenancy import parse_uuid, tenant_context
from worker.cli.common import configure_sessions, explained
from worker.cli.failed.completion import complete_error_type, complete_queue, complete_status
from worker.tenants import tenant_named

#: Jobs that wait for somebody.
OPEN: Final[tuple[Status, ...]] = ("pending", "in_progress")
_WORDS: Final[dict[str, tuple[Status, ...]]] = {"open": OPEN, "all": (), **{s: (s,) for s in STATUSES}}
#: Candidates that an error names.
_CANDIDATES: Final = 5

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
AsTenant = Annotated[
    str | None,
    typer.Option(
        envvar="WORKER_TENANT",
        help="Work bound to this tenant (UUID), with DATABASE_URL: see and touch its jobs alone.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for, as it was typed."""

    ids: list[str] | None
    status: list[str] | None
    queue: list[str] | None
    actor: list[str] | None
    tenant: list[str] | None
    error_type: list[str] | None
    exception: list[str] | None
    fingerprint: list[str] | None
    correlation_id: str | None
    since: str | None
    until: str | None
    text: str | None
    replay: str | None
    as_tenant: str | None

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


def _declared(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Ids, or what they begin with, four characters at least."),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="pending, in_progress, resolved, abandoned; open (the first two), or all.",
            autocompletion=complete_status,
            rich_help_panel="Which",
        ),
    ] = None,
    queue: Annotated[
        list[str] | None, typer.Option(help="Of this queue.", autocompletion=complete_queue, rich_help_panel="Which")
    ] = None,
    actor: Annotated[
        list[str] | None, typer.Option(help="Of this actor; its last name will do.", rich_help_panel="Which")
    ] = None,
    tenant: Annotated[
        list[str] | None, typer.Option(help="For this tenant: its UUID, or its name.", rich_help_panel="Which")
    ] = None,
    error_type: Annotated[
        list[str] | None,
        typer.Option(help="Of this kind.", autocompletion=complete_error_type, rich_help_panel="Which"),
    ] = None,
    exception: Annotated[
        list[str] | None, typer.Option(help="With this exception; its last name will do.", rich_help_panel="Which")
    ] = None,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option(help="Of this group, or what its fingerprint begins with.", rich_help_panel="Which"),
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(help="Of this piece of work.", rich_help_panel="Which")] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Failed since: 2h, 7d, 2026-01-31, 2026-01-31T08:00+01:00.", rich_help_panel="Which"),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Failed before.", rich_help_panel="Which")] = None,
    text: Annotated[
        str | None, typer.Option(help="With this in message, traceback or arguments.", rich_help_panel="Which")
    ] = None,
    replay: Annotated[
        str | None, typer.Option(help="Of this replay: its id, or what it begins with.", rich_help_panel="Which")
    ] = None,
    as_tenant: AsTenant = None,
) -> None:
    """Hold the declarations."""


P = ParamSpec("P")


def filtered(command: Callable[Concatenate[Asked, P], None]) -> Callable[..., None]:
    """Give a command the options that all have; it takes them as its first argument."""
    shared = inspect.signature(_declared, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        asked = Asked(**{name: given.pop(name) for name in shared})
        command(asked, **given)  # type: ignore[call-arg]

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*shared.values(), *own)]
    # What Typer reads; it asks for both.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


@dataclass(frozen=True, slots=True)
class Access:
    """What a command works with.

    Attributes:
      begin: Gives transactions, of an operator or bound to one tenant.
      tenant_id: The tenant that they are bound to.
      now: When the command began.
    """

    begin: Begin
    tenant_id: UUID | None
    now: datetime

    def command(self, words: str) -> str:
        """Return a command of ours as it must be typed by whoever typed this one."""
        return f"worker failed {words}{self.suffix}"

    @property
    def suffix(self) -> str:
        """What each command ends with, so that it is on the same behalf."""
        return f" --as-tenant {self.tenant_id}" if self.tenant_id else ""


@contextmanager
def access(as_tenant: str | None) -> Iterator[Access]:
    """Open the database on behalf of an operator, or of a tenant; explain what goes wrong in the block."""
    with explained(), ExitStack() as stack:
        configure_sessions()
        tenant_id = None
        if as_tenant:
            tenant_id = parse_uuid("--as-tenant", as_tenant)
            stack.enter_context(tenant_context(tenant_id))
        yield Access(transaction if tenant_id else operator_transaction, tenant_id, datetime.now(UTC))


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
