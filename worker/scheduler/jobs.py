"""The scheduled jobs of an application: what its actors say, and what the settings make of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dramatiq import Broker

from db.errors import ConfigurationError
from worker.scheduler.cron import Cron
from worker.scheduler.declared import OPTION
from worker.scheduler.schedule import Schedule
from worker.settings import Settings

#: Instead of when it ticks, of a job that is off.
OFF = "off"


@dataclass(frozen=True)
class Job:
    """An actor that has a schedule; its name is the actor's.

    Arguments:
      name: The actor's.
      schedule: What it says itself.
      cron: When it ticks.
      on: Whether it is sent.
    """

    name: str
    schedule: Schedule
    cron: Cron
    on: bool = True

    @property
    def changed(self) -> bool:
        """Whether ``SCHEDULE`` says otherwise than the actor."""
        return self.cron != self.schedule.cron()

    @property
    def rule(self) -> str:
        """When it ticks, in words that are the same as long as that is: what Redis keeps its last tick under."""
        return f"{self.cron.expression} {self.cron.timezone}" if self.on else OFF


def scheduled(broker: Broker) -> dict[str, Schedule]:
    """Return the schedules of those actors that have one, by name."""
    found = ((name, actor.options.get(OPTION)) for name, actor in sorted(broker.actors.items()))
    return {name: schedule for name, schedule in found if isinstance(schedule, Schedule)}


def jobs_of(broker: Broker, settings: Settings) -> tuple[Job, ...]:
    """Return the scheduled jobs of a broker that knows every actor, by name.

    Raises:
      ConfigurationError: When ``SCHEDULE`` or ``SCHEDULE_OFF`` names an actor that has no schedule.
    """
    schedules = scheduled(broker)
    check_names(settings, schedules)
    return tuple(
        Job(
            name,
            schedule,
            Cron(settings.schedules.get(name, schedule.expression), schedule.timezone),
            on=name not in {*settings.schedule_off, *settings.idle},
        )
        for name, schedule in schedules.items()
    )


def check_names(settings: Settings, names: Collection[str]) -> None:
    """Check that the settings name scheduled actors alone.

    Raises:
      ConfigurationError: Naming the variable and the actor.
    """
    for variable, said in (("SCHEDULE", settings.schedules), ("SCHEDULE_OFF", settings.schedule_off)):
        for name in said:
            if name not in names:
                known = f"those that have: {', '.join(sorted(names))}" if names else "none has"
                raise ConfigurationError(f"{variable}: no actor {name!r} has a schedule; {known}")
