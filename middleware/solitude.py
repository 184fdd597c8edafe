"""Lets one message run alone in its process, because it may be what killed another one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Solitude:
    """Shared by the consumers of a process: while one of them wants to be alone, or is, the others fetch nothing.

    Arguments:
      busy: Tells whether a message waits or runs in this process that was fetched before.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._changed = threading.Condition()
        self._fetching = 0
        self._who: object | None = None

    def is_wanted(self) -> bool:
        """Tell whether somebody is alone or wants to be."""
        return self._who is not None

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until nobody is alone or wants to be, and tell whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: self._who is None, seconds)

    @contextmanager
    def fetching(self) -> Iterator[bool]:
        """Give whether nobody is alone or wants to be; if so nobody is until the block ends."""
        with self._changed:
            may = self._who is None
            self._fetching += may
        try:
            yield may
        finally:
            if may:
                with self._changed:
                    self._fetching -= 1
                    self._changed.notify_all()

    def claim(self, who: object, seconds: float) -> bool:
        """Keep others from fetching from here on, for ``who``, once nobody else does; tell whether that came to be."""
        with self._changed:
            if self._changed.wait_for(lambda: self._who is None, seconds):
                self._who = who
            return self._who == who

    def hand_over(self, before: object, who: object) -> None:
        """Let ``who`` have what ``before`` claimed."""
        with self._changed:
            if self._who == before:
                self._who = who

    def wait(self, seconds: float) -> bool:
        """Wait until what was fetched before the claim has ended, and tell whether it has."""
        end = time.monotonic() + seconds
        while True:
            with self._changed:
                if not self._fetching and not self._busy():
                    return True
            if time.monotonic() > end:
                return False
            time.sleep(0.02)

    def release(self, who: object) -> bool:
        """Let others fetch again, if ``who`` kept them from it, and tell whether it did."""
        with self._changed:
            kept = self._who == who
            if kept:
                self._who = None
                self._changed.notify_all()
            return kept
