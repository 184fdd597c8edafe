"""Waiting for what other processes do, which can only be asked for again and again."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(condition: Callable[[], object], *, seconds: float = 15) -> None:
    """Return once ``condition`` holds.

    Raises:
      AssertionError: When it does not within ``seconds``.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} seconds"
        time.sleep(0.02)
