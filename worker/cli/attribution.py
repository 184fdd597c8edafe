"""``worker attribution runs``: the days that were recomputed for all tenants, and how that went."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from worker.cli.common import console
from worker.cli.failed.looks import grid, say
from worker.cli.failed.options import AsJson, AsTenant, access
from worker.daily import runs
from worker.daily.runs import Run
from worker.text import age, as_dict, short, to_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def attribution() -> None:
    """Make ``runs`` a command of its group, though it is the only one."""


@app.command("runs")
def list_runs(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the newest.")] = 20,
    as_tenant: AsTenant = None,
    as_json: AsJson = False,
) -> None:
    """List the days that were recomputed for all tenants, and how far each is, newest first."""
    with access(as_tenant) as work:
        with work.begin() as session:
            runs.check(session)
            found = runs.find(session, limit=limit)
        if as_json:
            typer.echo(to_json([_in_json(run) for run in found]))
            return
        if not found:
            say("No day was recomputed for all tenants yet: worker schedule run recompute_day does that.")
            return
        _show(found, work.now)


def _in_json(run: Run) -> dict[str, Any]:
    return {**as_dict(run), "day": run.day.isoformat(), "missing": run.missing}


def _show(found: list[Run], now: datetime) -> None:
    table = grid("id", "day", "age", "state")
    for column in ("jobs", "sent", "ok", "failed", "missing", "since ok"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in found:
        table.add_row(
            short(run.id),
            run.day.isoformat(),
            age(run.started_at, now),
            _state(run),
            "?" if run.expected is None else f"{run.expected:,}",
            f"{run.sent:,}",
            f"{run.succeeded:,}",
            Text(f"{run.failed:,}", "bold red" if run.failed else ""),
            "?" if run.missing is None else f"{run.missing:,}",
            f"{run.recovered:,}" if run.finished_at else "-",
        )
    console.print(table)
    if any(run.failed for run in found):
        failed = next(run for run in found if run.failed)
        console.print(
            Text(f"what failed: worker failed list --status all --correlation-id {failed.correlation_id}", "dim"),
            soft_wrap=True,
        )


def _state(run: Run) -> Text:
    if run.finished_at is None:
        return Text("running" if run.expected is not None else "planning", "yellow")
    return Text("finished", "green" if run.succeeded == run.expected else "bold red")
