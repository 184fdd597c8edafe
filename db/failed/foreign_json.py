"""Reads JSON that tenants may write: Postgres takes more than Python reads, and one row must not hide others."""

from __future__ import annotations

import json
from typing import Any, Final

#: Stands for what cannot be read.
UNREADABLE: Final = "(cannot be read: nested too deep, or a number is too long)"
#: Levels at most: more, and what goes through it by recursion would fail.
_LEVELS: Final = 100


def read(value: str | None) -> Any:
    """Return what JSON says that was selected as text; :data:`UNREADABLE` where that cannot be told."""
    if value is None:
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return UNREADABLE
    level = [found]
    for _ in range(_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return found
    return UNREADABLE


def read_object(value: str | None) -> dict[str, Any] | None:
    """Return an object; None where it is anything else."""
    found = read(value)
    return found if isinstance(found, dict) else None
