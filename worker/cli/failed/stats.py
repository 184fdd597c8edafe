"""``worker failed stats``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Final
from uuid import UUID

import typer
from rich.text import Text

from db.failed import STATUSES, Count, Stats
from db.failed import stats as count_jobs
from worker.cli.common import console
from worker.cli.failed.looks import STATUS_STYLES, grid, say
from worker.cli.failed.options import AsJson, access, filtered
from worker.failed.asked import Asked, to_filter
from worker.tenants import tenant_names
from worker.text import ago, counted, one_line, to_json

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
#: Where the terminal has no blocks.
_ASCII: Final = " .:-=+*#@"


@filtered
def stats(asked: Asked, as_json: AsJson = False) -> None:
    """Count failed jobs by status, queue, error type, actor and tenant, and by the hour."""
    with access(asked.as_tenant) as work:
        with work.begin() as session:
            where = to_filter(session, asked, work.now)
            found = count_jobs(session, where, now=work.now)
            names = tenant_names(session, (c.name for c in found.by_tenant if isinstance(c.name, UUID)))
        if as_json:
            by_hour = [{"from": at, "jobs": jobs} for at, jobs in found.by_hour]
            by_tenant = [{**asdict(c), "tenant_name": _named(c, names)} for c in found.by_tenant]
            typer.echo(to_json({**asdict(found), "jobs": found.jobs, "by_hour": by_hour, "by_tenant": by_tenant}))
        elif not found.jobs:
            say("No failed job matches." if not where.is_empty else "No job has failed.")
        else:
            _show(found, names, work.now)


def _show(found: Stats, names: Mapping[UUID, str], now: datetime) -> None:
    """Print what there is, then since when, then of what."""
    line = Text.assemble((f"{counted(found.jobs, 'failed job')}: ", "bold"))
    for n, status in enumerate(STATUSES):
        line.append(", " if n else "").append(f"{found.by_status[status]:,} {status}", STATUS_STYLES[status])
    say(line)
    groups = Text(f"{counted(found.open_groups, 'group')} with open jobs")
    if found.regressed_groups:
        groups.append(f", {found.regressed_groups:,} REGRESSED", "bold red")
    say(groups)
    if found.oldest_pending is not None:
        say(f"The oldest pending failed {ago(found.oldest_pending, now)}")
    last_day = sum(jobs for _, jobs in found.by_hour)
    chart = Text("Last 24 hours |").append(bars([jobs for _, jobs in found.by_hour]), "cyan")
    say(chart.append(f"| {last_day:,} failed"))
    for title, counts in (
        ("queue", found.by_queue),
        ("error type", found.by_error_type),
        ("actor", found.by_actor),
        ("tenant", found.by_tenant),
    ):
        table = grid()
        table.add_column(title, ratio=1, overflow="ellipsis", no_wrap=True)
        table.add_column("open", justify="right", min_width=9, no_wrap=True)
        table.add_column("all", justify="right", min_width=9, no_wrap=True)
        table.width = min(console.width, 72)
        for count in counts:
            table.add_row(Text(_label(count, names)), f"{count.open:,}", f"{count.jobs:,}")
        console.print()
        console.print(table)


def bars(counts: list[int], *, ascii_only: bool | None = None) -> str:
    """Return a small chart in one line, a character a count.

    Arguments:
      ascii_only: Whether it must do without blocks; by default, what the terminal says.
    """
    steps = _ASCII if (console.options.ascii_only if ascii_only is None else ascii_only) else _BLOCKS
    most = max(counts, default=0)
    # The least is seen, too.
    return "".join(steps[-(-count * (len(steps) - 1) // most)] if count else steps[0] for count in counts)


def _label(count: Count, names: Mapping[UUID, str]) -> str:
    if count.name is None:
        return "(none)"
    name = _named(count, names)
    return f"{one_line(name)}  {count.name}" if name else one_line(str(count.name))


def _named(count: Count, names: Mapping[UUID, str]) -> str | None:
    return names.get(count.name) if isinstance(count.name, UUID) else None
