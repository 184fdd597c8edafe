"""What a process holds of one queue."""

from __future__ import annotations

import threading
from collections.abc import Iterable

#: Messages that have run and take no room while they wait to end: enough to fill a transaction while another is under
#: way. Those beyond take the place of others of their queue, which wait in Redis, and harm none of another queue.
ROOM_ASIDE = 96


class Holdings:
    """A queue's messages that wait or run in this process, by Redis id and lease; safe to use from any thread.

    They outlive a consumer: Dramatiq starts a new one after an error, while jobs that the old one fetched run on.
    """

    def __init__(self) -> None:
        self._ids: set[tuple[str, int]] = set()
        # Among them, those that have run, and wait for Postgres to end.
        self._aside: set[tuple[str, int]] = set()
        self._changed = threading.Condition()
        # What the one consumer waits for: to wake it for less costs as much as a job does.
        self._wanted = 0
        #: How many have been held and are so no more.
        self.let_go = 0

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, held_as: object) -> bool:
        return held_as in self._ids

    @property
    def room_taken(self) -> int:
        """How many are held that are not aside, or are too many there."""
        aside = len(self._aside)
        return len(self._ids) - aside + max(0, aside - ROOM_ASIDE)

    def add(self, held_as: Iterable[tuple[str, int]]) -> None:
        """Note that they are held."""
        with self._changed:
            self._ids.update(held_as)

    def discard(self, held_as: Iterable[tuple[str, int]]) -> None:
        """Note that they are held no more."""
        with self._changed:
            before = len(self._ids)
            self._ids.difference_update(held_as)
            self._aside &= self._ids
            self.let_go += before - len(self._ids)
            self._tell()

    def set_aside(self, held_as: tuple[str, int]) -> None:
        """Note that it has run, though it is held yet, if it is."""
        with self._changed:
            if held_as in self._ids:
                self._aside.add(held_as)
                self._tell()

    def clear(self) -> None:
        """Note that nothing is held."""
        with self._changed:
            self._ids.clear()
            self._aside.clear()
            self._tell()

    def _tell(self) -> None:
        if self.room_taken < self._wanted:
            self._changed.notify_all()

    def is_wanted(self, but: int) -> bool:
        """Tell whether the consumer waits for no more than that ``but`` so many of these are let go of."""
        return self.room_taken - but < self._wanted

    def has_room(self, count: int, but: int) -> bool:
        """Tell whether fewer than ``count`` take room once ``but`` so many of these are let go of, and not before."""
        return self.room_taken - but < count <= self.room_taken

    def ids(self) -> set[str]:
        """Return the Redis ids of what is held."""
        with self._changed:
            return {redis_id for redis_id, _ in self._ids}

    def wait_below(self, count: int, seconds: float) -> bool:
        """Wait until fewer than ``count`` take room, and tell whether that came to be."""
        with self._changed:
            if self.room_taken < count:
                return True
            self._wanted = max(self._wanted, count)
            try:
                return self._changed.wait_for(lambda: self.room_taken < count, seconds)
            finally:
                self._wanted = 0
