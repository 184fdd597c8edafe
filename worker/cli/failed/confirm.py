"""Asks before something is done to many jobs, with what they are."""

from __future__ import annotations

import sys

import typer
from sqlalchemy.orm import Session

from db.failed import Filter, Stats, largest_groups, stats
from worker.cli.common import fail
from worker.cli.failed.looks import say
from worker.cli.failed.options import Access
from worker.text import counted, last_name, listed, one_line

#: Groups that are named.
_GROUPS = 3


def described(session: Session, where: Filter, work: Access) -> tuple[Stats, str]:
    """Return counts of the jobs that match, and in words: how many, by status, and of which groups most are."""
    found = stats(session, where, now=work.now)
    by_status = [f"{count:,} {status}" for status, count in found.by_status.items() if count]
    groups = largest_groups(session, where, limit=_GROUPS + 1)
    named = [
        f"\n  {group.fingerprint[:8]}  x{group.jobs:,}  {one_line(last_name(group.exception_class))}"
        + (f": {one_line(group.title)[:100]}" if group.title else "")
        for group in groups[:_GROUPS]
    ]
    more = ["\n  and others"] if len(groups) > _GROUPS else []
    return found, f"{counted(found.jobs, 'job')} ({listed(by_status or ['none'])})" + "".join([*named, *more])


def confirm(what: str, consequence: str, *, yes: bool) -> None:
    """Return where the answer is yes; else end the command, also where nobody is there to give one.

    Arguments:
      what: Shown before the question.
      consequence: The question.
    """
    if yes:
        return
    if not can_be_asked():
        fail(f"{what}\n{consequence} Say --yes, because nobody can be asked here")
    say(what)
    if not typer.confirm(consequence, err=True):
        fail("nothing was changed")


def can_be_asked() -> bool:
    """Tell whether somebody sits at a terminal."""
    return sys.stdin.isatty()
