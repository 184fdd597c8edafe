"""What is sent by the clock: cron expressions beside the actors, and the process that keeps them, ``worker scheduler``.

An actor says ``@actor(schedule="0 3 * * *")``, or with more to say ``@actor(schedule=Schedule(...))``. Any number of
schedulers may run: each tick is sent once, because Redis takes "this tick is done" and its message in one step.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.scheduler.cron import InvalidExpression
    from worker.scheduler.schedule import Schedule, ScheduleError
    from worker.scheduler.tick import scheduled_for

_MODULES = {
    "InvalidExpression": "worker.scheduler.cron",
    "Schedule": "worker.scheduler.schedule",
    "ScheduleError": "worker.scheduler.schedule",
    "scheduled_for": "worker.scheduler.tick",
}


def __getattr__(name: str) -> Any:
    # When it is asked for: a worker whose actors have no schedule needs none of them.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


__all__ = ["InvalidExpression", "Schedule", "ScheduleError", "scheduled_for"]
