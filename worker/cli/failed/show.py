"""``worker failed show``: a failed job as an incident page."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.orm import Session

from db.failed import Event, FailedJob, find, get
from worker.cli.common import console, fail
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.list import show_jobs
from worker.cli.failed.looks import STATUS_STYLES, heading, say, say_command
from worker.cli.failed.options import Access, AsJson, access, filtered
from worker.cli.replays.words import command
from worker.failed import advice, tracebacks, words
from worker.failed.asked import OPEN, Asked, NoSuchJob, to_filter
from worker.failed.incident import FRAMES, Gone, Incident, look, look_at
from worker.text import age, ago, counted, last_name, one_line, printable, short, to_json

#: Lines of a message, frames, events and jobs of one chain that are shown; --traceback shows a message and its frames
#: in full.
_LINES: Final = 12
_EVENTS: Final = 30


@filtered
def show(
    asked: Asked,
    traceback: Annotated[bool, typer.Option("--traceback", help="Every frame, and the whole message.")] = False,
    as_json: AsJson = False,
) -> None:
    """Explain a failed job: what, for whom, since when, how often, why, where, and what to do next.

    By id; without ids the newest that matches and is open.
    """
    with access(asked.as_tenant) as work:
        with work.begin() as session:
            incidents = [look(session, job) for job in _find(session, asked, work, as_json=as_json)]
        for n, incident in enumerate(incidents):
            if as_json:
                typer.echo(to_json(_in_json(incident, work)))
                continue
            if n:
                console.rule(style="dim")
            _show(incident, work, full=traceback)


def _find(session: Session, asked: Asked, work: Access, *, as_json: bool) -> list[FailedJob]:
    try:
        where = to_filter(session, asked, work.now, by_default=OPEN)
    except NoSuchJob as e:
        fail(str(e), NOTHING)
    if not where.ids:
        found = [get(session, job.id) for job in find(session, where, limit=1).jobs]
        if not found:
            fail("no failed job matches", NOTHING)
    else:
        matching = {job.id for job in find(session, where, limit=1_000).jobs}
        found = [get(session, job_id) for job_id in where.ids if job_id in matching]
        missing = [str(job_id) for job_id in where.ids if job_id not in matching]
        if missing:
            for job_id in [] if as_json else missing:
                _show_what_was(session, UUID(job_id), work.now)
            fail(f"no such failed job: {', '.join(missing)}", NOTHING)
    return [job for job in found if job is not None]


def _show_what_was(session: Session, job_id: UUID, now: datetime) -> None:
    """Print what is known of a job that was removed: its history outlives it."""
    try:
        found = look_at(session, job_id)
    except NoSuchJob:
        return
    if isinstance(found, Gone):
        say(Text.assemble(("GONE  ", "bold"), str(job_id)))
        _show_history(found.history, now)


def _in_json(incident: Incident, work: Access) -> dict[str, Any]:
    job, group = incident.job, incident.group
    return {
        **asdict(job),
        "tenant_name": incident.names.get(job.tenant_id) if job.tenant_id else None,
        "group": group and {**asdict(group), "open": group.open, "regressed": group.regressed},
        "exceptions": [asdict(raised) for raised in incident.raised],
        "history": incident.history,
        "chain": incident.chain,
        "replays": incident.replays,
        "waiting": incident.waiting,
        "advice": advice.first(job, replayed=incident.held_by is not None),
        "next_steps": _steps(incident, work, full=True),
    }


def _show(incident: Incident, work: Access, *, full: bool) -> None:
    """Print the page, what matters first."""
    _show_head(incident.job)
    _show_facts(incident, work.now)
    _show_where(incident.raised, full=full)
    _show_message(incident.job, full=full)
    _show_arguments(incident.job)
    _show_attempts(incident.job, incident.group.place if incident.group else None, work.now)
    _show_history(incident.history, work.now)
    _show_chain(incident, work.now)
    _show_steps(incident, work, full=full)


def _show_head(job: FailedJob) -> None:
    say(Text.assemble((f"{job.status.upper()}  ", STATUS_STYLES[job.status])).append(str(job.id), "bold"))
    title = Text.assemble((one_line(job.exception_class), "bold red"))
    message = one_line(job.error_message)
    say(title.append(f": {message[:500]}", "red") if message else title)
    console.print()


def _show_facts(incident: Incident, now: datetime) -> None:
    job, group = incident.job, incident.group
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")

    def fact(name: str, value: str | Text) -> None:
        facts.add_row(name, Text(printable(value)) if isinstance(value, str) else value)

    queue = f" on queue {job.queue}" if job.queue else ""
    fact("what", Text.assemble((one_line(job.task_name), "bold"), printable(queue)))
    fact("for", words.tenant(job.tenant_id, incident.names))
    fact("kind", job.error_type)
    fact("failed", ago(job.failed_at, now) + (f", {job.failures:,} times by now" if job.failures > 1 else ""))
    fact("tried", words.tried(job, now))
    if group is not None:
        fact("group", words.of_group(group, now))
    if group is not None and group.regressed_at is not None:
        fact("", Text(f"REGRESSED {ago(group.regressed_at, now)}: it had been resolved", "bold red"))
    of_more = "" if job.correlation_id is None else f"correlation id {job.correlation_id}, "
    fact("work", f"{of_more}message {job.task_id}")
    if incident.waiting is not None:
        fact("replay", Text(words.waiting(incident.waiting, now), "cyan"))
    if incident.replays:
        last = incident.replays[0]
        fact("replay", f"{age(last.claimed_at, now)} ago replay {short(last.replay_id)} {words.part(last)}")
    if job.resolved_at is not None:
        fact("resolved", ago(job.resolved_at, now))
    if job.remediation_notes:
        fact("notes", job.remediation_notes)
    fact("original", words.original(job))
    console.print(facts)


def _show_where(raised: list[tracebacks.Raised], *, full: bool) -> None:
    if not raised:
        return
    if full:
        heading("Every frame, innermost first; * marks the application's own")
    else:
        heading("Where, in the application's own code, innermost first")
    for n, each in enumerate(raised):
        if n and (each.said or each.frames):
            said = one_line(each.said[0]) if each.said else "?"
            say(Text.assemble((f"  {each.link or 'after'} ", "dim"), (said[:300], "red")))
        shown = each.frames if full else each.own[-FRAMES:]
        for frame in reversed(shown):
            _show_frame(frame, mark=full)
        folded = len(each.frames) - len(shown)
        if folded:
            own = "" if len(each.own) <= FRAMES else " and outer ones of its own"
            nothing = "" if shown else "none of its own; "
            say(f"  {nothing}{counted(folded, 'frame')} of libraries{own} folded", "dim")


def _show_frame(frame: tracebacks.Frame, *, mark: bool) -> None:
    star = ("* " if frame.own else "  ") if mark else ""
    path = printable(tracebacks.short_path(frame.file))
    line = Text(f"  {star}").append(f"{path}:{frame.line}", "cyan").append(f" {printable(frame.function)}", "bold")
    say(line)
    for code in frame.code[:3]:
        say(Text(f"  {' ' * len(star)}    {printable(code)}", "" if frame.own else "dim"))


def _show_message(job: FailedJob, *, full: bool) -> None:
    """Print the message where its first line does not say it all."""
    lines = printable(job.error_message.strip()).splitlines()
    if len(lines) < 2:
        return
    heading("Message")
    for line in lines if full else lines[:_LINES]:
        say(f"  {line}" if full else f"  {line[:500]}")
    if not full and len(lines) > _LINES:
        say(f"  … {len(lines) - _LINES:,} more lines (--traceback)", "dim")


def _show_arguments(job: FailedJob) -> None:
    if job.forgotten_at is not None or not (job.task_args or job.task_kwargs):
        return
    heading("Arguments, redacted")
    named = [("", value) for value in job.task_args or ()]
    named += [(f"{name}=", value) for name, value in (job.task_kwargs or {}).items()]
    for name, value in named:
        # For the eye, so as it is and not as escapes; what would drive the terminal is escaped nevertheless.
        say(f"  {one_line(name)}{printable(json.dumps(value, ensure_ascii=False))[:2_000]}")


def _show_attempts(job: FailedJob, place: str | None, now: datetime) -> None:
    if not job.attempts:
        return
    heading(f"Attempts, the last {len(job.attempts)}" if len(job.attempts) > 1 else "Attempt")
    lines = _lines()
    for attempt in job.attempts:
        what = Text.assemble((one_line(last_name(str(attempt.get("exception_class")))), "red"))
        message = one_line(str(attempt.get("message") or ""))[:200]
        what.append(f": {message}" if message else "")
        if attempt.get("place") not in {None, place}:
            what.append(f" at {one_line(str(attempt['place']))}", "dim")
        what.append(f" on {one_line(str(attempt.get('worker') or '?'))}", "dim")
        at = words.attempted_at(attempt)
        lines.add_row(f"{age(at, now)} ago" if at else "?", what)
    console.print(lines)


def _lines() -> Table:
    """Return what holds lines that begin with a time."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(style="dim", no_wrap=True, justify="right", min_width=9)
    lines.add_column(overflow="fold")
    return lines


