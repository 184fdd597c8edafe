"""``worker failed retention list | set | unset``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Final
from uuid import UUID

import typer
from rich.text import Text
from sqlalchemy.orm import Session

from db.failed.retention import KEEP_DAYS_AT_MOST, SUBJECTS, rules, set_rule, unset_rule
from db.session import operator_transaction
from worker.cli.common import configure_sessions, console, explained
from worker.cli.failed.list import tenant_text
from worker.cli.failed.looks import grid, say
from worker.cli.failed.options import AsJson, AsTenant, access
from worker.cli.operator import By, operator_name
from worker.tenants import tenant_named, tenant_names
from worker.text import counted, moment, one_line, to_json

FOR_EVER: Final = "forever"

app = typer.Typer(no_args_is_help=True)

Subject = Annotated[
    str,
    typer.Argument(
        metavar="SUBJECT",
        help=f"{', '.join(SUBJECTS)}: jobs of a status, arguments and originals, the history, answers.",
        autocompletion=lambda incomplete: [s for s in SUBJECTS if s.startswith(incomplete)],
    ),
]
Tenant = Annotated[
    str | None, typer.Option("--tenant", help="This tenant's own rule: its UUID, or its name. For all by default.")
]


@app.command("list")
def list_(as_tenant: AsTenant = None, as_json: AsJson = False) -> None:
    """Show how long what is kept: for all tenants, and what some have of their own."""
    with access(as_tenant) as work:
        with work.begin() as session:
            found = rules(session)
            names = tenant_names(session, (rule.tenant_id for rule in found))
        if as_json:
            typer.echo(to_json([asdict(rule) for rule in found]))
            return
        table = grid("what", "is kept for", "of", "because of", "since")
        for rule in found:
            table.add_row(
                rule.subject,
                _days(rule.keep_days),
                Text("all tenants", "dim") if rule.tenant_id is None else tenant_text(rule.tenant_id, names),
                Text(one_line(rule.changed_by) if rule.changed_by else "the default"),
                moment(rule.changed_at) if rule.changed_at else "",
            )
        console.print(table)
        say("\nCounted from when a job was resolved or abandoned, or else from when it failed.", "dim")


@app.command("set")
def set_(
    subject: Subject,
    days: Annotated[str, typer.Argument(metavar="DAYS", help=f"0 to {KEEP_DAYS_AT_MOST}, or {FOR_EVER}.")],
    tenant: Tenant = None,
    by: By = None,
) -> None:
    """Keep SUBJECT for DAYS; worker failed purge --expired removes what is older."""
    with explained():
        configure_sessions()
        keep = _parse(days)
        with operator_transaction() as session:
            tenant_id = _tenant(session, tenant)
            changed = set_rule(session, subject, keep, by=operator_name(by), tenant_id=tenant_id)
        whose = "all tenants" if tenant_id is None else str(tenant_id)
        say(f"{subject} of {whose}: kept for {_days(keep)}{'' if changed else ', as before'}.")


@app.command("unset")
def unset(subject: Subject, tenant: Tenant = None, by: By = None) -> None:
    """Remove a rule: what holds for all does then, or the default."""
    with explained():
        configure_sessions()
        with operator_transaction() as session:
            tenant_id = _tenant(session, tenant)
            changed = unset_rule(session, subject, by=operator_name(by), tenant_id=tenant_id)
        say("The rule is removed." if changed else "There was no such rule.")


def _tenant(session: Session, tenant: str | None) -> UUID | None:
    return tenant_named(session, tenant) if tenant else None


def _days(keep: int | None) -> str:
    return "ever" if keep is None else counted(keep, "day")


def _parse(days: str) -> int | None:
    if days == FOR_EVER:
        return None
    if not days.isascii() or not days.isdigit():
        raise ValueError(f"DAYS must be 0 to {KEEP_DAYS_AT_MOST}, or {FOR_EVER}, not {days!r}")
    return int(days)
