"""``dramatiq worker.attribution`` consumes ``attribution`` and nothing else, whatever that module imports."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dramatiq import Broker, Worker
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.dramatiq_internals import modules_on_command_line, queues_were_named, restrict_queues


class ConsumedQueues(Middleware):
    """Restricts a worker to the queues of the modules on its command line; ``--queues`` wins.

    Arguments:
      queues_of: Gives the queues of modules, or ``None`` for all declared ones.
    """

    def __init__(self, queues_of: Callable[[Iterable[str]], set[str] | None]) -> None:
        self._queues_of = queues_of

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        modules = modules_on_command_line()
        if modules is None or queues_were_named(worker):
            return
        queues = self._queues_of(modules)
        if queues is not None:
            restrict_queues(worker, queues)
            return
        logger.warning(
            "{}: not all of these modules have a route, so this worker consumes every declared queue ({}), also "
            "messages for actors that it has not imported, which end as unknown_actor; say --queues, or "
            "worker.routing.register",
            " ".join(modules),
            ", ".join(sorted(broker.get_declared_queues() - broker.get_declared_delay_queues())),
        )
