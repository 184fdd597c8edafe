"""Says what became of a replay, and what to do next."""

from __future__ import annotations

from typing import Final, NoReturn
from uuid import UUID

import typer
from dramatiq import Broker
from rich.padding import Padding
from rich.text import Text

from db.replays import items, runs
from db.replays.items import Reason, Refailed
from db.replays.runs import Replay
from worker.cli.common import console
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import heading, say, say_command
from worker.cli.failed.options import Access
from worker.cli.replays.running import follow
from worker.cli.replays.words import command, next_steps, outcomes
from worker.replay.editing import Changed
from worker.replay.words import WAITS, all_succeeded, in_json, not_sent
from worker.text import counted, last_name, one_line, printable, short, to_json

#: Jobs that failed again and are named.
_NAMED: Final = 5


def run(
    replay_id: UUID, work: Access, broker: Broker | None, *, by: str, detach: bool, as_json: bool, left: int = 0
) -> NoReturn:
    """Run a replay that was made, unless somebody else is to, and say what became of it; ends the command.

    Arguments:
      replay_id: Which.
      work: Whose.
      broker: With every actor imported, where this process is to run it.
      by: Who.
      detach: Leave it to a worker.
      as_json: For programs.
      left: Jobs that were named and could not be part of it.
    """
    if not detach:
        report(follow(replay_id, work, broker, by=by), work, as_json=as_json, left=left)
    with work.begin() as session:
        replay = runs.get(session, replay_id)
    assert replay is not None  # noqa: S101 - made above
    if as_json:
        typer.echo(to_json(in_json(replay)))
    else:
        say(f"Replay {short(replay_id)} is made; a worker that consumes housekeeping runs it.")
        ident = short(replay_id)
        show_steps([(command(work, f"show {ident}"), "how far it is"), *next_steps(replay, work)])
    raise typer.Exit(NOTHING if left else 0)


def report(replay: Replay, work: Access, *, as_json: bool, left: int = 0) -> NoReturn:
    """Say what became of how many, why, and what to do next; end the command: with status 0 where all succeeded.

    Arguments:
      replay: As it stands.
      work: Whose.
      as_json: For programs.
      left: Jobs that were named and could not be part of it.
    """
    with work.begin() as session:
        reasons = items.reasons(session, replay.id)
        failures = items.last_failures(session, replay.id, limit=_NAMED)
    steps = next_steps(replay, work)
    if as_json:
        next_ = [{"command": command_, "purpose": purpose} for command_, purpose in steps]
        typer.echo(to_json({**in_json(replay), "reasons": reasons, "failures": failures, "next_steps": next_}))
    else:
        _say_end(replay)
        show_reasons(reasons)
        show_failures(failures, replay.items.get("failed", 0))
        show_steps(steps)
    raise typer.Exit(0 if all_succeeded(replay) and not left else NOTHING)


def _say_end(replay: Replay) -> None:
    line = Text(f"Replay {short(replay.id)} ")
    match replay.state:
        case "finished":
            line.append("finished: ")
        case "running":
            line.append(f"waits: {WAITS}. So far: ", "yellow")
        case "stopped":
            line.append(f"stopped by itself: {one_line(replay.why or '')}. ", "bold red")
        case _:
            why = one_line(replay.why or "")
            line.append(f"{replay.state}{f' ({why})' if why else ''}: ")
    line.append(outcomes(replay)).append(".")
    left = not_sent(replay)
    if replay.state != "finished" and left:
        line.append(f" {counted(left, 'job was', 'jobs were')} not sent.")
    if replay.matched == 0:
        line.append(" No job matched when it ran.")
    say(line)


def show_reasons(reasons: list[Reason]) -> None:
    """Print why jobs were not sent."""
    for reason in reasons:
        line = Text(f"not sent, {counted(reason.jobs, 'job')} ({short(reason.example)}): ", "yellow")
        _show_indented(line.append(one_line(reason.why), "default"))


def show_failures(failures: list[Refailed], number: int) -> None:
    """Print the last jobs that failed again, of ``number``."""
    for failure in failures:
        error = one_line(last_name(failure.exception_class or "?"))
        line = Text(f"failed again, {short(failure.failed_job_id)}: ").append(error, "red")
        message = one_line(failure.error_message or "")
        _show_indented(line.append(f": {message}"[:300] if message else ""))
    if number > len(failures):
        _show_indented(Text(f"… and {number - len(failures):,} others", "dim"))


def _show_indented(line: Text) -> None:
    console.print(Padding(line, (0, 0, 0, 2)))


def show_steps(steps: list[tuple[str, str]]) -> None:
    """Print what to do next."""
    if steps:
        heading("What next")
        for words, purpose in steps:
            say_command(f"  {words}", f"  # {purpose}")


def show_changed(changed: list[Changed]) -> None:
    """Print arguments before and after."""
    for one in changed:
        say(Text(f"  {one_line(one.name)}", "bold"))
        for sign, value, style in (("-", one.before, "red"), ("+", one.after, "green")):
            if value is not None:
                say(Text(f"    {sign} {printable(value)[:2_000]}", style))
