"""Which failed jobs a replay is for, of those that somebody asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from db.errors import DramaturgError
from db.failed import Filter, InvalidFilter, Status, find
from db.failed.statuses import why_not
from db.replays.items import Holder, holders
from db.replays.single import REPLAYABLE
from worker.failed.asked import Asked, statuses, to_filter
from worker.text import one_line, short

#: Ids looked up at a time.
_AT_ONCE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """Jobs that a replay is for, and those that were named and that it cannot be for, with the reason."""

    where: Filter
    refused: Mapping[UUID, str]


class NothingToReplay(DramaturgError, ValueError):
    """Raised when none of the jobs that were asked for can be sent again.

    Attributes:
      where: What was asked for.
      refused: Of those that were named, why each cannot.
    """

    def __init__(self, where: Filter, refused: Mapping[UUID, str]) -> None:
        super().__init__("nothing to retry")
        self.where = where
        self.refused = refused


def choose(session: Session, asked: Asked, now: datetime) -> Chosen:
    """Return which jobs a replay is for: pending ones, and abandoned ones where their status or ids say so.

    Not held fast; see :func:`worker.failed.holding.held_fast`.

    Raises:
      NoSuchJob: When an id, or a replay's, is nobody's.
      NothingToReplay: When none of them can be sent again.
      InvalidFilter: When nothing is asked for, or what cannot be.
      ValueError: When a name is nobody's, or more than one's.
    """
    where = to_filter(session, asked, now)
    if where.is_empty and not asked.status:
        raise InvalidFilter("say which jobs: ids, or what they have in common")
    if where.ids:
        return _by_id(session, where)
    # Those that were given up only where somebody asks for them.
    wanted: tuple[Status, ...] = statuses(asked) or (REPLAYABLE if asked.status else ("pending",))
    able = tuple(status for status in REPLAYABLE if status in wanted)
    narrowed = replace(where, status=able)
    if not able or not find(session, narrowed, limit=1).jobs:
        raise NothingToReplay(where, {})
    return Chosen(narrowed, {})


def _by_id(session: Session, where: Filter) -> Chosen:
    """Return those of the jobs that were named that can be sent, and why the others cannot."""
    there = _statuses(session, Filter(ids=where.ids))
    matching = _statuses(session, where)
    replays = holders(session, where.ids)
    refused: dict[UUID, str] = {}
    for job_id in where.ids:
        if job_id not in there:
            refused[job_id] = "is not there"
        elif there[job_id] == "in_progress" and job_id in replays:
            refused[job_id] = f"{why_not('in_progress', 'in_progress')}: replay {_sends_it(replays[job_id])}"
        elif there[job_id] not in REPLAYABLE:
            refused[job_id] = why_not(there[job_id], "in_progress")
        elif job_id not in matching:
            refused[job_id] = "does not match the other filters"
    left = tuple(job_id for job_id in where.ids if job_id not in refused)
    if not left:
        raise NothingToReplay(where, refused)
    return Chosen(replace(where, ids=left), refused)


def _sends_it(holder: Holder) -> str:
    if holder.state is None:
        return f"{short(holder.id)}, an operator's, sends it again"
    return f"{short(holder.id)} sends it again: {holder.state}, by {one_line(holder.created_by or '')}"


def _statuses(session: Session, where: Filter) -> dict[UUID, Status]:
    found: dict[UUID, Status] = {}
    for n in range(0, len(where.ids), _AT_ONCE):
        page = find(session, replace(where, ids=where.ids[n : n + _AT_ONCE]), limit=_AT_ONCE)
        found |= {job.id: job.status for job in page.jobs}
    return found
