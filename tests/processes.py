"""The processes of a ``dramatiq`` command, found in Linux' table of processes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Return the processes whose parent is ``pid``; none if it is gone."""
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def workers_of(main: int) -> list[int]:
    """Return the worker processes under Dramatiq's main process: those below the keepers, or those that have none."""
    return [worker for child in children_of(main) for worker in children_of(child) or [child]]
