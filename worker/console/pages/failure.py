"""A failed job as the page on which somebody lands at night: what happened, to whom, how often, and what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from psycopg.errors import QueryCanceled
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import QueryParams

from db.failed import Event, FailedJob, FailedJobSummary, beyond, find
from db.replays.single import REPLAYABLE
from worker.console.access import Looking, Work
from worker.console.asking import asked_in
from worker.console.rendering import render
from worker.failed import advice, words
from worker.failed.asked import OPEN, find_id, to_filter
from worker.failed.incident import FRAMES, Gone, Incident, look_at
from worker.failed.tracebacks import Frame, Raised, short_path
from worker.text import one_line

router = APIRouter()

#: Of each text, list and stack that may be long, what is shown where not all is asked for.
MESSAGE: Final = 3_000
MESSAGE_LINES: Final = 12
ARGUMENT: Final = 1_500
ARGUMENTS: Final = 30
FOLDED: Final = 60
CODE: Final = 300
NOTES: Final = 3_000
REASON: Final = 500
EVENTS: Final = 30
EXCEPTIONS: Final = 10
#: Characters of the query of the list that somebody came from, and milliseconds in which its next one is looked for.
LIST: Final = 2_000
FOLLOWING_WITHIN: Final = 1_000


@dataclass(frozen=True, slots=True)
class Cut:
    """A text, or its beginning.

    Attributes:
      text: What is shown.
      left: Characters that are not.
    """

    text: str
    left: int = 0


def cut(text: str, at_most: int, *, full: bool, lines: int | None = None) -> Cut:
    """Return as much of a text as is shown."""
    if full:
        return Cut(text)
    shown = text[:at_most]
    if lines is not None:
        shown = "\n".join(shown.splitlines()[:lines])
    return Cut(shown, len(text) - len(shown))


@router.get("/failures/{ident}")
def failure(request: Request, work: Looking, ident: str, full: Annotated[bool, Query()] = False) -> Response:
    """Explain one; by its id, or by what that begins with."""
    listed = from_list(request)
    with work.begin() as session:
        found = look_at(session, find_id(session, ident), events=1_000 if full else EVENTS + 1)
    if isinstance(found, Gone):
        return _gone(request, work, found, full=full)
    job = found.job
    keep = "" if listed is None else f"&{urlencode({'from': listed})}"
    return render(
        request,
        "failure.html",
        who=work.who,
        now=work.now,
        incident=found,
        job=job,
        group=found.group,
        names=found.names,
        full=full,
        listed=listed,
        following=None if listed is None else _following(work, job, listed),
        # What the links and forms of the page end with.
        keep=f"?{keep[1:]}" if keep else "",
        all_of_it=f"?full=1{keep}",
        headline=cut(one_line(job.error_message), 200, full=False).text,
        message=_message(job, full=full),
        notes=cut(job.remediation_notes or "", NOTES, full=full),
        arguments=arguments(job, full=full),
        stacks=[_stack(raised, full=full) for raised in (found.raised if full else found.raised[:EXCEPTIONS])],
        more_exceptions=0 if full else max(0, len(found.raised) - EXCEPTIONS),
        attempts=_attempts(found),
        events=_events(found.history, full=full),
        earlier=not full and len(found.history) > EVENTS,
        advice=advice.first(job, replayed=found.held_by is not None),
        closed=advice.closed(job),
        steps=_steps(found, work),
        may=_may(job),
        others=(found.group.open - (job.status in {"pending", "in_progress"})) if found.group else 0,
        words=words,
    )


def from_list(request: Request) -> str | None:
    """Return the query of the list that somebody came from, and goes back to; None where it was none."""
    listed = request.query_params.get("from")
    return listed if listed is not None and len(listed) <= LIST else None


def _following(work: Work, job: FailedJob, listed: str) -> FailedJobSummary | None:
    """Return the next one of the list; None after the last, or where the list cannot be, or it takes long to find."""
    try:
        asked = asked_in(QueryParams(listed))
        with work.begin() as session:
            session.execute(text(f"SET LOCAL statement_timeout = {FOLLOWING_WITHIN}"))
            where = to_filter(session, asked, work.now, by_default=OPEN)
            found = find(session, where, after=beyond(job), limit=1).jobs
    except ValueError:
        # Anybody may write anything there.
        return None
    except DBAPIError as e:
        # After the last that holds a text all the rest is looked at. The page is for this one.
        if isinstance(e.orig, QueryCanceled):
            return None
        raise
    return found[0] if found else None


def _gone(request: Request, work: Work, found: Gone, *, full: bool) -> Response:
    last = next((event.before for event in reversed(found.history) if event.before), None) or {}
    return render(
        request,
        "failure_gone.html",
        who=work.who,
        now=work.now,
        job_id=found.id,
        was={
            name: last[name]
            for name in ("task_name", "queue", "exception_class", "error_type", "status", "failed_at", "correlation_id")
            if last.get(name) is not None
        },
        events=_events(found.history, full=full),
        all_of_it="?full=1",
    )


def _may(job: FailedJob) -> dict[str, bool]:
    """Return what the status of a job allows to do."""
    open_ = job.status in {"pending", "in_progress"}
    return {
        # What was forgotten cannot be sent.
        "retry": job.status in REPLAYABLE and not (job.forgotten_at is not None and job.has_original is False),
        "close": open_,
        "reopen": job.status in {"in_progress", "abandoned"},
    }


def _message(job: FailedJob, *, full: bool) -> Cut | None:
    """Return the message where the headline does not say it all."""
    text = job.error_message.strip()
    if len(text) <= 200 and "\n" not in text:
        return None
    return cut(text, MESSAGE, full=full, lines=MESSAGE_LINES)


def arguments(job: FailedJob, *, full: bool) -> tuple[list[tuple[str, Cut]], int]:
    """Return what a job was called with, redacted, by name or by place; and how many are left out."""
    named: list[tuple[str, Any]] = [(f"argument {n}", value) for n, value in enumerate(job.task_args or (), 1)]
    named += (job.task_kwargs or {}).items()
    shown = named if full else named[:ARGUMENTS]
    return [(name, cut(in_lines(value), ARGUMENT, full=full)) for name, value in shown], len(named) - len(shown)


def in_lines(value: object) -> str:
    """Return a value as JSON, on several lines where one would be long."""
    line = json.dumps(value, ensure_ascii=False)
    return (
        line
        if len(line) <= 80 or not isinstance(value, dict | list)
        else json.dumps(value, ensure_ascii=False, indent=2)
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """An exception, and where it was raised.

    Attributes:
      link: How it is connected with the one before it.
      said: What it said.
      own: Of the application's frames those that are shown, the innermost first.
      frames: All of them, likewise, or those that are not folded for ever.
      libraries: How many of them are of libraries.
      left: How many are not even there to be unfolded.
    """

    link: str
    said: str
    own: list[Frame]
    frames: list[Frame]
    libraries: int
    left: int


def _stack(raised: Raised, *, full: bool) -> Stack:
    frames = raised.frames[::-1]
    own = raised.own[::-1]
    kept = frames if full else frames[:FOLDED]
    return Stack(
        link=raised.link,
        said=one_line(raised.said[0])[:CODE] if raised.said else "",
        own=[_frame(frame) for frame in (own if full else own[:FRAMES])],
        frames=[_frame(frame) for frame in kept] if len(raised.frames) > len(own) or len(own) > FRAMES else [],
        libraries=len(raised.frames) - len(own),
        left=len(frames) - len(kept),
    )


def _frame(frame: Frame) -> Frame:
    return Frame(
        short_path(frame.file)[-CODE:],
        frame.line,
        frame.function[:CODE],
        [line[:CODE] for line in frame.code[:3]],
        frame.own,
    )


def _attempts(incident: Incident) -> list[dict[str, Any]]:
    place = incident.group.place if incident.group else None
    return [
        {
            "at": words.attempted_at(attempt),
            "exception": str(attempt.get("exception_class") or "?"),
            "message": one_line(str(attempt.get("message") or ""))[:CODE],
            "worker": str(attempt.get("worker") or ""),
            # Where it is another than its group's.
            "place": str(attempt["place"]) if attempt.get("place") not in {None, place} else "",
        }
        for attempt in incident.job.attempts or ()
    ]


def _events(events: list[Event], *, full: bool) -> list[tuple[Event, Cut, str]]:
    """Return the newest events, each with why it was, and what it changed."""
    shown = events if full else events[-EVENTS:]
    return [(event, cut(event.reason or "", REASON, full=full), words.changes(event)) for event in shown]


def _steps(incident: Incident, work: Work) -> list[advice.Step]:
    suffix = f" --as-tenant {work.tenant_id}" if work.tenant_id else ""
    return advice.steps(
        incident.job,
        incident.group,
        len(incident.chain),
        lambda said: f"worker failed {said}{suffix}",
        truncated=incident.folds,
        replayed=incident.held_by is not None,
    )
