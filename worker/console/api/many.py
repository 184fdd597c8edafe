"""All failed jobs that match: closed or re-opened at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BaseModel, Field

from db.failed import InvalidFilter, Moved, Status, abandon, count_up_to, reopen, resolve, sources
from worker.console.access import Acting, Work
from worker.console.api.asking import STRICT, Filters
from worker.console.api.routing import make_router
from worker.failed.asked import narrowed, to_filter
from worker.failed.holding import held_fast

router = make_router("failures")

#: Seconds of a request, after which it says how far it has come: a host's router waits for 30. Jobs that are counted
#: where that takes looking at each.
AT_MOST: Final = 15.0
COUNTED: Final = 10_000

Said = Annotated[str, Field(min_length=1, max_length=10_000)]


class ResolveMany(BaseModel):
    """Which, and what was done."""

    model_config = STRICT

    filter: Filters
    note: Said


class AbandonMany(BaseModel):
    """Which, and why."""

    model_config = STRICT

    filter: Filters
    reason: Said


class ReopenMany(BaseModel):
    """Which, and why, if there is anything to say."""

    model_config = STRICT

    filter: Filters
    reason: Said | None = None


class Outcome(BaseModel):
    """What became of them."""

    changed: int
    #: Of those that were changed, at most a thousand.
    ids: list[UUID]
    #: Why those were not that were named by id.
    refused: dict[UUID, str]
    #: How many still match that could be changed, up to 10,000: send it again, with `until` in its filter.
    left: int
    #: Those that failed later were not meant.
    until: datetime | None


@router.post("/failures/resolve", response_model=Outcome)
def resolve_failures(work: Acting, said: ResolveMany) -> dict[str, Any]:
    """Close all that match, with what was done. This is final."""
    return _change(work, said.filter, resolve, "resolved", note=said.note)


@router.post("/failures/abandon", response_model=Outcome)
def abandon_failures(work: Acting, said: AbandonMany) -> dict[str, Any]:
    """Give up all that match; they can be re-opened."""
    return _change(work, said.filter, abandon, "abandoned", reason=said.reason)


@router.post("/failures/reopen", response_model=Outcome)
def reopen_failures(work: Acting, said: ReopenMany) -> dict[str, Any]:
    """Return all that match to pending, of those that were given up, or that nobody works on any more."""
    return _change(work, said.filter, reopen, "pending", reason=said.reason)


class _Enough(Exception):
    """Raised between two batches, to leave the rest for another request."""


def _change(work: Work, filters: Filters, change: Callable[..., Moved], to: Status, **words: Any) -> dict[str, Any]:
    asked = filters.asked()
    if not asked.narrows:
        raise InvalidFilter("filter must say which jobs: by id, or by what they have in common")
    with work.begin() as session:
        where = to_filter(session, asked, work.now)
        if where.is_empty:
            raise InvalidFilter("filter must say which jobs, and not all there are")
        able = where if where.ids else narrowed(where, sources(to))
        if able is not None and not able.ids:
            # Nothing is done to a job that failed after this was sent.
            able = held_fast(session, able)
    if able is None:
        return {"changed": 0, "ids": [], "refused": {}, "left": 0, "until": None}
    ends_at, so_far = time.monotonic() + AT_MOST, Moved()

    def progress(count: int) -> None:
        so_far.count = count
        if time.monotonic() > ends_at:
            raise _Enough

    with suppress(_Enough):
        so_far = change(work.begin, able, by=work.who.name, progress=progress, **words)
    left = 0
    if not able.ids:
        with work.begin() as session:
            left, _ = count_up_to(session, able, COUNTED)
    return {
        "changed": so_far.count,
        "ids": so_far.moved,
        "refused": so_far.refused,
        "left": left,
        "until": able.until,
    }
