"""An actor's queue and stable name follow from the module it is written in.

``recompute_window`` in ``worker.attribution`` consumes from ``attribution`` under the name
``worker.attribution.recompute_window``, in every process and thread that imports it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import dramatiq
from dramatiq.actor import ActorDecorator

from middleware.messages import QuickActor
from worker.broker import queues
from worker.queues import Queue, check_queue_name

if TYPE_CHECKING:
    from worker.scheduler.schedule import Schedule

P = ParamSpec("P")
R = TypeVar("R")

_routes: dict[str, str] = {f"worker.{queue.value}": queue.value for queue in Queue}
_lock = threading.RLock()


class RoutingError(ValueError):
    """Raised at import when an actor has no queue, an unknown one, or a name that is taken."""


def register(module: str, queue: str) -> None:
    """Route the actors of ``module``, and of the modules below it, to ``queue``, and declare that queue.

    Call it before the module's actors are declared: at its top, or in the package that imports it.

    Arguments:
      module: A dotted name, such as ``myapp.emails``.
      queue: One of :class:`worker.queues.Queue`, or a name of your own.

    Raises:
      RoutingError: When ``queue`` is no queue name, or ``module`` already goes to another queue.
    """
    try:
        check_queue_name(queue)
    except ValueError as e:
        raise RoutingError(f"cannot route {module!r}: {e}") from None
    with _lock:
        taken = _routes.get(module)
        if taken is not None and taken != queue:
            raise RoutingError(f"cannot route {module!r} to {str(queue)!r}: it goes to {taken!r} already")
        _routes[module] = str(queue)
        queues.add(str(queue))
    dramatiq.get_broker().declare_queue(str(queue))


def queue_of(module: str) -> str | None:
    """Return the queue of ``module``: its own route, else that of the nearest package above it, else ``None``."""
    name = module
    while name:
        queue = _routes.get(name)
        if queue is not None:
            return queue
        name = name.rpartition(".")[0]
    return None


def queues_of(modules: Iterable[str]) -> set[str] | None:
    """Return the queues that ``dramatiq MODULE ...`` consumes; ``None``, meaning all, where a module has no route."""
    found: set[str] = set()
    for module in modules:
        queue = queue_of(module)
        if queue is None:
            return None
        found.add(queue)
    return found


def _module_of(fn: Callable[..., Any]) -> str:
    module = fn.__module__
    if module == "__main__":
        # `python -m myapp.emails`: the name the workers know it by stands in the spec.
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is not None:
            return str(spec.name).removesuffix(".__main__")
    return module


def _declare(
    fn: Callable[..., Any], queue_name: str | None, actor_name: str | None, options: dict[str, Any]
) -> dramatiq.Actor[..., Any]:
    module = _module_of(fn)
    queue = queue_name or queue_of(module)
    name = actor_name or f"{module}.{fn.__name__}"
    if queue is None:
        raise RoutingError(
            f"actor {name!r}: module {module!r} has no queue; say worker.routing.register({module!r}, queue) "
            "before its actors, or @actor(queue_name=...)"
        )
    # Ours, or the one that worker.testing puts in its place for a test.
    broker = dramatiq.get_broker()
    with _lock:
        if name in broker.actors:
            raise RoutingError(
                f"actor {name!r} is declared already, in {broker.actors[name].fn.__module__}: names must be unique"
            )
        options.setdefault("actor_class", QuickActor)
        declare = dramatiq.actor(queue_name=str(queue), actor_name=name, broker=broker, **options)
        return declare(fn)


@overload
def actor(fn: Callable[P, Awaitable[R]], /) -> dramatiq.Actor[P, R]: ...


@overload
def actor(fn: Callable[P, R], /) -> dramatiq.Actor[P, R]: ...


@overload
def actor(
    *,
    queue_name: str | None = None,
    actor_name: str | None = None,
    priority: int = 0,
    schedule: Schedule | str | None = None,
    **options: Any,
) -> ActorDecorator: ...


def actor(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    queue_name: str | None = None,
    actor_name: str | None = None,
    **options: Any,
) -> Any:
    """Declare an actor, as :func:`dramatiq.actor` does, on the queue and under the name that its module gives it.

    Arguments:
      queue_name, actor_name: Only to depart from those.
      **options: Dramatiq's options for actors; ``tenant_scoped=False`` for work that belongs to no tenant;
        ``schedule``, a cron expression or :class:`~worker.scheduler.Schedule`, for what ``worker scheduler`` sends.

    Raises:
      RoutingError: When the module has no route, or the name is taken.
      ScheduleError: When it cannot be scheduled so.
      UndeclaredQueue: When the queue is unknown.
      ValueError: When an option is unknown.
    """
    if fn is not None:
        return _declare(fn, queue_name, actor_name, options)
    return lambda fn: _declare(fn, queue_name, actor_name, options)
