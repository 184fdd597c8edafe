"""The file in which jobs say what they do: one that no fault touches."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Line:
    """What a job, or a process, said: ``began``, ``ended``, ``raised``, ``sending``, ``sent`` or ``booted``."""

    what: str
    at: float
    pid: int
    said: dict[str, Any]


class Book:
    """Lines that any process appends, each in one write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._pid: int | None = None

    def write(self, what: str, **said: Any) -> None:
        """Append a line. It is there once this returns, whatever becomes of the process."""
        if self._pid != os.getpid():
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._pid = os.getpid()
        assert self._file is not None
        line = json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), "said": said})
        os.write(self._file, line.encode() + b"\n")

    def read(self) -> list[Line]:
        """Return all lines, in the order in which they were written."""
        if not self._path.exists():
            return []
        return [Line(**json.loads(line)) for line in self._path.read_text().splitlines()]
