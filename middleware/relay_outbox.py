"""Keeps the outbox empty in every worker process: what senders that died, or could not reach Redis, left there."""

from __future__ import annotations

import threading
import time
from typing import Final
from uuid import uuid4

from dramatiq import Broker, Worker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from loguru import logger

from db import glance
from db.loaded import is_loaded
from middleware.lossless_broker import LosslessBroker

#: Seconds between two looks whether there is anything in it, the first one after the start included, whose jobs are not
#: to wait for it; and for which the thread that looks gets to end. A little less than half of what is between two signs
#: of life, so that every other look asks with one.
LOOK_EVERY: Final = 0.95
END_WITHIN: Final = 2.0
#: Seconds between two warnings that it is not looked into.
SAY_EVERY: Final = 60.0
_ANYTHING: Final = "SELECT FROM worker_outbox"


class RelayOutbox(Middleware):
    """Looks every second, in one of all worker processes; see :mod:`middleware.relay`.

    The relay imports SQLAlchemy. Where the process has not done that for its jobs, and the outbox is empty, the relay
    is left for later.
    """

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
        name, said = str(uuid4()), float("-inf")
        while not self._stop.wait(LOOK_EVERY):
            try:
                if _is_needed(broker, name) and broker.outbox is not None:
                    broker.outbox.relay.look_after_others(broker.ask_turn)
                    return
            except Exception as e:  # noqa: BLE001 - what cannot be imported now may be later, or elsewhere
                now = time.monotonic()
                if now - said >= SAY_EVERY:
                    said = now
                    logger.warning("the outbox is not looked into: {}: {}", type(e).__name__, e)


def _is_needed(broker: LosslessBroker, name: str) -> bool:
    """Tell whether the relay may have anything to do, as far as it is this process' turn to look."""
    if is_loaded():
        return True
    try:
        _, turn = broker.ask_turn(name, int(LOOK_EVERY * 900))
    except ConnectionClosed:
        # It has words for that.
        return True
    return turn == 1 and glance.may_be_there(_ANYTHING)
