"""What an actor says of when it is to run, and whether that can be."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args
from uuid import UUID

import dramatiq
from dramatiq.middleware import MiddlewareError

from db.errors import DramaturgError, InvalidTenant
from db.tenancy import parse_uuid
from worker.scheduler.cron import Cron, InvalidExpression

#: What becomes of ticks that no scheduler was there for.
Missed = Literal["once", "skip"]
MISSED: Final = get_args(Missed)


class ScheduleError(MiddlewareError, DramaturgError, ValueError):
    """Raised at import when an actor cannot be scheduled so; names the actor, the expression and what is wrong."""


@dataclass(frozen=True)
class Schedule:
    """When an actor is to run, for whom and with what.

    Arguments:
      expression: As cron's: ``minute hour day month weekday``, or six fields with seconds first, if hours are ``*``.
        One that names hours ticks once for each local time that it names, also where clocks are changed.
      timezone: By which it is read; an IANA name.
      args, kwargs: What the actor is called with, as JSON has it.
      tenant_id: For whom; only an actor with ``tenant_scoped=False`` can do without.
      missed: What becomes of ticks that no scheduler was there for: ``once`` sends the last of them as soon as one is,
        ``skip`` none.
    """

    expression: str
    timezone: str = "UTC"
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    tenant_id: UUID | str | None = None
    missed: Missed = "once"

    def cron(self) -> Cron:
        """Return when it ticks.

        Raises:
          InvalidExpression: When it cannot.
        """
        return Cron(self.expression, self.timezone)


def check(actor: dramatiq.Actor[..., Any], given: object) -> Schedule:
    """Return the schedule that an actor was declared with.

    Raises:
      ScheduleError: When it cannot be scheduled so.
    """
    schedule = Schedule(given) if isinstance(given, str) else given
    if not isinstance(schedule, Schedule):
        raise ScheduleError(
            f"actor {actor.actor_name!r}: schedule must be a cron expression or Schedule, not {given!r}"
        )
    problem = _problem(actor, schedule)
    if problem is not None:
        raise ScheduleError(f"actor {actor.actor_name!r} cannot be scheduled at {schedule.expression!r}: {problem}")
    return schedule


def _problem(actor: dramatiq.Actor[..., Any], schedule: Schedule) -> str | None:
    try:
        schedule.cron()
        if schedule.tenant_id is not None:
            parse_uuid("tenant_id", schedule.tenant_id)
        inspect.signature(actor.fn).bind(*schedule.args, **schedule.kwargs)
        json.dumps([list(schedule.args), dict(schedule.kwargs)], allow_nan=False)
    except InvalidExpression as e:
        return str(e)
    except InvalidTenant as e:
        return str(e)
    except (TypeError, ValueError) as e:
        return f"args and kwargs: {e}"
    if schedule.missed not in MISSED:
        return f"missed must be {' or '.join(map(repr, MISSED))}, not {schedule.missed!r}"
    if schedule.tenant_id is None and actor.options.get("tenant_scoped", True):
        return (
            "it is tenant-scoped, and no tenant is given. Say Schedule(..., tenant_id=...); or schedule an actor with "
            "tenant_scoped=False that sends to this one for each tenant"
        )
    return None
