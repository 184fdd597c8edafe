"""``worker replays list``."""

from __future__ import annotations

from typing import Annotated, cast, get_args

import typer
from rich.text import Text

from db.replays import runs
from db.replays.runs import State
from worker.cli.common import console
from worker.cli.failed.looks import grid, say
from worker.cli.failed.options import AsJson, AsTenant, access
from worker.cli.replays.words import STATE_STYLES, in_json, which
from worker.cli.text import age, one_line, short, to_json


def list_(
    state: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{', '.join(get_args(State))}.",
            autocompletion=lambda incomplete: [s for s in get_args(State) if s.startswith(incomplete)],
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many, the newest.")] = 20,
    as_tenant: AsTenant = None,
    as_json: AsJson = False,
) -> None:
    """List replays, newest first."""
    with access(as_tenant) as work:
        for each in state or ():
            if each not in get_args(State):
                raise ValueError(f"state must be one of {', '.join(get_args(State))}, not {each!r}")
        with work.begin() as session:
            found = runs.find(session, states=cast("list[State]", state or []), limit=limit)
        if as_json:
            typer.echo(to_json([in_json(replay) for replay in found]))
            return
        if not found:
            say("No replay is so." if state else "Nothing has been sent again: worker failed retry does that.")
            return
        table = grid("id", "age", "state", "by", "jobs", "ok", "again", "refused", "which")
        for column in table.columns[4:8]:
            column.justify = "right"
        table.columns[3].max_width = 16
        for replay in found:
            counts = (f"{replay.items.get(name, 0):,}" for name in ("succeeded", "failed", "refused"))
            waits = replay.state == "running" and replay.runner is None
            table.add_row(
                Text(short(replay.id)),
                age(replay.created_at, work.now),
                Text("waiting" if waits else replay.state, "yellow" if waits else STATE_STYLES[replay.state]),
                Text(one_line(replay.created_by)),
                "?" if replay.matched is None else f"{replay.matched:,}",
                *counts,
                Text(which(replay.filter)),
            )
        console.print(table)
