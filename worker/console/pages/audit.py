"""Who did what, when and why."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from db.failed import InvalidFilter, audit, moment
from worker.console.access import Looking
from worker.console.choices import people
from worker.console.rendering import render
from worker.failed.changes import subject, told
from worker.tenants import tenant_names

router = APIRouter()

#: Rows of a page.
ROWS: Final = 50
#: What people and replays do, as events are called.
EVENTS: Final = (
    "claimed",
    "released",
    "resolved",
    "abandoned",
    "reopened",
    "noted",
    "edited",
    "forgotten",
    "purged",
    "replay_started",
    "replay_paused",
    "replay_running",
    "replay_stopped",
    "replay_cancelled",
    "replay_finished",
    "queue_paused",
    "queue_resumed",
    "queue_shared",
    "messages_purged",
    "retention_changed",
    "offboarded",
)
_NAMES: Final = ("who", "event", "since", "until", "before")


@router.get("/audit")
def audit_(request: Request, work: Looking) -> Response:
    """Show what was done, newest first."""
    asked = _asked(request)
    with work.begin() as session:
        found = audit(
            session,
            by=[asked["who"]] if asked["who"] else (),
            events=[asked["event"]] if asked["event"] else (),
            since=moment("since", asked["since"], work.now) if asked["since"] else None,
            until=moment("until", asked["until"], work.now) if asked["until"] else None,
            before=_number(asked["before"]) if asked["before"] else None,
            limit=ROWS + 1,
        )
        names = tenant_names(session, (event.tenant_id for event in found))
        offered = people(session)
    shown, more = found[:ROWS], len(found) > ROWS
    filters = {name: asked[name] or None for name in _NAMES if name != "before"}
    return render(
        request,
        "audit.html",
        who=work.who,
        now=work.now,
        asked=asked,
        events=EVENTS,
        offered=offered,
        rows=[(event, subject(event), told(event)) for event in shown],
        names=names,
        filters=filters,
        older={**filters, "before": shown[-1].id} if more else None,
    )


def _asked(request: Request) -> dict[str, str]:
    """Return what the address asks for; what it does not is empty.

    Raises:
      InvalidFilter: When it asks for what there is not, or twice for the same.
    """
    query = request.query_params
    unknown = sorted(set(query) - set(_NAMES))
    if unknown:
        raise InvalidFilter(f"there is no filter {unknown[0]!r}; there is {', '.join(_NAMES)}")
    for name in _NAMES:
        if len(query.getlist(name)) > 1:
            raise InvalidFilter(f"{name} can be given once, not {len(query.getlist(name))} times")
        if "\0" in query.get(name, ""):
            raise InvalidFilter(f"{name} must not hold a NUL character: {query[name]!r}")
    return {name: query.get(name, "").strip() for name in _NAMES}


def _number(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or int(value) >= 2**63:
        raise InvalidFilter(f"before must be the number of an event, not {value!r}")
    return int(value)
