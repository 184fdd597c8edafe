"""How a replay goes: options that several commands have."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from sqlalchemy.orm import Session

from db.replays import runs
from db.replays.runs import RAMP, ReplaySettings
from worker.cli.common import fail
from worker.cli.failed.exits import NOTHING
from worker.failed.asked import NoSuchReplay, find_replay

_DEFAULT: Final = ReplaySettings()
_PANEL: Final = "How"

As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="ACTOR", help="Send to this actor: theirs has another name now.", rich_help_panel=_PANEL
    ),
]
Rate = Annotated[float | None, typer.Option(help="Jobs a second at most.", rich_help_panel=_PANEL)]
Ramp = Annotated[
    str,
    typer.Option(
        metavar="N,N,...",
        help="Jobs under way at a time: more once as many have succeeded; 1,2,5,10,20 and so on to 1000 by default.",
        show_default=False,
        rich_help_panel=_PANEL,
    ),
]
Threshold = Annotated[
    float,
    typer.Option(min=0, max=100, help="Stop by itself when more per cent fail again.", rich_help_panel=_PANEL),
]
Window = Annotated[int, typer.Option(min=1, max=10_000, help="... of so many, the last.", rich_help_panel=_PANEL)]
Module = Annotated[
    list[str] | None,
    typer.Option(metavar="MODULE", help="Import these actors, beside the Procfile's.", rich_help_panel=_PANEL),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach/--foreground",
        help="Only make it: a worker that consumes housekeeping runs it.",
        rich_help_panel=_PANEL,
    ),
]
Reason = Annotated[str | None, typer.Option(help="Why; kept with the replay.", rich_help_panel=_PANEL)]
Ident = Annotated[str, typer.Argument(metavar="ID", help="A replay's id, or what it begins with.")]

RAMP_DEFAULT: Final = ",".join(map(str, RAMP))
THRESHOLD_DEFAULT: Final = _DEFAULT.threshold * 100
WINDOW_DEFAULT: Final = _DEFAULT.window


def to_settings(
    *, rate: float | None, ramp: str, threshold: float, window: int, actor: str | None = None
) -> ReplaySettings:
    """Return how a replay is to go.

    Raises:
      ValueError: Naming what cannot be so, and its value.
    """
    steps = [step.strip() for step in ramp.split(",")]
    if not all(step.isascii() and step.isdigit() and len(step) < 8 for step in steps):
        raise ValueError(f"--ramp must be whole numbers with commas between, as 1,5,20, not {ramp!r}")
    return ReplaySettings(
        ramp=tuple(map(int, steps)), rate=rate, threshold=threshold / 100, window=window, actor=actor or None
    )


def the_replay(session: Session, given: str) -> runs.Replay:
    """Return the replay that a person means; ends the command with status 3 where there is none."""
    try:
        replay = runs.get(session, find_replay(session, given))
    except NoSuchReplay as e:
        fail(str(e), NOTHING)
    assert replay is not None  # noqa: S101 - found a moment ago, in this transaction
    return replay
