"""``dramatiq worker.attribution`` consumes ``attribution`` and nothing else, whatever that module imports."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware

from middleware.dramatiq_internals import modules_on_command_line, restrict_queues


class ConsumedQueues(Middleware):
    """Restricts a worker to the queues of the modules on its command line; ``--queues`` wins.

    Arguments:
      queues_of: Gives the queues of modules, or ``None`` for all declared ones.
    """

    def __init__(self, queues_of: Callable[[Iterable[str]], set[str] | None]) -> None:
        self._queues_of = queues_of

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        modules = modules_on_command_line()
        queues = self._queues_of(modules) if modules else None
        if queues is not None:
            restrict_queues(worker, queues)
