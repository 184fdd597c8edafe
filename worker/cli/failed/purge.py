"""``worker failed purge | forget``."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from db.failed import Filter, InvalidFilter
from db.failed.batches import Swept
from db.failed.expiry import Expired, expire
from db.failed.removal import forget as forget_payloads
from db.failed.removal import purge as purge_jobs
from worker.cli.common import fail
from worker.cli.failed.confirm import confirm, described
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import progressing, say
from worker.cli.failed.options import Access, AsJson, Yes, access, filtered
from worker.cli.operator import By, operator_name
from worker.failed.asked import Asked, NoSuchJob, to_filter
from worker.failed.holding import held_fast
from worker.text import as_dict, counted, listed, to_json

Reason = Annotated[str | None, typer.Option("--reason", help="Why; it stays in the history.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many it would be, and change nothing.")]


@filtered
def purge(
    asked: Asked,
    expired: Annotated[bool, typer.Option("--expired", help="What the rules of retention say; no filters.")] = False,
    in_progress: Annotated[
        bool, typer.Option("--in-progress", help="Also jobs in progress: if what runs fails, it is recorded again.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    reason: Reason = None,
    by: By = None,
) -> None:
    """Remove failed jobs for ever, with their originals; a line of history remains of each.

    By id, all that match, or with --expired what was kept for long enough. Exit status 3 where nothing matched.
    """
    with access(asked.as_tenant) as work:
        who = operator_name(by)
        if expired:
            _expire(asked, work, who, dry_run=dry_run, yes=yes, as_json=as_json)
            return
        where = _which(asked, work)
        if not dry_run:
            where = _agreed(where, work, "Purge {jobs}, for ever?", yes=yes)
        with progressing("purged") as progress:
            done = purge_jobs(
                work.begin,
                where,
                by=who,
                reason=reason,
                in_progress=in_progress,
                dry_run=dry_run,
                progress=progress,
            )
    _report(done, "purged", dry_run=dry_run, as_json=as_json)


@filtered
def forget(
    asked: Asked,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
    reason: Reason = None,
    by: By = None,
) -> None:
    """Remove what jobs were called with, for ever: arguments and original. The jobs stay, and cannot be replayed."""
    with access(asked.as_tenant) as work:
        who = operator_name(by)
        where = _which(asked, work)
        if not dry_run:
            where = _agreed(where, work, "Forget what {jobs} had as arguments, for ever?", yes=yes)
        with progressing("forgotten") as progress:
            done = forget_payloads(work.begin, where, by=who, reason=reason, dry_run=dry_run, progress=progress)
    _report(done, "forgotten", dry_run=dry_run, as_json=as_json)


def _which(asked: Asked, work: Access) -> Filter:
    with work.begin() as session:
        try:
            where = to_filter(session, asked, work.now)
        except NoSuchJob as e:
            fail(str(e), NOTHING)
    if where.is_empty:
        raise InvalidFilter("say which jobs: ids, or what they have in common (--help lists the filters)")
    return where


def _agreed(where: Filter, work: Access, question: str, *, yes: bool) -> Filter:
    """Return the jobs that somebody agreed to; ends the command where there is none, or the answer is no."""
    with work.begin() as session:
        where = held_fast(session, where)
        found, words = described(session, where, work)
    if not found.jobs:
        fail("no failed job matches", NOTHING)
    # Also of one: nothing brings it back.
    confirm(words, question.format(jobs=counted(found.jobs, "job")), yes=yes)
    return where


def _expire(asked: Asked, work: Access, who: str, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Apply the rules of retention, which say themselves which jobs."""
    if asked.narrows:
        fail("--expired takes no filters: rules of retention say which (worker failed retention list)")
    if not dry_run and not yes:
        due = expire(work.begin, now=work.now, by=who, dry_run=True)
        if due.rows or due.payloads or due.events or due.answers or due.replays or due.groups:
            # A rule that somebody has mistyped is seen here for the last time.
            confirm(f"Due: {_parts(due)}.", "Remove all that, for ever?", yes=False)
    done = expire(work.begin, now=work.now, by=who, dry_run=dry_run)
    if as_json:
        typer.echo(to_json({**as_dict(done), "dry_run": dry_run}))
        return
    say(f"{'Due' if dry_run else 'Removed'}: {_parts(done)}.")
    if done.held:
        say(f"{counted(done.held, 'job')} left: somebody else held them; the next time will do.", "yellow")


def _parts(done: Expired) -> str:
    return listed(
        [
            _counts(done.rows),
            counted(done.payloads, "payload"),
            counted(done.events, "event"),
            counted(done.answers, "answer"),
            counted(done.replays, "replay"),
            counted(done.groups, "group"),
        ]
    )


def _report(done: Swept, past: str, *, dry_run: bool, as_json: bool) -> None:
    """Say how many, and which were left; exit with status 3 where some were, or nothing matched."""
    if as_json:
        typer.echo(to_json({"count": done.count, **as_dict(done), "dry_run": dry_run}))
    else:
        say(f"{_counts(done.rows)} {'would be ' if dry_run else ''}{past}.")
        if done.spared:
            say(f"{counted(done.spared, 'job')} in progress left (--in-progress takes them, too).", "yellow")
        if done.held:
            say(f"{counted(done.held, 'job')} left: somebody else held them; say it again.", "yellow")
    if done.spared or done.held or not done.count:
        raise typer.Exit(NOTHING)


def _counts(rows: Counter[str]) -> str:
    by_status = listed(f"{count:,} {status}" for status, count in sorted(rows.items())) if rows else ""
    return counted(rows.total(), "job") + (f" ({by_status})" if by_status else "")
