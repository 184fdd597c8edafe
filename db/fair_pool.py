"""A pool whose connections go to whoever has waited longest.

SQLAlchemy's gives what comes back to whoever asks next, and a busy thread that returns a connection asks again before
one that waits has woken: where a process has more threads than connections, some would wait until they fail.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.util.queue import Empty, Full, Queue


class _Waiter:
    __slots__ = ("given", "item")

    def __init__(self) -> None:
        self.given = threading.Event()
        self.item: ConnectionPoolEntry | None = None


class _FairQueue(Queue[ConnectionPoolEntry]):
    """Holds something only while nobody waits for it."""

    def __init__(self, maxsize: int = 0, use_lifo: bool = False) -> None:
        super().__init__(maxsize, use_lifo)
        self._waiting: deque[_Waiter] = deque()

    def put(self, item: ConnectionPoolEntry, _block: bool = True, _timeout: float | None = None) -> None:
        with self.mutex:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.item = item
                waiter.given.set()
            elif self._full():
                raise Full
            else:
                self._put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> ConnectionPoolEntry:
        waiter = None
        try:
            with self.mutex:
                if not self._empty():
                    return self._get()
                if not block:
                    raise Empty
                waiter = _Waiter()
                self._waiting.append(waiter)
            waiter.given.wait(timeout)
            item = self._leave(waiter)
        except BaseException:
            # A time limit, or a shutdown; it may have come before the waiter was in the row.
            if waiter is not None and self._leave(waiter) is not None:
                self.put(waiter.item)  # type: ignore[arg-type]
            raise
        if item is None:
            raise Empty
        return item

    def _leave(self, waiter: _Waiter) -> ConnectionPoolEntry | None:
        """Wait no more, and return what was given meanwhile."""
        with self.mutex:
            if waiter.item is None and waiter in self._waiting:
                self._waiting.remove(waiter)
            return waiter.item


class FairPool(QueuePool):
    """SQLAlchemy's ``QueuePool``, first come, first served."""

    _queue_class: Any = _FairQueue
