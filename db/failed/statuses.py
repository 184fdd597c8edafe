"""What a failed job's status may be, and what it may become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from db.errors import DramaturgError

Status = Literal["pending", "in_progress", "resolved", "abandoned"]

STATUSES: Final[tuple[Status, ...]] = get_args(Status)

#: From each status, where a person may take it.
MOVES: Final[dict[Status, tuple[Status, ...]]] = {
    "pending": ("in_progress", "resolved", "abandoned"),
    "in_progress": ("pending", "resolved", "abandoned"),
    "abandoned": ("pending", "in_progress"),
    "resolved": (),
}


class IllegalMove(DramaturgError, ValueError):
    """Raised when a job cannot take a status from the one that it has; the message says which it can."""


def sources(to: Status) -> tuple[Status, ...]:
    """Return the statuses from which a job may take ``to``."""
    return tuple(status for status, targets in MOVES.items() if to in targets)


def why_not(status: Status, to: Status) -> str:
    """Say why a job that is ``status`` cannot become ``to``, and what it can."""
    if status == to:
        return f"is {status} already"
    allowed: Iterable[str] = MOVES[status]
    return f"is {status}, " + (f"and can become {', '.join(allowed)} only" if allowed else "which is final")
