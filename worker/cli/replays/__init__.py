"""``worker replays``: looks at replays, and pauses, resumes and cancels them. A module a command."""

from __future__ import annotations

import typer

from worker.cli.replays import change, show
from worker.cli.replays import list as list_

app = typer.Typer(no_args_is_help=True)
app.command("list")(list_.list_)
app.command("show")(show.show)
app.command("pause")(change.pause)
app.command("resume")(change.resume)
app.command("cancel")(change.cancel)
