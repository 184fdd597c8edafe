"""Replays: the list, and one as it goes, with what can be done about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Any, Final, cast, get_args
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from db.failed import Filter, InvalidFilter
from db.failed.events import REASON_AT_MOST, checked
from db.replays import claims, items, runs
from db.replays.items import Reason, Refailed
from db.replays.runs import IllegalChange, Replay, State, filter_as_json
from worker.console.access import Acting, Looking, Work
from worker.console.asking import pairs_of
from worker.console.deployment import Deployment
from worker.console.rendering import redirect, render
from worker.console.shared import Shared
from worker.failed.asked import NoSuchReplay, find_replay
from worker.replay import editing
from worker.replay.ramp import allowed
from worker.replay.words import OUTCOMES, WAITS, not_sent, unusual
from worker.tenants import tenant_names
from worker.text import short

router = APIRouter()

#: Replays of a page, and of one the jobs that failed again.
ROWS: Final = 25
FAILURES: Final = 10
#: Seconds over which the rate is measured, and for which what is counted is the same for all who look.
MEASURED: Final = 10.0
LASTS: Final = 1.0
#: Ids that are named, and values of a filter.
_NAMED: Final = 3

STATES: Final[tuple[State, ...]] = get_args(State)
_shared = Shared(LASTS)


@router.get("/replays")
def replays(request: Request, work: Looking) -> Response:
    """Show them, newest first."""
    states, before = _asked(request)
    with work.begin() as session:
        found = runs.find(session, states=states, before=before, limit=ROWS + 1, counted=False)
        shown, more = found[:ROWS], len(found) > ROWS
        counts = _shared.get(
            # One that has ended is counted once more then.
            ("list", work.tenant_id, tuple((one.id, one.state) for one in shown)),
            lambda: items.counts(session, [one.id for one in shown]),
        )
        names = tenant_names(session, [*(one.tenant_id for one in shown), *_tenants(shown)])
    rows = [replace(one, items=counts.get(one.id, {})) for one in shown]
    query = [("state", state) for state in states]
    return render(
        request,
        "replays.html",
        who=work.who,
        now=work.now,
        replays=rows,
        names=names,
        states=STATES,
        asked=states,
        which=which,
        not_sent=not_sent,
        first=before is not None,
        query=f"?{urlencode(query)}" if query else "",
        older=f"?{urlencode([*query, ('before', rows[-1].created_at.isoformat())])}" if more else None,
        moves=any(one.state == "running" or one.under_way for one in rows),
    )


def _asked(request: Request) -> tuple[list[State], datetime | None]:
    query = request.query_params
    unknown = sorted(set(query) - {"state", "before"})
    if unknown:
        raise InvalidFilter(f"there is no filter {unknown[0]!r}; there is state")
    states = [value for value in query.getlist("state") if value]
    for each in states:
        if each not in STATES:
            raise InvalidFilter(f"state must be one of {', '.join(STATES)}, not {each!r}")
    before = query.get("before")
    try:
        at = datetime.fromisoformat(before) if before else None
    except ValueError:
        at = None
    if before and (at is None or at.tzinfo is None):
        raise InvalidFilter(f"before must be what a page gave for the next, not {before!r}")
    return cast("list[State]", states), at


def _tenants(found: list[Replay]) -> set[UUID]:
    return {tenant_id for one in found for tenant_id in one.filter.tenant_id[:_NAMED]}


def which(where: Filter, names: dict[UUID, str]) -> list[tuple[str, str]]:
    """Return what a filter asks for, by name, in a few words; nothing for every job that waits."""
    found: list[tuple[str, str]] = []
    for name, value in filter_as_json(unusual(where)).items():
        values = list(value) if isinstance(value, list) else [value]
        if name == "ids":
            name, values = "job", [short(UUID(each)) for each in values]
        elif name == "tenant_id":
            name, values = "tenant", [names.get(UUID(each)) or short(UUID(each)) for each in values]
        elif name == "fingerprint":
            name, values = "group", [each[:8] for each in values]
        more = f" and {len(values) - _NAMED:,} more" if len(values) > _NAMED else ""
        found.append((name.replace("_", " "), ", ".join(values[:_NAMED]) + more))
    return found


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay is, for all who look.

    Attributes:
      items: Jobs by what became of them.
      step: How many may be under way now.
      per_second: Jobs that end.
      reasons: Why jobs were not sent.
      failures: The last that failed again.
    """

    items: dict[str, int]
    step: int
    per_second: float
    reasons: list[Reason]
    failures: list[Refailed]


