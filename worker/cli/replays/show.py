"""``worker replays show``."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from db.replays import items
from db.replays.runs import Replay
from worker.cli.common import console
from worker.cli.failed.looks import heading, say
from worker.cli.failed.options import Access, AsJson, AsTenant, access
from worker.cli.replays.options import Ident, the_replay
from worker.cli.replays.report import show_changed, show_failures, show_reasons, show_steps
from worker.cli.replays.words import STATE_STYLES, arguments_of, next_steps, outcomes
from worker.replay import editing
from worker.replay.words import in_json, not_sent
from worker.settings import Settings
from worker.text import ago, counted, one_line, printable, to_json

#: Jobs that failed again and are named.
_FAILURES = 10


def show(ident: Ident, as_tenant: AsTenant = None, as_json: AsJson = False) -> None:
    """Show a replay: which jobs, how it goes, what became of them, and what to do next."""
    with access(as_tenant) as work:
        with work.begin() as session:
            replay = the_replay(session, ident)
            reasons = items.reasons(session, replay.id)
            failures = items.last_failures(session, replay.id, limit=_FAILURES)
            edit = editing.shown_of(session, replay, Settings.load().keys)
        steps = next_steps(replay, work)
        if as_json:
            next_ = [{"command": command, "purpose": purpose} for command, purpose in steps]
            shown = {"reasons": reasons, "failures": failures, "edit": edit, "next_steps": next_}
            typer.echo(to_json({**in_json(replay), **shown}))
            return
        say(Text(f"{replay.state.upper()}  ", STATE_STYLES[replay.state]).append(str(replay.id), "bold"))
        if replay.why:
            say(Text(one_line(replay.why), "bold" if replay.state == "stopped" else ""))
        console.print()
        _show_facts(replay, work)
        if edit is not None:
            heading("Edited arguments, redacted")
            show_changed(edit)
        if reasons:
            heading("Not sent, and why")
            show_reasons(reasons)
        if failures:
            heading("Failed again, the last first")
            show_failures(failures, replay.items.get("failed", 0))
        show_steps(steps)


def _show_facts(replay: Replay, work: Access) -> None:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    settings = replay.settings

    def fact(name: str, value: str | Text) -> None:
        facts.add_row(name, Text(printable(value)) if isinstance(value, str) else value)

    fact("which", arguments_of(replay.filter))
    left = not_sent(replay)
    came_to = outcomes(replay).append(f", {left:,} not sent" if left else "")
    fact("jobs", Text(f"{replay.matched:,}: " if replay.matched is not None else "").append(came_to))
    fact("made", f"{ago(replay.created_at, work.now)} by {one_line(replay.created_by)}")
    if replay.reason:
        fact("because", one_line(replay.reason))
    fact("for", f"tenant {replay.tenant_id}, whose jobs alone it sends" if replay.tenant_id else "all tenants")
    if replay.state == "running":
        fact("run by", one_line(replay.runner) if replay.runner else "nobody: a worker that consumes housekeeping does")
    if replay.finished_at is not None:
        fact("ended", ago(replay.finished_at, work.now))
    rate = f", {settings.rate:g} a second at most" if settings.rate else ""
    fact("ramp", ", ".join(f"{step:,}" for step in settings.ramp) + f" under way{rate}")
    fact("stops", f"when more than {settings.threshold:.0%} of the last {counted(settings.window, 'job')} fail again")
    if settings.actor:
        fact("sent as", one_line(settings.actor))
    if settings.edit is not None:
        fact("edited", printable(", ".join(map(str, settings.edit.get("changed") or ()))))
    console.print(facts)
