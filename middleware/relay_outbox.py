"""Keeps the outbox empty in every worker process: what senders that died, or could not reach Redis, left there."""

from __future__ import annotations

import threading
from typing import Final

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.lossless_broker import LosslessBroker

#: Seconds after the start of a worker after which it looks for the first time: the relay imports SQLAlchemy, and the
#: first jobs should not wait for that. And that it may take to end.
BEGIN_AFTER: Final = 1.0
END_WITHIN: Final = 2.0


class RelayOutbox(Middleware):
    """Looks every second, in one of all worker processes; see :mod:`middleware.relay`."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LosslessBroker) and broker.outbox is not None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._begin, args=(broker,), name="relay", daemon=True)
            self._thread.start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._stop.set()
        if isinstance(broker, LosslessBroker) and broker.outbox is not None:
            broker.outbox.stop()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(END_WITHIN)
        if isinstance(broker, LosslessBroker) and broker.outbox is not None:
            broker.outbox.close()

    def _begin(self, broker: LosslessBroker) -> None:
        if not self._stop.wait(BEGIN_AFTER) and broker.outbox is not None:
            try:
                broker.outbox.relay.look_after_others()
            except Exception as e:  # noqa: BLE001 - whatever it cannot import: other processes look, too
                logger.error("this process does not look into the outbox: {}: {}", type(e).__name__, e)
