"""One failed job: all that is known of it, and what is done to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, Field

from db.failed import Filter, Moved, abandon, get, note, reopen, resolve
from db.replays import single
from db.replays.edits import Arguments, Edit
from db.replays.items import Part, Waiting
from db.replays.runs import ReplaySettings
from middleware.redaction import Redactor
from worker.console.access import Acting, ActingForAll, Looking, Work
from worker.console.api import shapes
from worker.console.api.asking import STRICT
from worker.console.api.routing import Ident, make_router
from worker.console.api.starting import check_actor, started
from worker.console.deployment import Deployment
from worker.console.problems import Gone as Removed
from worker.console.problems import Illegal
from worker.failed import advice
from worker.failed.asked import NoSuchJob, find_id
from worker.failed.incident import Gone, look_at
from worker.failed.tracebacks import Raised
from worker.replay import editing
from worker.replay.editing import Changed
from worker.replay.making import make_today
from worker.replay.today import NoConsumer
from worker.settings import Settings
from worker.tenants import tenant_names

router = make_router("failures")


class Step(BaseModel):
    """A command, and what it is for."""

    command: str
    purpose: str


class Incident(BaseModel):
    """All that is known of a failed job."""

    job: shapes.WholeFailure  # type: ignore[valid-type]
    group: shapes.FailureGroup | None  # type: ignore[valid-type]
    #: Exceptions of its traceback, the last one raised first.
    exceptions: list[Raised]
    history: list[shapes.AnEvent]  # type: ignore[valid-type]
    #: The failed jobs of the same piece of work, this one among them.
    chain: list[shapes.Failure]  # type: ignore[valid-type]
    #: What became of it in replays, the last first; and the one that is yet to send it.
    replays: list[Part]
    waiting: Waiting | None
    #: What its kind of error asks for first.
    advice: str | None
    #: Commands that can be given about it.
    next_steps: list[Step]


@router.get("/failures/{ident}", response_model=Incident)
def get_failure(work: Looking, ident: Ident) -> dict[str, Any]:
    """All that is known of one. Of one that was removed the history is there still: see there."""
    with work.begin() as session:
        found = look_at(session, find_id(session, ident))
    if isinstance(found, Gone):
        raise Removed(f"failed job {found.id} was removed; its history tells by whom")
    suffix = f" --as-tenant {work.tenant_id}" if work.tenant_id else ""
    steps = advice.steps(
        found.job,
        found.group,
        len(found.chain),
        lambda said: f"worker failed {said}{suffix}",
        truncated=False,
        replayed=found.held_by is not None,
    )
    return {
        "job": shapes.failure(found.job, found.names),
        "group": None if found.group is None else shapes.group(found.group),
        "exceptions": found.raised,
        "history": [shapes.plain(event) for event in found.history],
        "chain": [shapes.failure(job, found.names) for job in found.chain],
        "replays": found.replays,
        "waiting": found.waiting,
        "advice": advice.first(found.job, replayed=found.held_by is not None),
        "next_steps": [{"command": step.command, "purpose": step.purpose} for step in steps],
    }


class History(BaseModel):
    """What happened to a failed job, oldest first."""

    events: list[shapes.AnEvent]  # type: ignore[valid-type]


@router.get("/failures/{ident}/history", response_model=History)
def get_history(work: Looking, ident: Ident) -> dict[str, Any]:
    """What happened to one, oldest first, also where it was removed."""
    with work.begin() as session:
        found = look_at(session, find_id(session, ident))
    return {"events": [shapes.plain(event) for event in found.history]}


class Retry(BaseModel):
    """How one is sent again."""

    model_config = STRICT

    actor: str | None = Field(None, min_length=1, max_length=255, description="Where its own has another name today.")
    reason: str | None = Field(None, min_length=1, max_length=10_000)


@router.post("/failures/{ident}/retry", status_code=201, response_model=shapes.AReplay)
def retry_failure(request: Request, work: Acting, ident: Ident, how: Retry | None = None) -> dict[str, Any]:
    """Send one again, by a replay of its own. One that is on its way already is not sent twice: 409."""
    how = how or Retry(actor=None, reason=None)
    deployment: Deployment = request.app.state.deployment
    check_actor(work, deployment, how.actor)
    with work.begin() as session:
        job_id = find_id(session, ident)
        replay_id = single.create(session, job_id, ReplaySettings(actor=how.actor), by=work.who.name, reason=how.reason)
    return started(work, deployment, replay_id)


class Change(BaseModel):
    """What a job is called with instead, all of it or by name; and whether only to look at what that changes."""

    model_config = STRICT

    set: dict[str, Any] | None = Field(None, description="Values of arguments by name; the others stay.")
    kwargs: dict[str, Any] | None = Field(None, description="All arguments by name.")
    args: list[Any] | None = Field(None, description="All arguments by position.")
    actor: str | None = Field(None, min_length=1, max_length=255, description="Where its own has another name today.")
    reason: str | None = Field(None, min_length=1, max_length=10_000)
    dry_run: bool = False


class Edited(BaseModel):
    """Arguments that are others now, redacted, as JSON; why no worker may take it at the moment; and the replay, where
    it was not a dry run."""

    changed: list[Changed]
    doubtful: str | None
    replay: shapes.AReplay | None  # type: ignore[valid-type]


@router.post("/failures/{ident}/edit", status_code=201, response_model=Edited)
def edit_failure(request: Request, work: ActingForAll, ident: Ident, change: Change) -> dict[str, Any]:
    """Change the arguments of one and send it again. The original is kept as it was."""
    settings: Settings = request.app.state.settings
    deployment: Deployment = request.app.state.deployment
    broker = deployment.broker
    check_actor(work, deployment, change.actor)
    with work.begin() as session:
        job_id = find_id(session, ident)
        job = editing.editable(session, job_id)
        draft = editing.draft(job, change.actor, keys=settings.keys, renamed=settings.renamed)
    was = draft.was
    given = Arguments(
        was.args if change.args is None else change.args, was.kwargs if change.kwargs is None else change.kwargs
    )
    after = editing.with_values(given, change.set or {}, broker, draft.actor_name)
    changed = editing.changes(Edit(was, after), broker, draft.actor_name, Redactor(settings.redact_keys))
    if not changed:
        raise Illegal("nothing was changed: the arguments are as they were; retry sends it as it is")
    doubtful = None
    try:
        draft.check(after, make_today(settings, broker, request.app.state.client, knows_all=True))
    except NoConsumer as e:
        # It waits half a minute for one.
        doubtful = str(e)
    if change.dry_run:
        return {"changed": changed, "doubtful": doubtful, "replay": None}
    with work.begin() as session:
        replay_id = editing.start_edited(
            session,
            job,
            Edit(was, after),
            ReplaySettings(actor=change.actor),
            changed,
            keys=settings.keys,
            by=work.who.name,
            reason=change.reason,
        )
    return {"changed": changed, "doubtful": doubtful, "replay": started(work, deployment, replay_id)}


Said = Annotated[str, Field(min_length=1, max_length=10_000)]


class Note(BaseModel):
    """What was done, or is known."""

    model_config = STRICT

    note: Said


class Because(BaseModel):
    """Why."""

    model_config = STRICT

    reason: Said


class Perhaps(BaseModel):
    """Why, if there is anything to say."""

    model_config = STRICT

    reason: Said | None = None


@router.post("/failures/{ident}/resolve", response_model=shapes.WholeFailure)
def resolve_failure(work: Acting, ident: Ident, said: Note) -> dict[str, Any]:
    """Close one, with what was done. This is final."""
    return _change(work, ident, resolve, note=said.note)


@router.post("/failures/{ident}/abandon", response_model=shapes.WholeFailure)
def abandon_failure(work: Acting, ident: Ident, said: Because) -> dict[str, Any]:
    """Give one up; it can be re-opened."""
    return _change(work, ident, abandon, reason=said.reason)


@router.post("/failures/{ident}/reopen", response_model=shapes.WholeFailure)
def reopen_failure(work: Acting, ident: Ident, said: Perhaps | None = None) -> dict[str, Any]:
    """Return one that was given up, or that nobody works on any more, to pending."""
    return _change(work, ident, reopen, reason=said.reason if said else None)


@router.post("/failures/{ident}/note", response_model=shapes.WholeFailure)
def note_failure(work: Acting, ident: Ident, said: Note) -> dict[str, Any]:
    """Add a note to one, whatever its status."""
    return _change(work, ident, note, note=said.note)


def _change(work: Work, ident: str, change: Callable[..., Moved], **said: Any) -> dict[str, Any]:
    """Do it, and return the job as it is then."""
    with work.begin() as session:
        job_id = find_id(session, ident)
    moved = change(work.begin, Filter(ids=(job_id,)), by=work.who.name, **said)
    why = moved.refused.get(job_id)
    if why is not None and why != "is not there":
        raise Illegal(f"{job_id} {why}")
    with work.begin() as session:
        job = get(session, job_id) if why is None else None
        if job is None:
            raise NoSuchJob(f"there is no failed job {job_id}")
        return shapes.failure(job, tenant_names(session, [job.tenant_id]))
