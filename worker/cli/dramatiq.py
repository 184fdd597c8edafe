"""``worker dramatiq``: workers, as the command ``dramatiq`` runs them."""

from __future__ import annotations

from typing import Any, Final

import typer

#: Whatever options there are, they are Dramatiq's.
PASSED_ON: Final[dict[str, Any]] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def dramatiq(context: typer.Context) -> None:
    """Run workers: the command dramatiq, with the same arguments, whose main process logs as its workers do."""
    from worker.dramatiq_command import run

    raise typer.Exit(run(context.args))
