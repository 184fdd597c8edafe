"""Lets actors say ``schedule=``, and refuses at import what cannot be."""

from __future__ import annotations

from typing import Any

from dramatiq import Broker
from dramatiq.middleware import Middleware

#: What actors have their :class:`~worker.scheduler.Schedule` under.
OPTION = "schedule"


class Schedules(Middleware):
    """Checks the schedules of actors when these are declared.

    Raises (from the actor decorator):
      ScheduleError: Naming the actor, the expression and what is wrong.
    """

    @property
    def actor_options(self) -> set[str]:
        return {OPTION}

    def before_declare_actor(self, broker: Broker, actor: Any) -> None:
        given = actor.options.get(OPTION)
        if given is not None:
            # Time zones are for who has a schedule.
            from worker.scheduler.schedule import check

            actor.options[OPTION] = check(actor, given)
