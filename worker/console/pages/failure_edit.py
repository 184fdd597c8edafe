"""Edit and retry: what a job was called with, as it is, for operators of all tenants; changed, looked at, and sent."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from starlette.datastructures import FormData

from db.failed.statuses import IllegalMove
from db.replays.edits import Arguments, Edit
from db.replays.runs import ReplaySettings
from middleware.redaction import Redactor
from worker.console.access import ActingForAll, LookingAtAll, NotAllowed, Work
from worker.console.deployment import Deployment
from worker.console.pages.failure import from_list
from worker.console.pages.failure_actions import back, run_soon, sentence
from worker.console.problems import Illegal
from worker.console.rendering import render
from worker.failed.asked import NoSuchJob, find_id
from worker.replay import editing
from worker.replay.application import NoSuchActor, check_is_there
from worker.replay.editing import Changed, Draft, Field
from worker.replay.making import make_today
from worker.replay.messages import NotReplayable
from worker.replay.today import NoConsumer
from worker.settings import Settings

router = APIRouter()

#: Characters of arguments that go into a form.
AT_MOST: Final = 200_000


async def _form(request: Request) -> FormData:
    return await request.form()


@dataclass(slots=True)
class Looked:
    """What came of looking at a change.

    Attributes:
      after: What it is to be called with; None where that cannot be read.
      changed: What differs, redacted.
      wrong: Why it cannot be sent so.
      doubtful: What may keep it from running.
    """

    after: Arguments | None = None
    changed: list[Changed] | None = None
    wrong: str = ""
    doubtful: str = ""


@router.get("/failures/{ident}/edit")
def edit(request: Request, work: LookingAtAll, ident: str) -> Response:
    """Show what it was called with, in fields."""
    if not work.who.may_act:
        # It is not redacted.
        raise NotAllowed(f"{work.who.name} may look, and what a job was called with is for operators")
    found = _draft(request, work, ident, None)
    return found if isinstance(found, Response) else _page(request, work, found, {})


@router.post("/failures/{ident}/edit")
def edited(request: Request, work: ActingForAll, ident: str, form: Annotated[FormData, Depends(_form)]) -> Response:
    """Show what changes; or, where that was seen, send it so, once."""
    said = {name: value for name, value in form.items() if isinstance(value, str)}
    actor = said.get("actor", "").strip() or None
    found = _draft(request, work, ident, actor)
    if isinstance(found, Response):
        return found
    looked = _look(request, found, said)
    if looked.wrong or not looked.changed or said.get("step") != "send" or said.get("seen") != _digest(found, looked):
        return _page(request, work, found, said, looked)
    assert looked.after is not None  # noqa: S101 - nothing is wrong
    settings: Settings = request.app.state.settings
    job_id = found.job.id
    try:
        with work.begin() as session:
            replay_id = editing.start_edited(
                session,
                found.job,
                Edit(found.was, looked.after),
                ReplaySettings(actor=actor),
                looked.changed,
                keys=settings.keys,
                by=work.who.name,
                reason=said.get("reason", "").strip() or None,
            )
    except IllegalMove as e:
        # Somebody else was faster, or the same click came twice.
        return back(request, job_id, f"This was not sent. {sentence(job_id, str(e))}", kind="bad")
    except ValueError as e:
        looked.wrong = str(e)
        return _page(request, work, found, said, looked)
    run_soon(request, replay_id)
    return back(request, job_id)


def _draft(request: Request, work: Work, ident: str, actor: str | None) -> Draft | Response:
    """Return what is to be changed; or the answer to whoever cannot."""
    settings: Settings = request.app.state.settings
    with work.begin() as session:
        job_id = find_id(session, ident)
        try:
            job = editing.editable(session, job_id)
            return editing.draft(job, actor, keys=settings.keys, renamed=settings.renamed)
        except IllegalMove as e:
            return back(request, job_id, f"It cannot be edited. {sentence(job_id, str(e))}", kind="bad")
        except NotReplayable as e:
            return back(request, job_id, f"It cannot be sent again: {e}.", kind="bad")
        except LookupError as e:
            raise NoSuchJob(str(e)) from None


def _look(request: Request, draft: Draft, said: dict[str, str]) -> Looked:
    """Look at a change without doing anything."""
    deployment: Deployment = request.app.state.deployment
    settings: Settings = request.app.state.settings
    broker = deployment.broker
    if draft.actor is not None:
        try:
            check_is_there(broker, draft.actor)
        except NoSuchActor as e:
            return Looked(wrong=str(e))
    try:
        after = _read(said, editing.in_fields(draft.was, broker, draft.actor_name))
    except ValueError as e:
        return Looked(wrong=str(e))
    changed = editing.changes(Edit(draft.was, after), broker, draft.actor_name, Redactor(settings.redact_keys))
    looked = Looked(after, changed)
    if not changed:
        looked.wrong = "nothing was changed; to send it as it is, retry it"
        return looked
    try:
        draft.check(after, make_today(settings, broker, request.app.state.client, knows_all=True))
    except NoConsumer as e:
        looked.doubtful = f"At this moment {e}: the replay waits half a minute for one"
    except NotReplayable as e:
        looked.wrong = str(e)
    return looked


def _read(said: dict[str, str], fields: list[Field]) -> Arguments:
    """Return what the form says."""
    values = {name: value for name, value in said.items() if name.startswith(("args.", "kwargs."))}
    name, more = said.get("more_name", "").strip(), said.get("more_value", "")
    if more.strip():
        if not name:
            raise ValueError("say what the argument that is added is called")
        if f"kwargs.{name}" in values or any(field.name == name for field in fields):
            raise ValueError(f"there is an argument {name} already")
        values[f"kwargs.{name}"] = more
    return editing.from_fields(values, fields)


def _digest(draft: Draft, looked: Looked) -> str:
    """Return what tells whether this is the change that somebody has seen."""
    after = looked.after
    seen = None if after is None else [after.args, after.kwargs]
    return hashlib.sha256(json.dumps([str(draft.job.id), draft.actor, seen]).encode()).hexdigest()


def _page(request: Request, work: Work, draft: Draft, said: dict[str, str], looked: Looked | None = None) -> Response:
    deployment: Deployment = request.app.state.deployment
    broker = deployment.broker
    fields = editing.in_fields(draft.was, broker, draft.actor_name)
    typed = {name: value for name, value in said.items() if name.startswith("kwargs.")}
    known = {field.key for field in fields}
    fields += [Field(name, name.removeprefix("kwargs."), value) for name, value in typed.items() if name not in known]
    size = sum(len(field.value or "") for field in fields)
    if size > AT_MOST:
        raise Illegal(
            f"its arguments are {size:,} characters, too many for a form: worker failed edit {draft.job.id} --editor"
        )
    values: dict[str, Any] = {"looked": looked, "seen": ""}
    if looked is not None and not looked.wrong:
        values["seen"] = _digest(draft, looked)
    return render(
        request,
        "failure_edit.html",
        who=work.who,
        now=work.now,
        status_code=400 if looked is not None and looked.wrong else 200,
        job=draft.job,
        keep="" if (listed := from_list(request)) is None else f"?{urlencode({'from': listed})}",
        actor_name=draft.actor_name,
        known=draft.known,
        fields=[(field, said.get(field.key, field.value or "") if said else field.value or "") for field in fields],
        any_name=editing.takes_any_name(broker, draft.actor_name),
        typed=said,
        actors=sorted(broker.actors),
        **values,
    )
