"""All that is known of one failed job, gathered for its page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from db.failed import Event, FailedJob, FailedJobSummary, Group, chain, get, get_group, history
from db.replays import items
from db.replays.items import Part, Waiting
from worker.failed import tracebacks
from worker.failed.asked import NoSuchJob
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
    #: What became of it in replays, the last first; and the one that is yet to send it.
    replays: list[Part]
    waiting: Waiting | None

    @property
    def folds(self) -> bool:
        """Whether frames are left out, unless all are asked for."""
        return any(not frame.own for raised in self.raised for frame in raised.frames) or any(
            len(raised.own) > FRAMES for raised in self.raised
        )

    @property
    def held_by(self) -> Part | None:
        """The replay in which it has not ended; None where whoever works on it is none."""
        last = self.replays[0] if self.replays else None
        return last if last is not None and last.has_it and self.job.status == "in_progress" else None

    @property
    def moves(self) -> bool:
        """Whether something will become of it without anybody doing anything."""
        return self.job.status == "in_progress" or self.waiting is not None


@dataclass(frozen=True, slots=True)
class Gone:
    """What is known of a job that was removed: its history outlives it."""

    id: UUID
    history: list[Event]


def look(session: Session, job: FailedJob, *, events: int = 1_000) -> Incident:
    """Gather what there is to know of a job.

    Arguments:
      session: The one that found it.
      events: Of its history, the newest.
    """
    return _gather(session, job, items.waiting_for(session, job.id), events)


def _gather(session: Session, job: FailedJob, waiting: Waiting | None, events: int) -> Incident:
    chained = chain(session, job.correlation_id, limit=CHAIN) if job.correlation_id else []
    group = get_group(session, job.fingerprint) if job.fingerprint else None
    return Incident(
        job=job,
        group=group,
        history=history(session, job.id, limit=events),
        chain=chained,
        names=tenant_names(session, [job.tenant_id, *(other.tenant_id for other in chained)]),
        raised=tracebacks.parse(job.traceback, job.task_name, group.place if group else None) if job.traceback else [],
        replays=items.of_job(session, job.id),
        waiting=waiting,
    )


def look_at(session: Session, job_id: UUID, *, events: int = 1_000) -> Incident | Gone:
    """Gather what there is to know of the job with an id, or what there was. Otherwise as :func:`look`.

    Raises:
      NoSuchJob: When the session sees nothing of it.
    """
    # Before the job: of a replay that takes it in between, one would else see neither that it waits nor that it runs.
    waiting = items.waiting_for(session, job_id)
    job = get(session, job_id)
    if job is not None:
        return _gather(session, job, waiting, events)
    known = history(session, job_id, limit=events)
    if not known:
        raise NoSuchJob(f"there is no failed job {job_id}")
    return Gone(job_id, known)
