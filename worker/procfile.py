"""Reads Procfiles: which processes a host runs, and by which commands."""

from __future__ import annotations

import re
from pathlib import Path

_ENTRY = re.compile(r"([A-Za-z0-9_-]+):\s*(.+)")


def read_procfile(path: Path) -> dict[str, str]:
    """Return the Procfile's entries, name to command; other lines are comments, as hosts have it.

    Raises:
      OSError: When it cannot be read.
    """
    entries = (_ENTRY.fullmatch(line.strip()) for line in path.read_text("utf-8").splitlines())
    return {entry[1]: entry[2] for entry in entries if entry}
