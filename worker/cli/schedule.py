"""``worker schedule``: what is sent by the clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from dramatiq.errors import ConnectionFailed
from dramatiq.middleware import MiddlewareError
from rich.text import Text

from middleware.unique import outcome
from worker.cli.common import console, explained, fail
from worker.cli.failed.looks import grid
from worker.cli.redis_access import redis_access
from worker.cli.scheduler import Module
from worker.live import SchedulerState, scheduler_state
from worker.replay.application import import_application
from worker.scheduler.jobs import Job, jobs_of
from worker.scheduler.state import LEASE, Known, Sent, read
from worker.scheduler.tick import message_of
from worker.settings import Settings
from worker.text import counted, last_name, one_line, short_age, to_json

app = typer.Typer(invoke_without_command=True)

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a job stands."""

    job: Job
    last: Sent | None
    next_tick: datetime | None
    #: Seconds for which that has been due.
    late: float

    @classmethod
    def of(cls, job: Job, known: Known) -> _Standing:
        following = job.cron.after(known.handled.get((job.name, job.rule), known.now)) if job.on else None
        late = 0.0 if following is None else max(0.0, (known.now - following).total_seconds())
        return cls(job, known.sent.get(job.name), following, late)

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "name": self.job.name,
            "expression": self.job.cron.expression,
            "timezone": self.job.cron.timezone,
            "on": self.job.on,
            "changed": self.job.changed,
            "missed": self.job.schedule.missed,
            "tenant_id": self.job.schedule.tenant_id,
            "last": self.last,
            "next": self.next_tick,
            "late": round(self.late, 1),
        }


@app.callback()
def schedule(context: typer.Context, module: Module = None, as_json: AsJson = False) -> None:
    """Show what is sent by the clock, when it last was and will be next, and whether a scheduler lives."""
    if context.invoked_subcommand is not None:
        return
    with redis_access("schedule to look at") as (client, settings):
        jobs = jobs_of(import_application(module or ()), settings)
        known = read(client, settings.redis_namespace)
        state = scheduler_state(client, namespace=settings.redis_namespace)
    standings = [_Standing.of(job, known) for job in jobs]
    if as_json:
        typer.echo(to_json({"scheduler": state, "jobs": [standing.as_json() for standing in standings]}))
        return
    if standings:
        _show(standings, known.now)
    else:
        console.print("No actor has a schedule: @actor(schedule=...) gives it one.")
    for line in _lines(state, known.now, anything_on=any(job.on for job in jobs)):
        console.print(line, soft_wrap=True)


@app.command("run")
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An actor's name; the last part will do.")],
    module: Module = None,
) -> None:
    """Send a job now, on or off, beside what its schedule sends."""
    with explained():
        settings = Settings.load()
        broker = import_application(module or ())
        jobs = jobs_of(broker, settings)
        found = [job for job in jobs if job.name == name] or [job for job in jobs if last_name(job.name) == name]
        if len(found) != 1:
            known = ", ".join(job.name for job in found or jobs) or "none has"
            fail(f"{'more than one' if found else 'no'} actor {name!r} has a schedule: {known}")
        if settings.stub:
            fail("REDIS_URL: stub:// sends nothing", 2)
        try:
            sent = broker.enqueue(message_of(broker, found[0], None))
        except ConnectionFailed as e:
            fail(str(e), 2)
        except MiddlewareError as e:
            fail(str(e))
    became = outcome(sent)
    if not became.sent:
        fail(
            f"{found[0].name} is not sent, because there is one already: message {became.because_of} is {became.state}"
        )
    console.print(Text(f"{found[0].name} is sent: message {sent.message_id}"), soft_wrap=True)


def _show(standings: list[_Standing], now: datetime) -> None:
    table = grid()
    table.add_column("job", overflow="fold", min_width=12)
    table.add_column("when", overflow="fold", min_width=9)
    for column in ("last", "next"):
        table.add_column(column, no_wrap=True)
    table.add_column("state", no_wrap=True)
    for standing in standings:
        job = standing.job
        table.add_row(
            Text(one_line(job.name)),
            Text(f"{job.cron.expression} {'' if job.cron.timezone == 'UTC' else job.cron.timezone}".strip()),
            "-" if standing.last is None else _when(standing.last.tick),
            "-" if standing.next_tick is None else _when(standing.next_tick),
            _state(standing),
        )
    console.print(table)
    console.print(Text(f"now {_when(now)}; times are in UTC, and expressions where they name no other zone", "dim"))


def _state(standing: _Standing) -> Text:
    if not standing.job.on:
        return Text("off", "yellow")
    if standing.late > LEASE:
        return Text(f"late by {short_age(standing.late)}", "bold red")
    return Text("changed" if standing.job.changed else "on", "green")


def _lines(state: SchedulerState, now: datetime, *, anything_on: bool) -> Iterator[Text]:
    """Say how the schedulers are."""
    style = "bold red" if anything_on else ""
    if state.last_sign is None or state.name is None:
        yield Text("No scheduler was ever there: worker scheduler starts one.", style)
    elif not state.lives:
        yield Text(
            f"No scheduler lives: {one_line(state.name)} was last heard of {_ago(state.last_sign, now)}, "
            f"at {_when(state.last_sign)}. worker scheduler starts one.",
            style,
        )
    else:
        since = "" if state.since is None else f" since {_when(state.since)}"
        others = f"; {counted(state.living - 1, 'other')} beside it" if state.living > 1 else ""
        yield Text(f"{one_line(state.name)} lives{since}, last heard of {_ago(state.last_sign, now)}{others}.")


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _ago(then: datetime, now: datetime) -> str:
    return f"{short_age(max(0.0, (now - then).total_seconds()))} ago"
