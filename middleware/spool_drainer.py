"""Records what waits in the spool, once Postgres is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from dramatiq import Broker, Worker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from loguru import logger

from db.deadline import set_deadline
from db.failure_writer import is_away
from db.failures import Ending, ending_from_json
from middleware.lossless_broker import LosslessBroker
from middleware.spool import Spool

#: Failures recorded in one transaction.
AT_ONCE = 250
#: Failures that cannot be recorded one by one either, at the beginning, after which the rest is not tried.
GIVE_UP_AFTER = 5
#: Seconds that such a transaction may take; less than a process has the spool to itself.
RECORD_WITHIN = 10.0
#: Seconds between two attempts, and between two alarms.
AGAIN_AFTER, ALARM_EVERY = 1.0, 60.0


class SpoolDrainer(Middleware):
    """Drains the spool of a :class:`LosslessBroker` in every worker process, one at a time.

    Recording twice is harmless, so a failure is removed only after it is recorded, by whomever.

    Arguments:
      record_all: Writes failures of any tenants, all or none; :func:`db.failed_jobs.end_all`.
    """

    def __init__(self, record_all: Callable[[Sequence[Ending]], object]) -> None:
        self._record_all = record_all
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._alarmed = float("-inf")
        self._said: dict[bytes, float] = {}

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LosslessBroker):
            self._stop.clear()
            self._thread = threading.Thread(target=self._keep, args=(broker.spool,), name="spool", daemon=True)
            self._thread.start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._stop.set()
        if isinstance(broker, LosslessBroker):
            broker.spool.wake()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(RECORD_WITHIN)

    def _keep(self, spool: Spool) -> None:
        while not self._stop.is_set():
            if not spool.in_use.wait(1) or self._stop.is_set():
                continue
            try:
                self.drain(spool)
            except ConnectionClosed as e:
                logger.warning("the spool cannot be looked into: {}", e)
            except Exception as e:  # noqa: BLE001 - Postgres is away yet, or this thread must live whatever it is
                self._alarm(spool, e)
            self._stop.wait(AGAIN_AFTER)

    def drain(self, spool: Spool) -> int:
        """Record everything that waits, and return how much that was.

        Raises:
          ConnectionClosed: For any error of Redis.
          Exception: Whatever keeps the rest from being recorded; it waits on.
        """
        recorded = 0
        try:
            while not self._stop.is_set():
                found = spool.take(AT_ONCE)
                failures = {name: f for name, data in found.items() if (f := self._read(name, data)) is not None}
                if not failures:
                    break
                done = self._record(failures)
                recorded += len(done)
                if not done or spool.remove(done) == 0:
                    break
        finally:
            set_deadline(None)
            if recorded:
                self._alarmed = float("-inf")
                logger.warning("{} failures of the spool are recorded; {} are left", recorded, spool.size)
            with suppress(ConnectionClosed):
                spool.leave()
        return recorded

    def _record(self, failures: dict[bytes, Ending]) -> list[bytes]:
        """Record what can be, and return its names."""
        set_deadline(RECORD_WITHIN)
        try:
            self._record_all(list(failures.values()))
        except Exception as e:
            if is_away(e):
                raise
            # One of them, for which the others should not wait.
            if len(failures) > 1:
                return self._record_singly(failures)
            (name,) = failures
            self._say(name, f"cannot be recorded, and stays there: {type(e).__name__}: {e}")
            return []
        return list(failures)

    def _record_singly(self, failures: dict[bytes, Ending]) -> list[bytes]:
        done: list[bytes] = []
        for n, (name, failure) in enumerate(failures.items(), 1):
            done += self._record({name: failure})
            if n == GIVE_UP_AFTER and not done:
                # It is not one of them; the whole table is locked, for example.
                break
        return done

    def _read(self, name: bytes, data: bytes) -> Ending | None:
        try:
            return ending_from_json(data)
        except Exception as e:  # noqa: BLE001 - of another version, or nobody's
            self._say(name, f"cannot be read, and stays there: {type(e).__name__}")
            return None

    def _say(self, name: bytes, what: str) -> None:
        now = time.monotonic()
        if now - self._said.get(name, float("-inf")) > ALARM_EVERY:
            self._said[name] = now
            logger.critical("the failure {} in the spool {}", name, what)

    def _alarm(self, spool: Spool, error: Exception) -> None:
        if time.monotonic() - self._alarmed < ALARM_EVERY:
            return
        self._alarmed = time.monotonic()
        logger.critical(
            "{} failures wait in the spool in Redis ({} may), because Postgres does not take them: {}: {}",
            spool.size,
            spool.limit,
            type(error).__name__,
            error,
        )
