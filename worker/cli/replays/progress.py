"""Shows how far a replay is, while it runs: a bar on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from db.replays.runs import Replay
from worker.cli.replays.words import OUTCOMES
from worker.replay.ramp import allowed
from worker.text import short

#: Seconds between two lines, and over which the rate is measured.
LINE_EVERY: Final = 5.0
MEASURED: Final = 10.0


class Progress:
    """What is known of a replay's progress.

    Arguments:
      clock: Seconds, of a clock that only goes on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._ended: deque[tuple[float, int]] = deque()
        #: How many had succeeded when this began to look: the ramp begins anew with each run.
        self._before: int | None = None

    def facts(self, replay: Replay) -> tuple[int, int, float]:
        """Return how many have ended, how many may be under way at this step, and how many end a second."""
        now = self._clock()
        ended = sum(replay.items.values()) - replay.under_way
        succeeded = replay.items.get("succeeded", 0)
        if self._before is None:
            self._before = succeeded
        self._ended.append((now, ended))
        while len(self._ended) > 1 and self._ended[0][0] < now - MEASURED:
            self._ended.popleft()
        since, then = self._ended[0]
        rate = (ended - then) / (now - since) if now > since else 0.0
        return ended, allowed(replay.settings, succeeded - self._before), rate

    @property
    def seconds(self) -> int:
        """Since it began to look."""
        return int(self._clock() - self._began)


@contextmanager
def shown(what: str = "") -> Iterator[Callable[[Replay], object]]:
    """Give what shows how a replay stands, on standard error: what became of it goes to standard output.

    Arguments:
      what: Said beside it where it is a bar.
    """
    errors = Console(stderr=True)
    progress = Progress()
    if not errors.is_terminal:
        yield Lines(progress, errors)
        return
    with Live(console=errors, transient=True, auto_refresh=False) as live:
        yield lambda replay: live.update(_bar(progress, replay, what), refresh=True)


class Lines:
    """Prints a line now and then, and when the ramp takes a step."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._said: tuple[float, int, dict[str, int]] | None = None

    def __call__(self, replay: Replay) -> None:
        ended, step, rate = self._progress.facts(replay)
        now, items = time.monotonic(), dict(replay.items)
        if self._said is not None:
            at, step_then, items_then = self._said
            if items == items_then or (step == step_then and now - at < LINE_EVERY):
                return
        self._said = now, step, items
        line = Text(f"replay {short(replay.id)}: ").append(_counts(replay, ended, step, rate))
        # A line each, however long: a program may read them.
        self._console.print(line, soft_wrap=True, highlight=False)


def _counts(replay: Replay, ended: int, step: int, rate: float) -> Text:
    """Return ``57 of 120, 10 of 20 under way, 55 succeeded, 2 failed again; 4.8/s``."""
    of = f" of {replay.matched:,}" if replay.matched is not None else ""
    parts = [Text(f"{ended:,}{of} ended"), Text(f"{replay.under_way:,} of {step:,} under way", "cyan")]
    parts += [
        Text(f"{replay.items[state]:,} {word}", style)
        for state, (word, style) in OUTCOMES.items()
        if replay.items.get(state)
    ]
    return Text(", ").join(parts).append(f"; {rate:.1f}/s" if rate else "", "dim")


def _bar(progress: Progress, replay: Replay, what: str) -> Group:
    ended, step, rate = progress.facts(replay)
    first = Table.grid(padding=(0, 1), expand=False)
    minutes, seconds = divmod(progress.seconds, 60)
    first.add_row(
        Text(f"replay {short(replay.id)}", "bold"),
        ProgressBar(total=replay.matched or None, completed=ended, width=36, pulse=replay.matched is None),
        Text(f"{ended / replay.matched:4.0%}" if replay.matched else ""),
        Text(f"{minutes}:{seconds:02}", "dim"),
        Text(what, "dim"),
    )
    return Group(first, _counts(replay, ended, step, rate))
