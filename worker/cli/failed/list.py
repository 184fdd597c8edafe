"""``worker failed list``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.text import Text

from db.failed import FailedJobSummary, Filter, Page, find
from worker.cli.common import console
from worker.cli.failed.looks import grid, say, say_command, status_text
from worker.cli.failed.options import AsJson, access, filtered
from worker.failed.asked import OPEN, Asked, to_filter
from worker.tenants import tenant_names
from worker.text import age, last_name, one_line, short, to_json


@filtered
def list_(
    asked: Asked,
    limit: Annotated[int, typer.Option(help="Jobs of a page, 1 to 1000.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on where a page ended; it says how.")] = None,
    as_json: AsJson = False,
) -> None:
    """List failed jobs, newest first: those that are open, unless --status or ids say otherwise."""
    with access(asked.as_tenant) as work:
        with work.begin() as session:
            where = to_filter(session, asked, work.now, by_default=OPEN)
            page = find(session, where, after=after, limit=limit)
            names = tenant_names(session, (job.tenant_id for job in page.jobs))
        if as_json:
            typer.echo(to_json({"jobs": [in_json(job, names) for job in page.jobs], "next": page.next}))
            return
        if page.jobs:
            show_jobs(page.jobs, names, work.now)
        _say_rest(page, asked, where, limit, first=after is None)


def in_json(job: FailedJobSummary, names: Mapping[UUID, str]) -> dict[str, Any]:
    """Return a job as programs get it, with its tenant's name."""
    return {**asdict(job), "tenant_name": names.get(job.tenant_id) if job.tenant_id else None}


#: Characters at most of actor, error and tenant, where the terminal is narrow, and where it is not.
_NARROW: Final = {"actor": 16, "error": 14, "tenant": 9}
_WIDE: Final = {"actor": 26, "error": 22, "tenant": 16}


def show_jobs(jobs: Sequence[FailedJobSummary], names: Mapping[UUID, str], now: datetime) -> None:
    """Print a line for each job: what is short in full, and as much of the message as there is room for."""
    lines = [
        {
            "id": Text(short(job.id)),
            "age": Text(age(job.failed_at, now)),
            "actor": Text(one_line(last_name(job.task_name)), "bold"),
            "error": Text(one_line(last_name(job.exception_class)), "red"),
            "message": Text(one_line(job.error_message)),
            "tenant": tenant_text(job.tenant_id, names),
            "status": status_text(job.status, job.failures),
        }
        for job in jobs
    ]
    table = grid(*lines[0])
    at_most = _NARROW if console.width < 120 else _WIDE
    others = 0
    for name, column in zip(lines[0], table.columns, strict=True):
        if name != "message":
            needed = max(len(name), *(line[name].cell_len for line in lines))
            column.width = min(needed, at_most.get(name, needed))
            others += column.width + 1
    table.columns[4].width = max(10, console.width - others)
    for line in lines:
        table.add_row(*line.values())
    console.print(table)


def tenant_text(tenant_id: UUID | None, names: Mapping[UUID, str]) -> Text:
    """Return a tenant's name, or the beginning of its id."""
    if tenant_id is None:
        return Text("-", "dim")
    return Text(one_line(names.get(tenant_id) or "") or short(tenant_id))


def _say_rest(page: Page, asked: Asked, where: Filter, limit: int, *, first: bool) -> None:
    """Say what is not in the table: more of them, or that there are none."""
    only_open = not asked.status and not asked.ids
    if page.next is not None:
        words = f"list {asked.arguments(where)}".rstrip()
        say_command(f"\nMore: worker failed {words} --limit {limit} --after {page.next}")
    elif not page.jobs:
        say(_nothing(asked, only_open=only_open, first=first))
        return
    if only_open and first:
        say(f"{'' if page.next else chr(10)}Open ones only; --status all shows every one.", "dim")


def _nothing(asked: Asked, *, only_open: bool, first: bool) -> str:
    if not first:
        return "That was all."
    if only_open and not asked.narrows:
        return "No failed job waits for anybody. (--status all shows those that are closed.)"
    return "No open failed job matches; --status all looks at every one." if only_open else "No failed job matches."