def _progress(session: Session, replay: Replay) -> Progress:
    settings = replay.settings
    pulse = claims.pulse(session, replay.id, window=settings.window, enough=sum(settings.ramp))
    return Progress(
        items.counts(session, [replay.id])[replay.id],
        allowed(settings, pulse.succeeded),
        items.ended_within(session, replay.id, MEASURED) / MEASURED,
        items.reasons(session, replay.id),
        items.last_failures(session, replay.id, limit=FAILURES),
    )


@router.get("/replays/{ident}")
def replay(request: Request, work: Looking, ident: str) -> Response:
    """Show one: how far it is, what became of its jobs, why it stopped, and what can be done about it."""
    deployment: Deployment = request.app.state.deployment
    with work.begin() as session:
        found = the_replay(session, ident)
        progress = _shared.get(("one", work.tenant_id, found.id, found.state), lambda: _progress(session, found))
        edit = editing.shown_of(session, found, deployment.settings.keys)
        names = tenant_names(session, [found.tenant_id, *_tenants([found])])
    found = replace(found, items=progress.items)
    ended = sum(found.items.values()) - found.under_way
    return render(
        request,
        "replay.html",
        who=work.who,
        now=work.now,
        replay=found,
        progress=progress,
        ended=ended,
        not_sent=not_sent(found),
        outcomes=OUTCOMES,
        which=which(found.filter, names),
        jobs_query=f"?{urlencode([*pairs_of(replace(found.filter, status=())), ('status', 'all')])}",
        names=names,
        edit=edit,
        waits=WAITS,
        here=deployment.wrong is None,
        # What nobody runs is said by a worker, in the end; what is under way ends by itself.
        every=2 if found.state == "running" else 5 if found.under_way else None,
    )


def the_replay(session: Session, given: str) -> Replay:
    """Return the replay that a person means, in full or by its beginning, its items uncounted.

    Raises:
      NoSuchReplay: When there is none that the session sees.
      ValueError: When there are several, or it can be the beginning of none.
    """
    try:
        replay_id = UUID(given)
    except ValueError:
        replay_id = find_replay(session, given)
    found = runs.get(session, replay_id, counted=False)
    if found is None:
        raise NoSuchReplay(f"there is no replay {given}")
    return found


Why = Annotated[str, Form()]


@router.post("/replays/{ident}/pause")
def pause(request: Request, work: Acting, ident: str, why: Why = "") -> Response:
    """Let it send no more for now."""
    return _change(request, work, ident, runs.pause, "is paused: what was sent goes on", why=_checked(why))


@router.post("/replays/{ident}/cancel")
def cancel(request: Request, work: Acting, ident: str, why: Why = "") -> Response:
    """Let it send no more, ever."""
    return _change(request, work, ident, runs.cancel, "is cancelled: what was sent goes on", why=_checked(why))


@router.post("/replays/{ident}/resume")
def resume(request: Request, work: Acting, ident: str) -> Response:
    """Let it go on, or run it here where it is to run and nobody does."""
    deployment: Deployment = request.app.state.deployment

    def go_on(session: Session, replay_id: UUID, *, by: str) -> None:
        found = runs.get(session, replay_id, counted=False)
        if found is None or found.state != "running":
            runs.resume(session, replay_id, by=by)

    return _change(request, work, ident, go_on, "goes on, from the first step of its ramp", then=deployment.run_soon)


def _checked(why: str) -> str | None:
    return checked("why", why, REASON_AT_MOST) if why.strip() else None


def _change(
    request: Request,
    work: Work,
    ident: str,
    change: Callable[..., None],
    past: str,
    *,
    then: Callable[[UUID], object] = lambda _: None,
    **said: Any,
) -> Response:
    """Do it, and say so, or why it cannot be, on the replay's page."""
    with work.begin() as session:
        replay_id = the_replay(session, ident).id
    try:
        with work.begin() as session:
            change(session, replay_id, by=work.who.name, **said)
    except IllegalChange as e:
        return redirect(request, f"/replays/{replay_id}", say=str(e), kind="bad")
    then(replay_id)
    return redirect(request, f"/replays/{replay_id}", say=f"Replay {short(replay_id)} {past}.")
