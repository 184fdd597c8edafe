"""Closes, or re-opens, all that match a filter: with how many that are and of which groups, and those alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Final

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from db.failed import STATUSES, Filter, Moved, Status, abandon, count_up_to, largest_groups, reopen, resolve, sources
from worker.console.access import Acting, Looking, NotAllowed, Work
from worker.console.asking import asked_in, query
from worker.console.rendering import redirect, render
from worker.failed.asked import OPEN, Asked, narrowed, to_filter
from worker.failed.holding import held_fast
from worker.text import counted, listed, short

router = APIRouter()

#: Jobs that are counted, and looked at for their groups, where that takes looking at each; and groups that are named.
COUNTED: Final = 10_000
GROUPS: Final = 5
#: Seconds of a request, after which it says how far it has come: a host's router waits for 30.
AT_MOST: Final = 15.0
#: Refused jobs that are named.
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class Action:
    """What can be done to many.

    Attributes:
      run: Of the library.
      word: What it calls the reason.
      label, past: What it is called.
      to: The status that jobs get.
      needs: Whether it must be said why.
      effect: What it means.
    """

    run: Callable[..., Moved]
    word: str
    label: str
    past: str
    to: Status
    needs: bool
    effect: str


ACTIONS: Final = {
    "resolve": Action(resolve, "note", "Resolve", "resolved", "resolved", True, "nothing is left to do; this is final"),
    "abandon": Action(abandon, "reason", "Abandon", "abandoned", "abandoned", True, "not worth it; can be re-opened"),
    "reopen": Action(reopen, "reason", "Re-open", "re-opened", "pending", False, "they wait again"),
}


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are, or of more than are counted that many."""

    jobs: int = 0
    is_all: bool = True

    def __add__(self, other: Count) -> Count:
        return Count(self.jobs + other.jobs, self.is_all and other.is_all)

    def __str__(self) -> str:
        return f"{self.jobs:,}{'' if self.is_all else ' or more'}"


class _Enough(Exception):
    """Raised between two batches to leave the rest for another request."""


@router.get("/failures/close")
def ask(request: Request, work: Looking) -> Response:
    """Show what matches, and ask what is to be done to it."""
    if not work.who.may_act:
        raise NotAllowed(f"{work.who.name} may look, and not change anything")
    return _page(request, work, asked_in(request.query_params))


@router.post("/failures/close")
def close(
    request: Request,
    work: Acting,
    do: Annotated[str, Form()] = "",
    words: Annotated[str, Form()] = "",
    sure: Annotated[str, Form()] = "",
) -> Response:
    """Do it to those that match, in batches."""
    asked = asked_in(request.query_params)
    action = ACTIONS.get(do)
    typed = {"do": do, "words": words}
    if action is None:
        return _page(request, work, asked, typed, wrong="say what to do: resolve, abandon or re-open")
    if action.needs and not words.strip():
        what = "why they are given up" if do == "abandon" else "what was done"
        return _page(request, work, asked, typed, wrong=f"say {what}; it is kept with each job")
    if not sure:
        return _page(request, work, asked, typed, wrong="say that you mean all of them")
    with work.begin() as session:
        where = to_filter(session, asked, work.now, by_default=OPEN)
    able = where if where.ids else narrowed(where, sources(action.to))
    if able is None:
        return _page(request, work, asked, typed, wrong=f"none of them can be {action.past}")
    until = time.monotonic() + AT_MOST
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done = count
        if time.monotonic() > until:
            raise _Enough

    try:
        moved = action.run(
            work.begin, able, by=work.who.name, progress=progress, **{action.word: words.strip() or None}
        )
    except _Enough:
        moved = Moved(count=done)
    except ValueError as e:
        return _page(request, work, asked, typed, wrong=str(e))
    left = Count()
    if not where.ids:
        with work.begin() as session:
            left = Count(*count_up_to(session, able, COUNTED))
    if left.jobs:
        said = f"{counted(moved.count, 'job')} {action.past} so far, {left} left. Send it again to go on."
        return _page(request, work, asked, typed, said=said)
    return redirect(
        request,
        f"/failures{query(asked)}",
        say=_result(moved, action),
        kind="good" if moved.count and not moved.refused else "bad",
    )


def _result(moved: Moved, action: Action) -> str:
    said = f"{counted(moved.count, 'job')} {action.past}."
    if moved.refused:
        named = [f"{short(job_id)} {why}" for job_id, why in list(moved.refused.items())[:_NAMED]]
        more = [counted(len(moved.refused) - _NAMED, "other")] if len(moved.refused) > _NAMED else []
        said += f" Left as they are: {listed([*named, *more])}."
    return said.replace("in_progress", "in progress")


def _page(
    request: Request,
    work: Work,
    asked: Asked,
    typed: dict[str, str] | None = None,
    *,
    wrong: str = "",
    said: str = "",
) -> Response:
    with work.begin() as session:
        where = to_filter(session, asked, work.now, by_default=OPEN)
        counts = _counts(session, where)
        groups = largest_groups(session, where, limit=GROUPS + 1, at_most=COUNTED)
        # What comes later nobody has been asked about; and two hours ago is another moment when the form is sent.
        held = held_fast(session, where) if not where.ids else where
    return render(
        request,
        "close_many.html",
        who=work.who,
        now=work.now,
        status_code=400 if wrong else 200,
        query=query(asked),
        held=query(
            asked,
            since=held.since.isoformat() if held.since else None,
            until=held.until.isoformat() if held.until else None,
        ),
        counts={status: count for status, count in counts.items() if count.jobs},
        total=sum(counts.values(), Count()),
        able={
            name: sum((counts[s] for s in sources(action.to) if s in counts), Count())
            for name, action in ACTIONS.items()
        },
        actions=ACTIONS,
        groups=groups[:GROUPS],
        more_groups=len(groups) > GROUPS,
        typed=typed or {},
        wrong=wrong,
        so_far=said,
    )


def _counts(session: Session, where: Filter) -> dict[Status, Count]:
    """Return how many match, by status."""
    return {s: Count(*count_up_to(session, replace(where, status=(s,)), COUNTED)) for s in where.status or STATUSES}
