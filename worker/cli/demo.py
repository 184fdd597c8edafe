"""``worker demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.cli.common import console, explained
from worker.demo.run import run_demo


def demo(
    folder: Annotated[Path | None, typer.Option(help="Where data and logs go; DRAMATURG_HOME by default.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running until Ctrl-C.")] = False,
) -> None:
    """Run the main job from end to end on Postgres and Valkey of its own: nothing else is needed."""
    with explained():
        run_demo(console, folder, keep=keep)
