"""Cancels statements that are still running when their job's time is over.

``statement_timeout`` counts for each statement anew, so a job of many short-enough statements would run past its limit;
and Dramatiq's ``TimeLimit`` cannot interrupt a thread that waits inside libpq.
"""

from __future__ import annotations

import threading
import time
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from loguru import logger

#: Seconds between two attempts on the same connection, for code that goes on after the first.
REPEAT_AFTER = 1.0


class _Watched:
    """A connection in a transaction. The lock keeps it from leaving the transaction while it is being cancelled:
    the next one to use it must not be hit."""

    __slots__ = ("active", "due", "lock")

    def __init__(self, due: float) -> None:
        self.due = due
        self.lock = threading.Lock()
        self.active = True


class StatementWatchdog:
    """Watches psycopg connections against deadlines, with one daemon thread that starts at the first of them."""

    def __init__(self) -> None:
        self._watched: WeakKeyDictionary[Any, _Watched] = WeakKeyDictionary()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], due: float) -> None:
        """Cancel what runs on ``connection`` at ``due`` (on :func:`time.monotonic`'s clock), unless unwatched first."""
        with self._changed:
            self._watched[connection] = _Watched(due)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="statement-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def unwatch(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        """Leave ``connection`` alone from here on; waits for a cancellation that is under way."""
        with self._changed:
            watched = self._watched.pop(connection, None)
        if watched is not None:
            with watched.lock:
                watched.active = False

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                overdue = [(c, w) for c, w in self._watched.items() if w.due <= now]
                if not overdue:
                    next_due = min((w.due for w in self._watched.values()), default=None)
                    self._changed.wait(None if next_due is None else next_due - now)
                    continue
            for connection, watched in overdue:
                self._cancel(connection, watched)

    def _cancel(self, connection: Any, watched: _Watched) -> None:
        with watched.lock:
            if not watched.active:
                return
            watched.due = time.monotonic() + REPEAT_AFTER
            try:
                connection.cancel()
            except psycopg.Error as e:
                logger.warning("could not cancel a statement past its job's time limit: {}", e)
