"""Cancels statements that are still running when their job's time is over, or when somebody says so.

``statement_timeout`` counts for each statement anew, so a job of many short-enough statements would run past its limit;
and Dramatiq's ``TimeLimit`` cannot interrupt a thread that waits inside libpq.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from loguru import logger
from psycopg.pq import TransactionStatus

#: Seconds between two attempts on the same connection, for code that goes on after the first.
REPEAT_AFTER = 1.0
#: Seconds that one attempt may take: it is a connection of its own, to a server that may not answer.
CANCEL_WITHIN = 2.0


class _Watched:
    """A connection in a transaction. The lock keeps it from leaving the transaction while it is being cancelled:
    the next one to use it must not be hit."""

    __slots__ = ("active", "due", "job", "lock", "loop")

    def __init__(self, due: float, job: object | None, loop: asyncio.AbstractEventLoop | None) -> None:
        self.due = due
        self.job = job
        self.lock = threading.Lock()
        self.loop = loop
        self.active = True


class StatementWatchdog:
    """Watches psycopg connections against deadlines, with one daemon thread that starts at the first of them."""

    def __init__(self) -> None:
        self._watched: WeakKeyDictionary[Any, _Watched] = WeakKeyDictionary()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        #: Until when the thread waits.
        self._waits_until = math.inf

    def watch(
        self,
        connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
        due: float | None,
        job: object | None = None,
    ) -> None:
        """Cancel what runs on ``connection`` at ``due`` (on :func:`time.monotonic`'s clock), unless unwatched first.

        An async connection is watched from the loop it belongs to. Without a due time only :meth:`running` finds it.
        """
        loop = asyncio.get_running_loop() if isinstance(connection, psycopg.AsyncConnection) else None
        until = math.inf if due is None else due
        with self._changed:
            self._watched[connection] = _Watched(until, job, loop)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="statement-watchdog", daemon=True)
                self._thread.start()
            if until < self._waits_until:
                # It wakes for what it knows in any case, and jobs have much the same limits.
                self._changed.notify()

    def unwatch(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        """Leave ``connection`` alone from here on; waits for a cancellation that is under way.

        Not on an event loop, which does not wait for anybody: there a cancellation begins only while the connection is
        watched, and what it may still hit is a statement that follows within the time that a packet takes.
        """
        with self._changed:
            watched = self._watched.pop(connection, None)
        if watched is None:
            return
        if watched.loop is not None:
            watched.active = False
            return
        with watched.lock:
            watched.active = False

    def running(self, job: object | None = None) -> Callable[[], None] | None:
        """Return what cancels the statements that run now, if any, and none of a later transaction.

        By default all of them, else those of ``job``. Each takes two seconds where Postgres does not answer.
        """
        with self._changed:
            found = [
                (connection, watched)
                for connection, watched in self._watched.items()
                if (job is None or watched.job is job)
                and connection.info.transaction_status == TransactionStatus.ACTIVE
            ]

        if not found:
            return None

        def cancel() -> None:
            for connection, watched in found:
                self._try_to_cancel(connection, watched)

        return cancel

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                overdue = [(c, w) for c, w in self._watched.items() if w.due <= now]
                if not overdue:
                    next_due = min((w.due for w in self._watched.values()), default=math.inf)
                    self._waits_until = next_due
                    self._changed.wait(None if next_due == math.inf else next_due - now)
                    continue
            for connection, watched in overdue:
                watched.due = time.monotonic() + REPEAT_AFTER
                self._try_to_cancel(connection, watched)

    def _try_to_cancel(self, connection: Any, watched: _Watched) -> None:
        try:
            self._cancel(connection, watched)
        except Exception as e:  # noqa: BLE001 - this thread serves all other jobs, too
            logger.warning("could not cancel a statement of a job whose time is over: {}", e)

    def _cancel(self, connection: Any, watched: _Watched) -> None:
        if watched.loop is not None:
            asyncio.run_coroutine_threadsafe(_cancel_on_loop(connection, watched), watched.loop)
            return
        with watched.lock:
            if watched.active:
                # Not cancel(), which holds the interpreter's lock for as long as the server does not answer.
                connection.cancel_safe(timeout=CANCEL_WITHIN)


async def _cancel_on_loop(connection: psycopg.AsyncConnection[Any], watched: _Watched) -> None:
    if not watched.active:
        return
    try:
        await connection.cancel_safe(timeout=CANCEL_WITHIN)
    except psycopg.Error as e:
        logger.warning("could not cancel a statement of a job whose time is over: {}", e)
