"""What a process holds of one queue."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Holdings:
    """The Redis ids of a queue's messages that wait or run in this process; safe to use from any thread.

    They outlive a consumer: Dramatiq starts a new one after an error, while jobs that the old one fetched run on.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, redis_id: str) -> None:
        """Note that it is held."""
        with self._changed:
            self._ids.add(redis_id)

    def discard(self, redis_ids: Iterable[str]) -> None:
        """Note that they are held no more."""
        with self._changed:
            self._ids.difference_update(redis_ids)
            self._changed.notify_all()

    def clear(self) -> None:
        """Note that nothing is held."""
        with self._changed:
            self._ids.clear()
            self._changed.notify_all()

    def ids(self) -> set[str]:
        """Return what is held."""
        with self._changed:
            return set(self._ids)

    def wait_below(self, count: int, seconds: float) -> bool:
        """Wait until fewer than ``count`` are held, and tell whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ids) < count, seconds)
