"""Closes a worker's database connections when it stops, those of its event loop included."""

from __future__ import annotations

from dramatiq import Broker, Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import Middleware
from loguru import logger

from db import loaded


class CloseSessions(Middleware):
    """Behind ``AsyncIO`` in the list, so that its after hook runs while the event loop still does."""

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        loop = get_event_loop_thread()
        if loop is not None and loop.is_alive():
            try:
                loop.run_coroutine(loaded.dispose_async())
            except Exception as e:  # noqa: BLE001 - the process ends, and the server notices
                logger.warning("the event loop's database connections could not be closed: {}", type(e).__name__)
        loaded.dispose()
