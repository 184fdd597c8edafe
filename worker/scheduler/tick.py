"""What a scheduled message carries: for when it is, and an id that follows from that."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

from dramatiq import Broker, Message
from dramatiq.middleware import CurrentMessage

if TYPE_CHECKING:
    # Which needs the settings, which need the expressions of this package.
    from worker.scheduler.jobs import Job

#: Among a message's options, the tick that it was sent for, as ISO 8601 has it.
OPTION: Final = "scheduled_for"
#: Makes message ids of ticks.
_NAMESPACE: Final = UUID("4f0c8a52-4c1c-5b0e-9a53-6f0d5bb0f6f1")


def message_of(broker: Broker, job: Job, tick: datetime | None) -> Message[Any]:
    """Return a job's message, not enqueued yet.

    Arguments:
      broker: Which knows the actor.
      job: Which.
      tick: For when. The message's id follows from it, so that what is sent again because Redis has forgotten it is
        the same message to :func:`db.once.once` and to its failure's row. None for one that somebody sends by hand.
    """
    schedule, options = job.schedule, dict[str, Any]()
    if schedule.tenant_id is not None:
        options["tenant_id"] = str(schedule.tenant_id)
    if tick is not None:
        options[OPTION] = tick.astimezone(UTC).isoformat()
    message = broker.get_actor(job.name).message_with_options(
        args=tuple(schedule.args), kwargs=dict(schedule.kwargs), **options
    )
    return message if tick is None else message.copy(message_id=str(uuid5(_NAMESPACE, f"{job.name} {options[OPTION]}")))


def scheduled_for() -> datetime | None:
    """Return the tick that the message which runs was sent for, in UTC: later than that, if no scheduler or worker was
    there. None where it was sent otherwise, or nothing runs."""
    message = CurrentMessage.get_current_message()
    said = None if message is None else message.options.get(OPTION)
    try:
        found = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None
    return None if found is None or found.tzinfo is None else found.astimezone(UTC)
