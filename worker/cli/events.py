"""``worker events load``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn

from db.session import transaction
from db.tenancy import tenant_context
from worker.cli.common import configure_sessions, console, explained, tenant_argument
from worker.events import load_events

app = typer.Typer(no_args_is_help=True)


@app.callback()
def events() -> None:
    """Load what attribution is computed from."""


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help="CSV in UTF-8 with a header.", exists=True, dir_okay=False)],
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant's UUID.")],
) -> None:
    """Load a tenant's touches and conversions from a CSV file, all of it or, on a bad row, nothing.

    Columns: event_id, event_type (touch or conversion), visitor_id, channel (of a touch), revenue_cents (of a
    conversion), occurred_at (ISO 8601; UTC without an offset).
    """
    tenant_id = tenant_argument(tenant)
    with explained():
        configure_sessions()
        columns = SpinnerColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=console, transient=True) as progress:
            shown = progress.add_task("reading", total=None)
            with tenant_context(tenant_id), transaction() as session:
                loaded = load_events(
                    session,
                    tenant_id,
                    file,
                    progress=lambda rows: progress.update(shown, description=f"{rows:,} rows read"),
                )
    console.print(
        f"{loaded.rows:,} rows read, {loaded.inserted:,} loaded, {loaded.duplicates:,} duplicates by event id left out"
    )
