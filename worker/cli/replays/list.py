"""``worker replays list``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, cast, get_args

import typer
from rich.text import Text

from db.replays import runs
from db.replays.runs import Replay, State
from worker.cli.common import console
from worker.cli.failed.looks import grid, say
from worker.cli.failed.options import AsJson, AsTenant, access
from worker.cli.replays.words import STATE_STYLES, which
from worker.replay.words import in_json
from worker.text import age, one_line, short, to_json


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
        show_replays(found, work.now)


#: Characters at most of a name.
_BY: Final = 12


def show_replays(found: Sequence[Replay], now: datetime) -> None:
    """Print a line for each replay: what is short in full, and as much of which jobs as there is room for."""
    lines = [
        {
            "id": Text(short(replay.id)),
            "age": Text(age(replay.created_at, now)),
            "state": _state(replay),
            "by": Text(one_line(replay.created_by)),
            "jobs": Text("?" if replay.matched is None else f"{replay.matched:,}"),
            "ok": Text(f"{replay.items.get('succeeded', 0):,}"),
            "again": Text(f"{replay.items.get('failed', 0):,}"),
            "refused": Text(f"{replay.items.get('refused', 0):,}"),
            "which": Text(which(replay.filter)),
        }
        for replay in found
    ]
    table = grid(*lines[0])
    others = 0
    for name, column in zip(lines[0], table.columns, strict=True):
        if name == "which":
            column.width = max(10, console.width - others)
            continue
        needed = max(len(name), *(line[name].cell_len for line in lines))
        column.width = min(needed, _BY) if name == "by" else needed
        column.justify = "right" if name in {"jobs", "ok", "again", "refused"} else "left"
        others += column.width + 1
    for line in lines:
        table.add_row(*line.values())
    console.print(table)


def _state(replay: Replay) -> Text:
    if replay.state == "running" and replay.runner is None:
        return Text("waiting", "yellow")
    return Text(replay.state, STATE_STYLES[replay.state])
