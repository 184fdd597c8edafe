"""What is sent by the clock: cron expressions beside the actors, and the process that keeps them, ``worker scheduler``.

An actor says ``@actor(schedule="0 3 * * *")``, or with more to say ``@actor(schedule=Schedule(...))``. Any number of
schedulers may run: each tick is sent once, because Redis takes "this tick is done" and its message in one step.
"""

from worker.scheduler.cron import InvalidExpression
from worker.scheduler.schedule import Schedule, ScheduleError
from worker.scheduler.tick import scheduled_for

__all__ = ["InvalidExpression", "Schedule", "ScheduleError", "scheduled_for"]
