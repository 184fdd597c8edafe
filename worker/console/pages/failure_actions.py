"""What is done to one failed job from its page: retry, resolve, abandon, re-open, note."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Form, Request, Response

from db.failed import Filter, Moved, abandon, note, reopen, resolve
from db.failed.statuses import IllegalMove
from db.replays import single
from db.replays.runs import ReplaySettings
from db.replays.single import OnItsWay
from worker.console.access import Acting, Work
from worker.console.deployment import Deployment
from worker.console.pages.failure import from_list
from worker.console.rendering import redirect
from worker.failed.asked import NoSuchJob, find_id

router = APIRouter()


@router.post("/failures/{ident}/retry")
def retry_one(request: Request, work: Acting, ident: str) -> Response:
    """Make a replay of this one; twice at once is once."""
    with work.begin() as session:
        job_id = find_id(session, ident)
        try:
            replay_id = single.create(session, job_id, ReplaySettings(), by=work.who.name)
        except OnItsWay as e:
            # A second click, or somebody else's: what was asked for is done.
            return back(request, job_id, f"{sentence(job_id, str(e))} It was not sent twice.")
        except IllegalMove as e:
            return back(request, job_id, f"Not sent. {sentence(job_id, str(e))}", kind="bad")
        except LookupError as e:
            raise NoSuchJob(str(e)) from None
    # Committed, so that whoever runs it finds it.
    run_soon(request, replay_id)
    return back(request, job_id)


@router.post("/failures/{ident}/resolve")
def resolve_one(request: Request, work: Acting, ident: str, note: Annotated[str, Form()] = "") -> Response:
    """Close it, with what was done."""
    return _change(request, work, ident, resolve, "Resolved.", note=note)


@router.post("/failures/{ident}/abandon")
def abandon_one(request: Request, work: Acting, ident: str, reason: Annotated[str, Form()] = "") -> Response:
    """Give it up, with the reason."""
    return _change(request, work, ident, abandon, "Abandoned.", reason=reason)


@router.post("/failures/{ident}/reopen")
def reopen_one(request: Request, work: Acting, ident: str, reason: Annotated[str, Form()] = "") -> Response:
    """Return it to pending."""
    return _change(request, work, ident, reopen, "Re-opened.", reason=reason.strip() or None)


@router.post("/failures/{ident}/note")
def note_one(request: Request, work: Acting, ident: str, note: Annotated[str, Form()] = "") -> Response:
    """Add a note."""
    return _change(request, work, ident, add_note, "Noted.", note=note)


#: The parameter of a form is called so, too.
add_note: Final = note


def _change(
    request: Request, work: Work, ident: str, change: Callable[..., Moved], done: str, **words: Any
) -> Response:
    with work.begin() as session:
        job_id = find_id(session, ident)
    try:
        moved = change(work.begin, Filter(ids=(job_id,)), by=work.who.name, **words)
    except ValueError as e:
        # Without words, or with too many.
        return back(request, job_id, f"Nothing was changed: {e}.", kind="bad")
    why = moved.refused.get(job_id)
    if why is None:
        return back(request, job_id, done)
    if why == "is not there":
        raise NoSuchJob(f"there is no failed job {job_id}")
    said = sentence(job_id, why)
    if why.endswith("already"):
        # A second click.
        return back(request, job_id, said)
    return back(request, job_id, f"Nothing was changed. {said}", kind="bad")


def run_soon(request: Request, replay_id: UUID) -> None:
    """Have a replay run that was made and committed."""
    deployment: Deployment = request.app.state.deployment
    deployment.run_soon(replay_id)


def back(request: Request, job_id: UUID, say: str = "", *, kind: str = "good") -> Response:
    """Return to the page of a failed job, and say something there."""
    listed = from_list(request)
    query = "" if listed is None else f"?{urlencode({'from': listed})}"
    return redirect(request, f"/failures/{job_id}{query}", say=say, kind=kind)


def sentence(job_id: UUID, why: str) -> str:
    """Return why not in a sentence, of this job."""
    return f"It {why.removeprefix(str(job_id)).strip()}.".replace("in_progress", "in progress")
