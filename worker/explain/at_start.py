"""Says at the start of a worker that ``explain_window`` will fail there, and why."""

from __future__ import annotations

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.dramatiq_internals import modules_on_command_line
from worker.queues import Queue

ACTOR = f"worker.{Queue.LLM}.explain_window"


class MissingKey(Middleware):
    """Warns once in each process of the ``dramatiq`` command that consumes ``llm`` and has no key to ask with.

    Arguments:
      has_key: Whether ``LLM_API_KEY`` is set.
    """

    def __init__(self, *, has_key: bool) -> None:
        self._has_key = has_key

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if self._has_key or ACTOR not in broker.actors or modules_on_command_line() is None:
            return
        # None stands for every queue.
        if worker.consumer_whitelist is None or Queue.LLM in worker.consumer_whitelist:
            logger.warning("LLM_API_KEY is not set: {} will fail with configuration_error", ACTOR)
