"""Failures of one cause together: the list, and what there is to know of one group."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from db.failed import (
    STATUSES,
    Filter,
    Group,
    find,
    find_groups,
    get,
    hours_of_group,
    tenants_of_group,
)
from worker.console.access import Looking
from worker.console.asking import asked_in, query
from worker.console.choices import offered
from worker.console.rendering import render
from worker.failed import tracebacks
from worker.failed.asked import OPEN, to_filter
from worker.failed.groups import tenants_touched
from worker.failed.incident import FRAMES
from worker.tenants import tenant_names

router = APIRouter()

#: Groups of a page; and of a group's page the tenants and the failures.
ROWS: Final = 50
TENANTS: Final = 10
NEWEST: Final = 10
#: Groups that are named where a beginning is that of several.
_CANDIDATES: Final = 5


@router.get("/groups")
def groups(request: Request, work: Looking) -> Response:
    """Show what matches: groups that are back after they were resolved first, then those last seen."""
    asked = asked_in(request.query_params, also=("after",))
    with work.begin() as session:
        where = to_filter(session, asked, work.now, by_default=OPEN)
        found, following = find_groups(session, where, after=request.query_params.get("after") or None, limit=ROWS)
        names_offered = offered(request.app.state.shared, session)
    return render(
        request,
        "groups.html",
        who=work.who,
        now=work.now,
        asked=asked,
        statuses=STATUSES,
        offered=names_offered,
        groups=found,
        touched=tenants_touched,
        first="after" in request.query_params,
        older=query(asked, after=following) if following else None,
        query=query(asked),
        # Where nothing is found among those that are open.
        in_all=query(asked, status="all") if asked.status != ["all"] else None,
    )


@router.get("/groups/{fingerprint}")
def group(request: Request, work: Looking, fingerprint: str) -> Response:
    """Show one: what it is, how much and since when, for whom, where in the code, and the newest of its failures."""
    with work.begin() as session:
        found = the_group(session, fingerprint)
        hours = hours_of_group(session, found.fingerprint, now=work.now)
        touched = tenants_of_group(session, found.fingerprint, limit=TENANTS)
        jobs = find(session, Filter(fingerprint=(found.fingerprint,)), limit=NEWEST).jobs
        sample = get(session, jobs[0].id) if jobs else None
        names = tenant_names(session, [*(one.tenant_id for one in touched), *(job.tenant_id for job in jobs)])
    raised = tracebacks.parse(sample.traceback, sample.task_name, found.place) if sample and sample.traceback else []
    return render(
        request,
        "group.html",
        who=work.who,
        now=work.now,
        group=found,
        statuses=STATUSES,
        bars=trend(hours),
        touched=touched,
        touched_in_words=tenants_touched(found),
        jobs=jobs,
        sample=sample,
        raised=raised,
        frames=FRAMES,
        short_path=tracebacks.short_path,
        names=names,
    )


def the_group(session: Session, given: str) -> Group:
    """Return the group that a person means: by its fingerprint, or the beginning of one.

    Raises:
      LookupError: When there is none that the session sees.
      ValueError: When there are several, which the message names; or it can be the beginning of none.
    """
    found, _ = find_groups(session, Filter(fingerprint=(given.lower(),)), limit=_CANDIDATES + 1)
    if not found:
        raise LookupError(f"no group's fingerprint begins with {given!r}")
    if len(found) > 1:
        named = ", ".join(one.fingerprint for one in found[:_CANDIDATES])
        raise ValueError(f"fingerprint {given!r} is the beginning of several: {named}")
    return found[0]


@dataclass(frozen=True, slots=True)
class Trend:
    """Jobs that failed by hour.

    Attributes:
      bars: Of each hour when it began and ended, how many failed, and how high its bar is, of 100.
      most: The highest number.
      jobs: All of them.
    """

    bars: list[tuple[datetime, datetime, int, int]]
    most: int
    jobs: int

    @property
    def begins(self) -> str:
        """When the first hour began, in words: in the last hour of a day (UTC) that is the same day."""
        first, last = self.bars[0][0], self.bars[-1][0]
        return f"{first:%H:%M}{'' if first.date() == last.date() else ' yesterday'}"


def trend(hours: list[tuple[datetime, int]]) -> Trend:
    """Return what is drawn of the hours' counts."""
    most = max(jobs for _, jobs in hours)
    return Trend(
        # One among thousands is to be seen as well.
        [(at, at + timedelta(hours=1), jobs, max(3, 100 * jobs // most) if jobs else 0) for at, jobs in hours],
        most,
        sum(jobs for _, jobs in hours),
    )
