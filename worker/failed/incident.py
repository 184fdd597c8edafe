"""All that is known of one failed job, gathered for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from db.failed import Event, FailedJob, FailedJobSummary, Group, chain, get_group, history
from worker.failed import tracebacks
from worker.tenants import tenant_names

#: Jobs of one piece of work that are shown, and frames of the application's own of one exception.
CHAIN: Final = 20
FRAMES: Final = 8


@dataclass(frozen=True, slots=True)
class Incident:
    """All that is known of a failed job."""

    job: FailedJob
    #: Where it has one.
    group: Group | None
    history: list[Event]
    #: The failed jobs of the same piece of work, this one among them.
    chain: list[FailedJobSummary]
    names: Mapping[UUID, str]
    raised: list[tracebacks.Raised]

    @property
    def folds(self) -> bool:
        """Whether frames are left out, unless all are asked for."""
        return any(not frame.own for raised in self.raised for frame in raised.frames) or any(
            len(raised.own) > FRAMES for raised in self.raised
        )


def look(session: Session, job: FailedJob) -> Incident:
    """Gather what there is to know of a job.

    Arguments:
      session: The one that found it.
    """
    chained = chain(session, job.correlation_id, limit=CHAIN) if job.correlation_id else []
    group = get_group(session, job.fingerprint) if job.fingerprint else None
    return Incident(
        job=job,
        group=group,
        history=history(session, job.id),
        chain=chained,
        names=tenant_names(session, [job.tenant_id, *(other.tenant_id for other in chained)]),
        raised=tracebacks.parse(job.traceback, job.task_name, group.place if group else None) if job.traceback else [],
    )
