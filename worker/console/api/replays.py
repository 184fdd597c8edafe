"""Replays: made, looked at, paused, resumed and cancelled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Header, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from db.failed import InvalidFilter
from db.far_time import moment_of
from db.replays import items, keys, runs
from db.replays.items import Reason, Refailed
from db.replays.runs import RAMP, ReplaySettings, State
from worker.console import dry_runs
from worker.console.access import Acting, ActingForAll, Looking, Work
from worker.console.api import shapes
from worker.console.api.asking import STRICT, After, Filters, Limit, several
from worker.console.api.cursors import opened, sealed
from worker.console.api.routing import Ident, make_router
from worker.console.api.starting import check_actor, shown, started
from worker.console.deployment import Deployment
from worker.console.pages.replays import the_replay
from worker.failed.choosing import Chosen, choose
from worker.failed.holding import held_fast
from worker.replay import editing
from worker.replay.editing import Changed

router = make_router("replays")

_DEFAULT: Final = ReplaySettings()


class Replays(BaseModel):
    """Some replays, and the cursor of the next; null after the last."""

    replays: list[shapes.AReplay]  # type: ignore[valid-type]
    next: str | None


class OfAPage(BaseModel):
    """Which replays, and where a page of them begins."""

    model_config = STRICT

    state: list[State] | None = several()
    after: After | None = None
    limit: Limit = 50


@router.get("/replays", response_model=Replays)
def list_replays(work: Looking, asked: Annotated[OfAPage, Query()]) -> dict[str, Any]:
    """Replays, newest first."""
    with work.begin() as session:
        found = runs.find(
            session, states=asked.state or (), after=_place(asked.after), limit=asked.limit + 1, counted=False
        )
        page = found[: asked.limit]
        counts = items.counts(session, [one.id for one in page])
    last = page[-1] if len(found) > asked.limit else None
    return {
        "replays": [shapes.replay(replace(one, items=counts[one.id])) for one in page],
        "next": None if last is None else sealed(f"{last.created_at.isoformat()}~{last.id}"),
    }


def _place(after: str | None) -> tuple[datetime, UUID] | None:
    said = opened(after)
    if said is None:
        return None
    at, _, replay_id = said.partition("~")
    try:
        found = moment_of(at), UUID(replay_id)
    except ValueError:
        found = None
    if found is None or found[0].tzinfo is None:
        raise InvalidFilter(f"after must be what a page gave as its next, not {after!r}")
    return found


class OneReplay(BaseModel):
    """A replay, and what became of its jobs."""

    replay: shapes.AReplay  # type: ignore[valid-type]
    #: Why jobs were not sent, or let go before that.
    reasons: list[Reason]
    #: The last that failed again.
    failures: list[Refailed]
    #: Arguments that were changed, redacted; null where none were, and for whoever is bound to a tenant.
    edit: list[Changed] | None


@router.get("/replays/{ident}", response_model=OneReplay)
def get_replay(request: Request, work: Looking, ident: Ident) -> dict[str, Any]:
    """One, how far it is, and what became of its jobs."""
    deployment: Deployment = request.app.state.deployment
    with work.begin() as session:
        found = the_replay(session, ident)
        counts = items.counts(session, [found.id])
        return {
            "replay": shapes.replay(replace(found, items=counts[found.id])),
            "reasons": items.reasons(session, found.id),
            "failures": items.last_failures(session, found.id),
            "edit": editing.shown_of(session, found, deployment.settings.keys),
        }


class Wanted(BaseModel):
    """Which jobs are sent again, and how."""

    model_config = STRICT

    filter: Filters = Field(
        description="Pending ones of those that match; abandoned ones where a status or ids say so. Those that fail "
        "after this are not meant."
    )
    ramp: Annotated[list[Annotated[int, Field(ge=1, le=9_999_999)]], Field(min_length=1, max_length=100)] = Field(
        list(RAMP), description="Jobs under way at a time: the next, once as many as this have succeeded."
    )
    rate: Annotated[float, Field(gt=0, le=1_000_000)] | None = Field(None, description="Jobs a second at most.")
    threshold: Annotated[float, Field(ge=0, le=1)] = Field(
        _DEFAULT.threshold, description="The share of the last `window` that may fail again; beyond it, it stops."
    )
    window: Annotated[int, Field(ge=1, le=10_000)] = _DEFAULT.window
    actor: str | None = Field(None, min_length=1, max_length=255, description="Where theirs has another name today.")
    reason: str | None = Field(None, min_length=1, max_length=10_000)

    def settings(self) -> ReplaySettings:
        """Return how it is to go."""
        return ReplaySettings(
            ramp=tuple(self.ramp), rate=self.rate, threshold=self.threshold, window=self.window, actor=self.actor
        )


class Made(BaseModel):
    """A replay; and of the jobs that were named, those that it is not for, and why."""

    replay: shapes.AReplay  # type: ignore[valid-type]
    refused: dict[UUID, str]


@router.post("/replays", status_code=201, response_model=Made)
def create_replay(
    request: Request,
    work: Acting,
    wanted: Wanted,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="The same key with the same body makes no second replay within a day.",
        ),
    ] = None,
) -> dict[str, Any]:
    """Send jobs again: each once, few at first. Those that succeed are closed; those that fail again wait as before."""
    deployment: Deployment = request.app.state.deployment
    said, settings = json.dumps(wanted.model_dump(mode="json"), sort_keys=True), wanted.settings()
    check_actor(work, deployment, wanted.actor)
    by, reason, refused = work.who.name, wanted.reason, dict[UUID, str]()
    with work.begin() as session:
        before = keys.made_with(session, idempotency_key, by=by, request=said) if idempotency_key else None
        if before is None:
            chosen = _chosen(session, work, wanted)
            refused |= chosen.refused
            if idempotency_key:
                made = keys.create(
                    session, chosen.where, settings, key=idempotency_key, request=said, by=by, reason=reason
                )
            else:
                made = runs.create(session, chosen.where, settings, by=by, reason=reason)
    replay = shown(work, before) if before is not None else started(work, deployment, made)
    return {"replay": replay, "refused": refused}


class Refused(BaseModel):
    """Why jobs would not be sent, how many, and one of them."""

    why: str
    jobs: int
    example: UUID


class DryRun(BaseModel):
    """What a replay would do now, as far as was looked: at the jobs that failed first."""

    #: How many were looked at, and how many of those would be sent.
    jobs: int
    would_go: int
    refused: list[Refused]
    #: Whether there was time to look at all, or at the 5,000 that are looked at.
    in_time: bool
    #: Of the jobs that were named, those that it is not for, and why.
    not_replayable: dict[UUID, str]


@router.post("/replays/dry-run", response_model=DryRun)
def try_replay(request: Request, work: ActingForAll, wanted: Wanted) -> dict[str, Any]:
    """Say how many would be sent now, and why the rest would not; nothing is changed."""
    state = request.app.state
    check_actor(work, state.deployment, wanted.actor)
    with work.begin() as session:
        chosen = _chosen(session, work, wanted)
    looked = dry_runs.look(work, state.deployment, state.client, chosen.where, wanted.settings())
    return {
        "jobs": looked.jobs,
        "would_go": looked.would_go,
        "refused": [{"why": why, "jobs": jobs, "example": example} for why, jobs, example in looked.refused],
        "in_time": looked.in_time,
        "not_replayable": chosen.refused,
    }


def _chosen(session: Session, work: Work, wanted: Wanted) -> Chosen:
    """Return which jobs, held fast as the command line does."""
    asked = wanted.filter.asked()
    if not asked.narrows:
        raise InvalidFilter("filter must say which jobs: by id, or by what they have in common")
    chosen = choose(session, asked, work.now)
    return chosen if chosen.where.ids else replace(chosen, where=held_fast(session, chosen.where))


class Why(BaseModel):
    """Why, for whoever looks at it."""

    model_config = STRICT

    why: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None


@router.post("/replays/{ident}/pause", response_model=shapes.AReplay)
def pause_replay(work: Acting, ident: Ident, said: Why | None = None) -> dict[str, Any]:
    """Let it send no more for now; what was sent goes on."""
    return shown(work, _change(work, ident, runs.pause, why=said.why if said else None))


@router.post("/replays/{ident}/cancel", response_model=shapes.AReplay)
def cancel_replay(work: Acting, ident: Ident, said: Why | None = None) -> dict[str, Any]:
    """Let it send no more, ever; what was sent goes on."""
    return shown(work, _change(work, ident, runs.cancel, why=said.why if said else None))


@router.post("/replays/{ident}/resume", response_model=shapes.AReplay)
def resume_replay(request: Request, work: Acting, ident: Ident) -> dict[str, Any]:
    """Let one go on that is paused or has stopped by itself, from the first step of its ramp; or run it here, where it
    is to run and nobody does."""

    def go_on(session: Session, replay_id: UUID, *, by: str) -> None:
        found = runs.get(session, replay_id, counted=False)
        if found is None or found.state != "running":
            runs.resume(session, replay_id, by=by)

    deployment: Deployment = request.app.state.deployment
    return started(work, deployment, _change(work, ident, go_on))


def _change(work: Work, ident: str, change: Callable[..., None], **said: Any) -> UUID:
    with work.begin() as session:
        replay_id = the_replay(session, ident).id
        change(session, replay_id, by=work.who.name, **said)
    return replay_id
