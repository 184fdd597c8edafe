"""``worker workers list``, which asks Redis alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from worker.cli.common import console
from worker.cli.failed.looks import grid
from worker.cli.redis_access import redis_access
from worker.live import RunningMessage, WorkerState, list_workers
from worker.queue_admin.keys import asking
from worker.queue_admin.lives import server_time
from worker.text import counted, last_name, one_line, short_age, to_json

app = typer.Typer(no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


# With one command alone Typer would leave out its name.
@app.callback()
def workers() -> None:
    """Who works, and on what."""


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show which worker processes live, what they consume, and what each runs at this moment."""
    with redis_access("workers to look at") as (client, settings):
        states = list_workers(client, namespace=settings.redis_namespace)
        with asking():
            now = server_time(client) / 1000
    if as_json:
        typer.echo(to_json(states))
        return
    if not states:
        console.print("No worker lives. `dramatiq worker.attribution` starts one; the Procfile has all four.")
        return
    table = grid()
    table.add_column("worker", overflow="fold", min_width=12)
    table.add_column("queues", overflow="fold", min_width=12)
    for column in ("running", "threads", "memory", "up", "heard of"):
        table.add_column(column, justify="right", no_wrap=True)
    for state in states:
        table.add_row(
            Text(one_line(state.name)),
            Text(", ".join(map(one_line, state.queues))),
            f"{len(state.running) + state.more:,}",
            "-" if state.threads is None else f"{state.threads:,}",
            "-" if state.resident is None else f"{state.resident:,} MiB",
            short_age(_since(state.since, now)),
            f"{short_age(_since(state.last_sign, now))} ago",
        )
    console.print(table)
    for state in states:
        for line in _lines(state, now):
            console.print(Text(f"{one_line(state.name)}: ", "bold").append(line, "not bold"), soft_wrap=True)


def _lines(state: WorkerState, now: float) -> Iterator[str]:
    """Say what a process runs, and what is out of the ordinary about it."""
    if state.stopping:
        yield "was told to stop"
    for message in state.running:
        yield f"{_described(message)}, for {short_age(_since(message.since, now))}"
    if state.more:
        yield f"{counted(state.more, 'message')} more"


def _described(message: RunningMessage) -> str:
    if message.message_id is None:
        return f"message {one_line(message.redis_id)} of queue {one_line(message.queue)}, which cannot be read"
    whose = f" of tenant {message.tenant_id}" if message.tenant_id is not None else ""
    return f"{last_name(one_line(message.actor or '?'))} {one_line(message.message_id)}{whose}"


def _since(then: datetime | None, now: float) -> float | None:
    return None if then is None else max(0.0, now - then.timestamp())
