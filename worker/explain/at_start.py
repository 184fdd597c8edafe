"""Says at the start of a worker that ``explain_window`` will fail there, and why."""

from __future__ import annotations

from importlib.util import find_spec

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.dramatiq_internals import modules_on_command_line
from worker.queues import Queue

ACTOR = f"worker.{Queue.LLM}.explain_window"


class MissingKey(Middleware):
    """Warns once in each process of the ``dramatiq`` command that consumes ``llm`` and has no key to ask with, or no
    client.

    Arguments:
      has_key: Whether ``LLM_API_KEY`` is set.
    """

    def __init__(self, *, has_key: bool) -> None:
        self._has_key = has_key

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if ACTOR not in broker.actors or modules_on_command_line() is None:
            return
        # None stands for every queue.
        if worker.consumer_whitelist is not None and Queue.LLM not in worker.consumer_whitelist:
            return
        if not self._has_key:
            logger.warning("LLM_API_KEY is not set: {} will fail with configuration_error", ACTOR)
        elif find_spec("openai") is None:
            logger.warning(
                "openai is not installed (pip install 'dramaturg[llm]'): {} will fail with configuration_error", ACTOR
            )
