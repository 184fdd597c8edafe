"""Waiting for what other processes do, and meeting their deadlines, whatever else the machine does meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], *, seconds: float = 15) -> None:
    """Return once ``condition`` holds.

    Raises:
      AssertionError: When it does not within ``seconds``.
    """
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < seconds, f"not within {seconds} seconds"
        # The longer it lasts the less often: to look costs those who are waited for.
        time.sleep(min(max(0.01, waited / 10), 0.1))


class Edge:
    """Seeks statements that take just as long as they may, so that some end by themselves and some are cancelled."""

    def __init__(self, limit: float = 0.02) -> None:
        #: Seconds that the next may take, and that it asks for.
        self.limit = limit
        self.duration = limit * 0.9

    def too_long(self) -> None:
        """The last was cancelled."""
        self.duration *= 0.93
        if self.duration < self.limit / 2:
            # The machine is slow: give the rest of the transaction more room.
            self.limit *= 1.5
            self.duration = self.limit * 0.9

    def too_short(self) -> None:
        """The last ended by itself."""
        self.duration *= 1.05
