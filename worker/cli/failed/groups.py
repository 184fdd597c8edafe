"""``worker failed groups``."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from db.failed import STATUSES, Group, find_groups
from worker.cli.common import console
from worker.cli.failed.looks import STATUS_STYLES, grid, say, say_command
from worker.cli.failed.options import AsJson, access, filtered
from worker.failed.asked import OPEN, Asked, to_filter
from worker.text import age, last_name, one_line, to_json

_SHORT = {"pending": "pend", "in_progress": "prog", "resolved": "resol", "abandoned": "aband"}


@filtered
def groups(
    asked: Asked,
    limit: Annotated[int, typer.Option(help="Groups of a page, 1 to 1000.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on where a page ended; it says how.")] = None,
    as_json: AsJson = False,
) -> None:
    """List failures of one cause together: those that are back after they were resolved first, then the last seen.

    Those with open jobs, unless --status or ids say otherwise.
    """
    with access(asked.as_tenant) as work:
        with work.begin() as session:
            where = to_filter(session, asked, work.now, by_default=OPEN)
            found, following = find_groups(session, where, after=after, limit=limit)
        if as_json:
            typer.echo(to_json({"groups": [in_json(group) for group in found], "next": following}))
            return
        if found:
            _show(found, work.now)
        elif after is None:
            say("No failure matches." if asked.status or asked.ids else "No failure with open jobs matches.")
            return
        if following is not None:
            words = f"groups {asked.arguments(where)}".rstrip()
            say_command(f"\nMore: worker failed {words} --limit {limit} --after {following}")
        elif found and after is None:
            jobs = work.command(f"list --fingerprint {found[0].fingerprint[:8]}")
            say_command(f"\nThe first one's jobs: {jobs}")
        if not asked.status and not asked.ids and after is None:
            say("Those with open jobs only; --status all shows every one.", "dim")


def in_json(group: Group) -> dict[str, Any]:
    """Return a group as programs get it."""
    return {**asdict(group), "open": group.open, "regressed": group.regressed}


def _show(found: list[Group], now: datetime) -> None:
    """Print each group: its counts, and what it is."""
    counted = [s for s in STATUSES if s == "pending" or any(getattr(group, s) for group in found)]
    table = grid("group")
    for status in counted:
        table.add_column(_SHORT[status], justify="right", no_wrap=True)
    for name in ("tenants", "first", "last"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("what failed", ratio=1, overflow="fold")
    for group in found:
        table.add_row(
            Text(group.fingerprint[:8], "bold red" if group.regressed else "bold"),
            *(_count(getattr(group, s), STATUS_STYLES[s]) for s in counted),
            f"{group.tenants:,}" if group.tenants else "-",
            age(group.first_seen, now),
            age(group.last_seen, now),
            what(group),
        )
    console.print(table)


def what(group: Group) -> Text:
    """Return what a group is of: in a line or two what, in another where."""
    text = Text()
    if group.regressed:
        text.append("REGRESSED ", "bold red")
    text.append(one_line(last_name(group.exception_class)), "red")
    if group.title:
        text.append(f": {one_line(group.title)}")
    where = f" at {one_line(group.place)}" if group.place else ""
    return text.append(f"\n{one_line(group.task_name)}{where}", "dim")


def _count(count: int, style: str) -> Text:
    return Text(f"{count:,}", style if count else "dim")
