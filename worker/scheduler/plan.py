"""What is to be done about a job at a moment; a calculation, in which no clock is asked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from worker.scheduler.jobs import Job

#: After which a tick was missed; a deploy that restarts the scheduler takes less.
MISSED_AFTER: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Due:
    """That a job's time has come.

    Arguments:
      tick: For when it is to be; what came between this and the tick before is not sent any more.
      late: How long ago that was.
      send: Whether to send it, or to let it be, because it was missed.
    """

    tick: datetime
    late: timedelta
    send: bool

    @property
    def missed(self) -> bool:
        """Whether no scheduler was there for it."""
        return self.late > MISSED_AFTER


def due(job: Job, handled: datetime, now: datetime) -> Due | None:
    """Return what is to be done; None where nothing is yet.

    Arguments:
      job: One that is on.
      handled: Its last tick that was sent or let be, or since when it is looked after.
      now: On the clock that ``handled`` is from. Where that was set back, ``handled`` is ahead of it, and nothing comes
        twice.
    """
    first = job.cron.after(handled)
    if first is None or first > now:
        return None
    tick = job.cron.latest(first, now)
    late = now - tick
    return Due(tick, late, send=late <= MISSED_AFTER or job.schedule.missed == "once")
