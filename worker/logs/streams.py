"""What is printed in a worker process, and what Python itself says there: whole lines like all others.

Dramatiq hands each ``write`` on by itself, so that the parts of what several processes print come mixed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

#: Characters after which a line without an end is one nevertheless.
LINE_LIMIT: Final = 20_000


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.rest = ""


class LoggedStream:
    """A text stream whose lines are logged.

    Arguments:
      original: What it stands for.
      log: Takes a line.
    """

    def __init__(self, original: Any, log: Callable[[str], object]) -> None:
        self.original = original
        self._log = log
        self._local = _OfThread()
        self.encoding = "utf-8"
        self.errors = "backslashreplace"

    def write(self, text: str) -> int:
        """Log what has a line's end, and keep the rest until it has one."""
        *lines, rest = (self._local.rest + text).split("\n")
        self._local.rest = rest
        for line in lines:
            self._say(line)
        if len(rest) > LINE_LIMIT:
            self.flush()
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Log what this thread has written, whether or not it has a line's end."""
        rest, self._local.rest = self._local.rest, ""
        self._say(rest)

    def _say(self, line: str) -> None:
        if line.strip():
            self._log(line)

    def writable(self) -> bool:
        """Tell that this can be written to."""
        return True

    def readable(self) -> bool:
        """Tell that this cannot be read."""
        return False

    def isatty(self) -> bool:
        """Tell that nobody looks at this as it is written."""
        return False

    def fileno(self) -> int:
        """Return the file of the original."""
        return int(self.original.fileno())

    def close(self) -> None:
        """Log what is left, and close the original."""
        self.flush()
        self.original.close()

    @property
    def closed(self) -> bool:
        """Whether the original is closed."""
        return bool(self.original.closed)
