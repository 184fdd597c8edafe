"""How failed jobs look on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from db.failed import Status
from worker.cli.common import console
from worker.text import printable

STATUS_STYLES: Final[dict[Status, str]] = {
    "pending": "bold yellow",
    "in_progress": "cyan",
    "resolved": "green",
    "abandoned": "dim",
}


def status_text(status: Status, failures: int = 1) -> Text:
    """Return a status, and how often the job failed where that is more than once."""
    text = Text.assemble((status, STATUS_STYLES.get(status, "")))
    return text.append(f" x{failures}", "bold red") if failures > 1 else text


def grid(*columns: str) -> Table:
    """Return a table without lines, which a narrow terminal has no room for."""
    table = Table(*columns, box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    return table


def say(text: str | Text, style: str = "") -> None:
    """Print a sentence, as wide as the terminal is."""
    console.print(Text(printable(text), style) if isinstance(text, str) else text)


def say_command(command: str, comment: str = "") -> None:
    """Print what is to be copied; the terminal alone wraps it."""
    console.print(Text(command).append(comment, "dim"), soft_wrap=True)


def heading(text: str) -> None:
    """Print what a section is about."""
    console.print()
    console.print(Text(text, "bold"))


@contextmanager
def progressing(past: str) -> Iterator[Callable[[int], object]]:
    """Show how many jobs are done so far, where somebody looks on."""
    columns = (TextColumn("{task.completed:,} {task.description}"), TimeElapsedColumn())
    # What it did is on standard output, for programs too.
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(past, total=None)
        yield lambda done: progress.update(task, completed=done)
