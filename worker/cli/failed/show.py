"""``worker failed show``: a failed job as an incident page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.orm import Session

from db.failed import Event, FailedJob, FailedJobSummary, Group, chain, find, get, get_group, history
from db.replays.items import Holder, holders
from worker.cli.common import console, fail
from worker.cli.failed import advice, tracebacks
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.list import show_jobs
from worker.cli.failed.looks import STATUS_STYLES, heading, say, say_command
from worker.cli.failed.options import OPEN, Access, AsJson, Asked, NoSuchJob, access, filtered, to_filter
from worker.cli.replays.words import command, sends_it
from worker.cli.text import age, ago, counted, last_name, one_line, printable, short, to_json
from worker.tenants import tenant_names

#: Lines of a message, frames, events and jobs of one chain that are shown; --traceback shows a message and its frames
#: in full.
_LINES: Final = 12
_FRAMES: Final = 8
_EVENTS: Final = 30
_CHAIN: Final = 20


@dataclass(frozen=True, slots=True)
class Incident:
    """All that is known of a failed job."""

    job: FailedJob
    #: Where it has one.
    group: Group | None
    history: list[Event]
    #: The failed jobs of the same piece of work, this one among them.
    chain: list[FailedJobSummary]
    names: Mapping[UUID, str]
    raised: list[tracebacks.Raised]
    #: The replay that it is in progress for.
    replay: Holder | None

    @property
    def folds(self) -> bool:
        """Whether frames are left out, unless all are asked for."""
        return any(not frame.own for raised in self.raised for frame in raised.frames) or any(
            len(raised.own) > _FRAMES for raised in self.raised
        )

    def steps(self, work: Access, *, full: bool) -> list[advice.Step]:
        """Return what can be done about it."""
        found = advice.steps(
            self.job,
            self.group,
            len(self.chain),
            work.command,
            truncated=not full and self.folds,
            replayed=self.replay is not None,
        )
        if self.replay is None or self.replay.state is None:
            return found
        looks = advice.Step(command(work, f"show {short(self.replay.id)}"), "the replay that has it")
        return [looks, *found]


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
            incidents = [_look(session, job) for job in _find(session, asked, work, as_json=as_json)]
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


def _look(session: Session, job: FailedJob) -> Incident:
    chained = chain(session, job.correlation_id, limit=_CHAIN) if job.correlation_id else []
    group = get_group(session, job.fingerprint) if job.fingerprint else None
    return Incident(
        job=job,
        group=group,
        history=history(session, job.id),
        chain=chained,
        names=tenant_names(session, [job.tenant_id, *(other.tenant_id for other in chained)]),
        replay=holders(session, [job.id]).get(job.id),
        raised=tracebacks.parse(job.traceback, job.task_name, group.place if group else None) if job.traceback else [],
    )


def _show_what_was(session: Session, job_id: UUID, now: datetime) -> None:
    """Print what is known of a job that was removed: its history outlives it."""
    events = history(session, job_id)
    if events and get(session, job_id) is None:
        say(Text.assemble(("GONE  ", "bold"), str(job_id)))
        _show_history(events, now)


def _in_json(incident: Incident, work: Access) -> dict[str, Any]:
    job, group = incident.job, incident.group
    return {
        **asdict(job),
        "tenant_name": incident.names.get(job.tenant_id) if job.tenant_id else None,
        "group": group and {**asdict(group), "open": group.open, "regressed": group.regressed},
        "exceptions": [asdict(raised) for raised in incident.raised],
        "history": incident.history,
        "chain": incident.chain,
        "replay": incident.replay,
        "advice": advice.first(job, replayed=incident.replay is not None),
        "next_steps": incident.steps(work, full=True),
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
    fact("for", _tenant(job.tenant_id, incident.names))
    fact("kind", job.error_type)
    fact("failed", ago(job.failed_at, now) + (f", {job.failures:,} times by now" if job.failures > 1 else ""))
    fact("tried", _tried(job, now))
    if group is not None:
        fact("group", _of_group(group, now))
    if group is not None and group.regressed_at is not None:
        fact("", Text(f"REGRESSED {ago(group.regressed_at, now)}: it had been resolved", "bold red"))
    fact("work", f"correlation id {job.correlation_id}, message {job.task_id}")
    if incident.replay is not None:
        fact("replay", sends_it(incident.replay))
    if job.resolved_at is not None:
        fact("resolved", ago(job.resolved_at, now))
    if job.remediation_notes:
        fact("notes", job.remediation_notes)
    fact("original", _original(job))
    console.print(facts)


def _tenant(tenant_id: UUID | None, names: Mapping[UUID, str]) -> str:
    if tenant_id is None:
        return "no tenant"
    name = one_line(names.get(tenant_id) or "")
    return f"{name} ({tenant_id})" if name else str(tenant_id)


def _tried(job: FailedJob, now: datetime) -> str:
    said = counted(job.retry_count + 1, "time")
    if job.last_retry_at is not None:
        said += f", last begun {ago(job.last_retry_at, now)}"
    return said + (f", on {job.worker}" if job.worker else "")


def _of_group(group: Group, now: datetime) -> str:
    statuses = {"in_progress": "in progress"}
    counts = ", ".join(
        f"{getattr(group, s):,} {statuses.get(s, s)}"
        for s in ("pending", "in_progress", "resolved", "abandoned")
        if getattr(group, s)
    )
    return (
        f"{group.fingerprint[:8]}: failed {counted(group.failures, 'time')} for {_for_whom(group)}, "
        f"first {age(group.first_seen, now)} ago, last {age(group.last_seen, now)} ago ({counts or 'no rows left'})"
    )


def _for_whom(group: Group) -> str:
    if not group.tenants:
        return "no tenant"
    return counted(group.tenants, "tenant") + (" and without one" if group.without_tenant else "")


def _original(job: FailedJob) -> str:
    if job.forgotten_at is not None:
        return f"forgotten {job.forgotten_at:%Y-%m-%d}, and the arguments with it"
    if job.has_original is None:
        return "for operators of all tenants alone"
    if not job.has_original:
        return "not kept"
    return "kept, encrypted" if job.original_sealed else "kept"


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
        shown = each.frames if full else each.own[-_FRAMES:]
        for frame in reversed(shown):
            _show_frame(frame, mark=full)
        folded = len(each.frames) - len(shown)
        if folded:
            own = "" if len(each.own) <= _FRAMES else " and outer ones of its own"
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
        lines.add_row(_when(attempt.get("at"), now), what)
    console.print(lines)


def _lines() -> Table:
    """Return what holds lines that begin with a time."""
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(style="dim", no_wrap=True, justify="right", min_width=9)
    lines.add_column(overflow="fold")
    return lines


def _when(at: object, now: datetime) -> str:
    try:
        return f"{age(datetime.fromisoformat(str(at)), now)} ago"
    except (ValueError, TypeError):
        return "?"


def _show_history(events: list[Event], now: datetime) -> None:
    heading("History")
    if len(events) > _EVENTS:
        say(f"  … {len(events) - _EVENTS:,} earlier events (--json)", "dim")
    lines = _lines()
    for event in events[-_EVENTS:]:
        line = Text.assemble((one_line(event.event), "bold"), f" by {one_line(event.changed_by)}")
        said = one_line(event.reason or "")
        line.append(f": {said}" if said else "")
        changes = _changes(event)
        line.append(f" ({changes})" if changes else "", "dim")
        lines.add_row(f"{age(event.happened_at, now)} ago", line)
    console.print(lines)


#: Columns whose change is no news, or too long; and events whose name says what the status is.
_SAID: Final = {"status", "remediation_notes", "resolved_at", "failed_at", "last_retry_at", "error_message"}
_MOVES: Final = {"claimed", "released", "resolved", "abandoned", "reopened", "failed_again"}


def _changes(event: Event) -> str:
    """Return what changed, as far as the event's name does not say it."""
    if event.event == "edited" and event.after is not None and "arguments" in event.after:
        return printable(", ".join(map(str, event.after["arguments"])))
    if event.event == "captured" or event.before is None or event.after is None:
        return ""
    known = _SAID if event.event in _MOVES else _SAID - {"status"}
    told = [
        f"{name} {_value(event.before.get(name))} -> {_value(event.after.get(name))}"
        for name in event.after
        if name not in known
    ]
    return printable(", ".join(told))


def _value(value: object) -> str:
    return one_line(str(value))[:60] if value is not None else "nothing"


def _show_chain(incident: Incident, now: datetime) -> None:
    if len(incident.chain) < 2:
        return
    heading("Failed in the same piece of work, in this order")
    show_jobs(incident.chain, incident.names, now)


def _show_steps(incident: Incident, work: Access, *, full: bool) -> None:
    heading("What next")
    for sentence in (advice.closed(incident.job), advice.first(incident.job, replayed=incident.replay is not None)):
        if sentence:
            console.print(Padding(Text(sentence), (0, 0, 0, 2)))
    for step in incident.steps(work, full=full):
        say_command(f"  {step.command}", f"  # {step.purpose}")
