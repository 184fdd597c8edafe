"""``worker failed audit``: what people did, to whatever job or queue."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Annotated

import typer
from rich.text import Text

from db.failed import Event, moment
from db.failed import audit as find_events
from worker.cli.common import console
from worker.cli.failed.looks import grid, say, say_command
from worker.cli.failed.options import AsJson, AsTenant, access
from worker.failed.changes import subject
from worker.text import age, one_line, to_json


def audit(
    who: Annotated[list[str] | None, typer.Option(help="What this person or program did, as they said.")] = None,
    event: Annotated[list[str] | None, typer.Option(help="Of this kind: resolved, noted, purged, ...")] = None,
    since: Annotated[str | None, typer.Option(help="Done since: 2h, 7d, 2026-01-31, 2026-01-31T08:00+01:00.")] = None,
    until: Annotated[str | None, typer.Option(help="Done before.")] = None,
    limit: Annotated[int, typer.Option(help="Events of a page, 1 to 1000.")] = 20,
    after: Annotated[int | None, typer.Option(help="Go on where a page ended; it says how.")] = None,
    as_tenant: AsTenant = None,
    as_json: AsJson = False,
) -> None:
    """Show who did what to which job or queue, when and why, newest first; failures are not among it.

    What happened to one job, its failures too, worker failed show tells, also when it is gone.
    """
    with access(as_tenant) as work:
        begin = moment("since", since, work.now) if since else None
        end = moment("until", until, work.now) if until else None
        with work.begin() as session:
            found = find_events(
                session, by=who or (), events=event or (), since=begin, until=end, before=after, limit=limit
            )
        following = found[-1].id if len(found) == limit else None
        if as_json:
            typer.echo(to_json({"events": found, "next": following}))
            return
        if not found:
            say("That was all." if after is not None else "Nobody did anything of that kind.")
            return
        _show(found, work.now)
        if following is not None:
            words = [w for each in who or () for w in ("--who", each)] + [
                w for each in event or () for w in ("--event", each)
            ]
            # What was relative is not any more.
            words += [
                w for option, at in (("--since", begin), ("--until", end)) if at for w in (option, at.isoformat())
            ]
            words += ["--limit", str(limit), "--after", str(following)]
            say_command(f"\nMore: {work.command(f'audit {shlex.join(words)}')}")


def _show(found: list[Event], now: datetime) -> None:
    table = grid("when", "who", "what", "of")
    table.add_column("why", ratio=1, overflow="fold")
    for event in found:
        table.add_row(
            Text(f"{age(event.happened_at, now)} ago"),
            Text(one_line(event.changed_by)),
            Text(one_line(event.event), "bold"),
            Text(_of(event)),
            Text(one_line(event.reason or "")),
        )
    console.print(table)


def _of(event: Event) -> str:
    """Return what it was done to: a job, a replay, a tenant or queues."""
    found = subject(event)
    return {"job": found.name, "nothing": "-"}.get(found.kind, f"{found.kind} {found.name}")
