"""Who did what."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from db.failed import InvalidFilter, audit, moment
from worker.console.access import Looking
from worker.console.api import shapes
from worker.console.api.asking import STRICT, After, Limit, Word, Words
from worker.console.api.cursors import opened, sealed
from worker.console.api.routing import make_router

router = make_router("audit")


class Audit(BaseModel):
    """Some events, and the cursor of the next; null after the last."""

    events: list[shapes.AnEvent]  # type: ignore[valid-type]
    next: str | None


class Asked(BaseModel):
    """Which events."""

    model_config = STRICT

    who: Words | None = Field(None, description="By any of them.")
    event: Words | None = Field(None, description="Any of them, such as `resolved`.")
    since: Word | None = Field(None, description="Then or later: `2h`, `7d`, or a time in ISO 8601.")
    until: Word | None = Field(None, description="Before then.")
    after: After | None = None
    limit: Limit = 50


@router.get("/audit", response_model=Audit)
def list_events(work: Looking, asked: Annotated[Asked, Query()]) -> dict[str, Any]:
    """What people and replays did, newest first."""
    _without_nul(who=asked.who, event=asked.event)
    with work.begin() as session:
        found = audit(
            session,
            by=asked.who or (),
            events=asked.event or (),
            since=moment("since", asked.since, work.now) if asked.since else None,
            until=moment("until", asked.until, work.now) if asked.until else None,
            before=_id(asked.after),
            limit=asked.limit,
        )
    following = str(found[-1].id) if len(found) == asked.limit else None
    return {"events": [shapes.plain(event) for event in found], "next": sealed(following)}


def _id(after: str | None) -> int | None:
    said = opened(after)
    if said is None:
        return None
    if not (said.isascii() and said.isdigit()) or int(said) >= 2**63:
        raise InvalidFilter(f"after must be what a page gave as its next, not {after!r}")
    return int(said)


def _without_nul(**said: list[str] | None) -> None:
    for name, values in said.items():
        if any("\0" in value for value in values or ()):
            raise InvalidFilter(f"{name} must not hold a NUL character: {values!r}")
