"""``worker failed resolve | abandon | reopen | note``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from db.failed import STATUSES, Filter, InvalidFilter, Moved, Status, count, sources
from db.failed import abandon as abandon_jobs
from db.failed import note as note_jobs
from db.failed import reopen as reopen_jobs
from db.failed import resolve as resolve_jobs
from worker.cli.common import fail
from worker.cli.failed.confirm import confirm, described
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import progressing, say
from worker.cli.failed.options import Access, AsJson, Yes, access, filtered
from worker.cli.operator import By, operator_name
from worker.failed.asked import Asked, NoSuchJob, narrowed, to_filter
from worker.failed.holding import held_fast
from worker.text import counted, one_line, to_json

#: Refused jobs that are named.
_NAMED: Final = 20


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do to jobs.

    Attributes:
      run: Of the library, with all but the jobs and who begins.
      verb, past: What it is called.
      to: The status that they get; None where they keep theirs.
    """

    run: Callable[..., Moved]
    verb: str
    past: str
    to: Status | None


@filtered
def resolve(
    asked: Asked,
    note: Annotated[str, typer.Option(help="What was done; kept with each job.")] = "",
    yes: Yes = False,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Close jobs for which there is nothing left to do. This is final.

    By id, or all that match. Exit status 3 where nothing matched or some were refused.
    """
    action = Action(resolve_jobs, "resolve", "resolved", "resolved")
    _act(asked, action, {"note": note}, by, yes=yes, as_json=as_json)


@filtered
def abandon(
    asked: Asked,
    reason: Annotated[str, typer.Option(help="Why; kept with each job.")] = "",
    yes: Yes = False,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Give jobs up; they can be re-opened. Otherwise as resolve."""
    action = Action(abandon_jobs, "abandon", "abandoned", "abandoned")
    _act(asked, action, {"reason": reason}, by, yes=yes, as_json=as_json)


@filtered
def reopen(
    asked: Asked,
    reason: Annotated[str | None, typer.Option(help="Why; kept with each job.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Return abandoned jobs to pending, and those in progress that nobody works on. Otherwise as resolve."""
    action = Action(reopen_jobs, "re-open", "re-opened", "pending")
    _act(asked, action, {"reason": reason}, by, yes=yes, as_json=as_json)


@filtered
def note(
    asked: Asked,
    note: Annotated[str, typer.Option(help="What others should know.")] = "",
    yes: Yes = False,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Add a note to jobs, whatever their status. Otherwise as resolve."""
    _act(asked, Action(note_jobs, "note", "noted", None), {"note": note}, by, yes=yes, as_json=as_json)


def _act(asked: Asked, action: Action, words: dict[str, Any], by: str | None, *, yes: bool, as_json: bool) -> None:
    """Do it to what was asked for, after asking where that is many, and say what became of it."""
    with access(asked.as_tenant) as work:
        who = operator_name(by)
        # Before anybody is asked.
        for name, value in words.items():
            if value is not None and not value.strip():
                raise ValueError(f"--{name} must say {'why' if name == 'reason' else 'what was done or is known'}")
        where = _chosen(asked, action, work, yes=yes)
        with progressing(action.past) as progress:
            moved = action.run(work.begin, where, by=who, **words, progress=progress)
        left = 0
        if not where.ids:
            with work.begin() as session:
                left = count(session, where) if action.to is not None else 0
    _report(moved, left, action, as_json=as_json)


def _chosen(asked: Asked, action: Action, work: Access, *, yes: bool) -> Filter:
    """Return which jobs it is done to; ends the command where there is none, or the answer is no."""
    with work.begin() as session:
        try:
            where = to_filter(session, asked, work.now)
        except NoSuchJob as e:
            fail(str(e), NOTHING)
        if where.is_empty:
            raise InvalidFilter("say which jobs: ids, or what they have in common (--help lists the filters)")
        if where.ids:
            # They were named one by one.
            return where
        able = narrowed(where, sources(action.to) if action.to is not None else STATUSES)
        able = held_fast(session, able) if able else None
        found, words = described(session, able, work) if able else (None, "")
        if able is None or found is None or not found.jobs:
            found, words = described(session, where, work)
            what = f"it matches {words}" if found.jobs else "no failed job matches"
            fail(f"nothing to {action.verb}: {what}", NOTHING)
    if found.jobs > 1:
        confirm(words, f"{action.verb.capitalize()} {counted(found.jobs, 'job')}?", yes=yes)
    return able


def _report(moved: Moved, left: int, action: Action, *, as_json: bool) -> None:
    """Say how many were changed, and why others were not; exit with status 3 where there are such."""
    if as_json:
        refused = {str(job_id): why for job_id, why in moved.refused.items()}
        typer.echo(to_json({"changed": moved.count, "ids": moved.moved, "refused": refused, "left": left}))
    else:
        if moved.count or not moved.refused:
            say(f"{counted(moved.count, 'job')} {action.past}.")
        _say_refused(moved.refused)
        if left:
            say(f"{counted(left, 'job')} left: somebody else held them; say it again.", "yellow")
    if moved.refused or left or not moved.count:
        raise typer.Exit(NOTHING)


def _say_refused(refused: dict[UUID, str]) -> None:
    for job_id, why in list(refused.items())[:_NAMED]:
        say(f"{job_id} {one_line(why)}", "yellow")
    if len(refused) > _NAMED:
        say(f"… and {len(refused) - _NAMED:,} others (--json lists them)", "yellow")
