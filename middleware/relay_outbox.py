"""Keeps the outbox empty in every worker process: what senders that died, or could not reach Redis, left there."""

from __future__ import annotations

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware

from middleware.lossless_broker import LosslessBroker


class RelayOutbox(Middleware):
    """Looks every second, in one of all worker processes; see :mod:`middleware.relay`."""

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LosslessBroker) and broker.outbox is not None:
            broker.outbox.relay.look_after_others()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LosslessBroker) and broker.outbox is not None:
            broker.outbox.relay.stop()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LosslessBroker) and broker.outbox is not None:
            broker.outbox.relay.close()
