"""How a run by hand ends."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_cleanly_when_told() -> None:
    """See to it that this process, however it is ended, ends what it started."""
    for number in _SIGNALS:
        signal.signal(number, _stop)


def _stop(number: int, _frame: object) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def keep_logs(folder: Path, to: Path) -> None:
    """Keep the logs of the processes, and the book."""
    to.mkdir(parents=True, exist_ok=True)
    for path in [*folder.glob("*.log"), folder / "book"]:
        (to / path.name).write_bytes(path.read_bytes())