def _show_history(events: list[Event], now: datetime) -> None:
    heading("History")
    if len(events) > _EVENTS:
        say(f"  … {len(events) - _EVENTS:,} earlier events (--json)", "dim")
    lines = _lines()
    for event in events[-_EVENTS:]:
        line = Text.assemble((one_line(event.event), "bold"), f" by {one_line(event.changed_by)}")
        said = one_line(event.reason or "")
        line.append(f": {said}" if said else "")
        changes = words.changes(event)
        line.append(f" ({changes})" if changes else "", "dim")
        lines.add_row(f"{age(event.happened_at, now)} ago", line)
    console.print(lines)


def _show_chain(incident: Incident, now: datetime) -> None:
    if len(incident.chain) < 2:
        return
    heading("Failed in the same piece of work, in this order")
    show_jobs(incident.chain, incident.names, now)


def _steps(incident: Incident, work: Access, *, full: bool) -> list[advice.Step]:
    """Return what can be done about it."""
    found = advice.steps(
        incident.job,
        incident.group,
        len(incident.chain),
        work.command,
        truncated=not full and incident.folds,
        replayed=incident.held_by is not None,
    )
    if incident.held_by is None or incident.held_by.replay_state is None:
        return found
    return [advice.Step(command(work, f"show {short(incident.held_by.replay_id)}"), "the replay that has it"), *found]


def _show_steps(incident: Incident, work: Access, *, full: bool) -> None:
    heading("What next")
    for sentence in (advice.closed(incident.job), advice.first(incident.job, replayed=incident.held_by is not None)):
        if sentence:
            console.print(Padding(Text(sentence), (0, 0, 0, 2)))
    for step in _steps(incident, work, full=full):
        say_command(f"  {step.command}", f"  # {step.purpose}")
