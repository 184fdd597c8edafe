"""``worker spool``: the failures that wait in Redis while Postgres is away, so it asks Redis alone."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from worker.cli.common import console
from worker.cli.redis_access import redis_access
from worker.live import spool_groups, spool_state
from worker.text import printable, to_json


def show(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show what waits in Redis to become rows of worker_failed_jobs, because Postgres is away."""
    with redis_access("spool") as (client, settings):
        state = spool_state(client, namespace=settings.redis_namespace)
        groups = spool_groups(client, namespace=settings.redis_namespace)
    if as_json:
        typer.echo(to_json({"size": state.size, "since": state.since, "groups": groups, "limit": settings.spool_limit}))
        return
    if not state.size:
        console.print("Nothing waits: every failure is in worker_failed_jobs.")
        return
    console.print(
        f"{state.size:,} failures wait for Postgres since {state.since and state.since.isoformat()};"
        f" {settings.spool_limit:,} may."
    )
    table = Table("actor", "error type", "failures")
    for group in groups:
        table.add_row(escape(printable(group.task_name)), escape(printable(group.error_type)), f"{group.failures:,}")
    console.print(table)
