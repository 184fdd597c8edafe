"""``worker replays pause | resume | cancel``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from db.replays import runs
from worker.cli.failed.looks import say
from worker.cli.failed.options import Access, AsJson, AsTenant, access
from worker.cli.operator import By, operator_name
from worker.cli.replays.options import Detach, Ident, Module, the_replay
from worker.cli.replays.report import run, show_steps
from worker.cli.replays.words import next_steps, outcomes
from worker.replay.application import import_application
from worker.replay.words import in_json
from worker.text import short, to_json

Why = Annotated[str | None, typer.Option(help="Why; others are shown it.")]


def pause(ident: Ident, why: Why = None, as_tenant: AsTenant = None, as_json: AsJson = False, by: By = None) -> None:
    """Let a replay send no more for now; what was sent goes on, and closes its row."""
    with access(as_tenant) as work:
        _change(ident, work, runs.pause, "paused", as_json=as_json, by=operator_name(by), why=why)


def cancel(ident: Ident, why: Why = None, as_tenant: AsTenant = None, as_json: AsJson = False, by: By = None) -> None:
    """Let a replay send no more, ever; what was sent goes on, and closes its row."""
    with access(as_tenant) as work:
        _change(ident, work, runs.cancel, "cancelled", as_json=as_json, by=operator_name(by), why=why)


def resume(
    ident: Ident,
    module: Module = None,
    detach: Detach = False,
    as_tenant: AsTenant = None,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Let a replay go on that is paused or has stopped, or that nobody runs: here, or with --detach in a worker.

    Its ramp begins anew. Where another process runs it, look on.
    """
    with access(as_tenant) as work:
        who = operator_name(by)
        here = not detach and work.tenant_id is None
        # Before it is resumed, so that a module that cannot be imported leaves it as it is.
        broker = import_application(module or ()) if here else None
        with work.begin() as session:
            replay = the_replay(session, ident)
            if replay.state != "running":
                runs.resume(session, replay.id, by=who)
        run(replay.id, work, broker, by=who, detach=detach, as_json=as_json)


def _change(ident: str, work: Access, change: Callable[..., None], past: str, *, as_json: bool, **said: Any) -> None:
    with work.begin() as session:
        replay_id = the_replay(session, ident).id
        change(session, replay_id, **said)
        replay = runs.get(session, replay_id)
    assert replay is not None  # noqa: S101 - changed above
    if as_json:
        typer.echo(to_json(in_json(replay)))
        return
    say(f"Replay {short(replay_id)} is {past}: {outcomes(replay).plain}.")
    show_steps(next_steps(replay, work))
