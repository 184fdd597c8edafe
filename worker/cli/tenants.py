"""``worker tenants add | list``."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from db.session import operator_transaction
from worker.cli.common import configure_sessions, console, explained, tenant_argument
from worker.tenants import add_tenant, list_tenants

app = typer.Typer(no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    tenant_id: Annotated[str | None, typer.Option("--id", help="Its UUID; a new one by default.")] = None,
) -> None:
    """Add a tenant and print its id."""
    chosen = tenant_argument(tenant_id) if tenant_id else None
    with explained():
        configure_sessions()
        with operator_transaction() as session:
            added = add_tenant(session, name, chosen)
    typer.echo(str(added))


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List all tenants."""
    with explained():
        configure_sessions()
        with operator_transaction() as session:
            tenants = list_tenants(session)
    if as_json:
        typer.echo(json.dumps([{"id": str(t.id), "name": t.name} for t in tenants]))
        return
    if not tenants:
        console.print("No tenants yet: worker tenants add NAME")
        return
    table = Table("id", "name")
    for tenant in tenants:
        table.add_row(str(tenant.id), escape(tenant.name or ""))
    console.print(table)
