"""Writes failures from a thread of its own: several at a time, and without holding up those who hand them in."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from db.deadline import set_deadline
from db.errors import DramaturgError
from db.failures import Ending

#: Seconds that whoever hands in a failure waits for it to be written.
WAIT = 1.0
#: Seconds that one transaction may take before it is cancelled.
WRITE_WITHIN = 5.0
#: Seconds after which Postgres is tried again.
AGAIN_AFTER = 2.0
#: Failures written in one transaction at most.
AT_ONCE = 100

#: Classes of SQLSTATE that are about one failure: it is in another's way, or too much.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_OF_ONE = ("40", "54")


def is_away(error: BaseException) -> bool:
    """Tell whether ``error`` says that Postgres takes no failure: it is away, read-only, or the table is gone."""
    try:
        # Imported by whatever raised it, as a rule; a worker process that records nothing need not.
        from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, ProgrammingError
        from sqlalchemy.exc import TimeoutError as PoolTimeout
    except ImportError:
        # As good as away: nothing can be written.
        return True
    away = (OperationalError, InterfaceError, InternalError, ProgrammingError, PoolTimeout, TimeoutError)
    state = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return isinstance(error, away) and not state.startswith(_OF_ONE)


class PostgresAway(DramaturgError):
    """Raised when a failure was not written in time; it may be written yet, which does no harm."""


class FailureWriter:
    """Groups what several threads hand in at the same time into one transaction, so one sync to disk.

    While Postgres is away nobody waits for it, but for one every :data:`AGAIN_AFTER` seconds who finds out. Safe to use
    from any thread, and after a fork.

    Arguments:
      record_all: Writes failures, all or none; doing it twice must be harmless.
      wait: Seconds, see :data:`WAIT`.
      prepare: Called before the first failure of a process is written, and before the time runs that it may take.
    """

    def __init__(
        self,
        record_all: Callable[[Sequence[Ending]], object],
        *,
        wait: float = WAIT,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        self._record_all = record_all
        self._prepare = prepare
        self._wait = wait
        self._lock = threading.Lock()
        self._handed_in: queue.SimpleQueue[tuple[Ending, Future[None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._away: tuple[float, BaseException] | None = None

    def record(self, failure: Ending) -> None:
        """Write ``failure``, with others that are handed in at this moment.

        Raises:
          PostgresAway: When it was not written within :data:`WAIT` seconds, or the one before it was not.
          Exception: Whatever kept this failure from being written.
        """
        away = self._away
        if away is not None:
            until, why = away
            if time.monotonic() < until:
                raise PostgresAway(f"{type(why).__name__}: {why}") from why
            # This one finds out; the others need not.
            self._away = (time.monotonic() + AGAIN_AFTER, why)
        written: Future[None] = Future()
        self._start()
        self._handed_in.put((failure, written))
        try:
            written.result(self._wait)
        except TimeoutError as e:
            # If it has not begun it need not: somebody else takes care of the failure now.
            written.cancel()
            late = PostgresAway(f"not written within {self._wait} seconds")
            self._is_away(late)
            raise late from e
        except Exception as e:
            if is_away(e):
                raise PostgresAway(f"{type(e).__name__}: {e}") from e
            raise
        self._away = None

    def _is_away(self, why: BaseException) -> None:
        self._away = (time.monotonic() + AGAIN_AFTER, why)

    def _start(self) -> None:
        if self._process == os.getpid():
            return
        with self._lock:
            if self._process != os.getpid():
                try:
                    self._prepare()
                except Exception as e:
                    raise PostgresAway(f"{type(e).__name__}: {e}") from e
                self._handed_in = queue.SimpleQueue()
                self._thread = threading.Thread(target=self._write, name="failures", daemon=True)
                self._thread.start()
                self._process = os.getpid()

    def _write(self) -> None:
        handed_in = self._handed_in
        while True:
            batch = [handed_in.get()]
            with suppress(queue.Empty):
                while len(batch) < AT_ONCE:
                    batch.append(handed_in.get_nowait())
            self._write_batch(
                [(failure, written) for failure, written in batch if written.set_running_or_notify_cancel()]
            )

    def _write_batch(self, batch: list[tuple[Ending, Future[None]]]) -> None:
        if not batch:
            return
        set_deadline(WRITE_WITHIN)
        try:
            self._record_all([failure for failure, _ in batch])
        except BaseException as e:  # noqa: BLE001 - whoever waits must be told, and this thread must live
            if is_away(e):
                self._is_away(e)
            elif len(batch) > 1:
                # One of them, for which the others should not suffer.
                for one in batch:
                    self._write_batch([one])
                return
            for _, written in batch:
                written.set_exception(e)
        else:
            for _, written in batch:
                written.set_result(None)
        finally:
            set_deadline(None)
