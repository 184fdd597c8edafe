"""Which failed jobs, and on whose behalf: the options that every command has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Concatenate, ParamSpec
from uuid import UUID

import typer

from db.failed import Begin
from db.session import operator_transaction, transaction
from db.tenancy import parse_uuid, tenant_context
from worker.cli.common import configure_sessions, explained
from worker.cli.failed.completion import complete_error_type, complete_queue, complete_status
from worker.failed.asked import Asked

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
AsTenant = Annotated[
    str | None,
    typer.Option(
        envvar="WORKER_TENANT",
        help="Work bound to this tenant (UUID), with DATABASE_URL: see and touch its jobs alone.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


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
