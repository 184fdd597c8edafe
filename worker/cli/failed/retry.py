"""``worker failed retry``: sends failed jobs again, and closes those that succeed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Annotated, Final
from uuid import UUID

import typer
from dramatiq import Broker
from dramatiq.errors import ConnectionClosed
from rich.text import Text

from db.failed import Filter, InvalidFilter
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import operator_transaction
from worker.cli.common import console, fail
from worker.cli.failed.confirm import confirm, described
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import grid, progressing, say
from worker.cli.failed.options import Access, AsJson, Yes, access, filtered
from worker.cli.operator import By, operator_name
from worker.cli.replays.options import (
    RAMP_DEFAULT,
    THRESHOLD_DEFAULT,
    WINDOW_DEFAULT,
    As,
    Detach,
    Module,
    Ramp,
    Rate,
    Reason,
    Threshold,
    Window,
    to_settings,
)
from worker.cli.replays.report import run
from worker.failed.asked import Asked, NoSuchJob
from worker.failed.choosing import Chosen, NothingToReplay, choose
from worker.failed.holding import held_fast
from worker.redis_client import make_redis
from worker.replay.application import NoSuchActor, check_is_there, import_application
from worker.replay.dry_run import DryRun, dry_run
from worker.replay.making import make_today
from worker.settings import Settings
from worker.text import counted, one_line, short, to_json

#: Jobs that are looked at before somebody is asked, and reasons that are named then.
_LOOKED_AT: Final = 5_000
_REASONS: Final = 5
#: Refused jobs that are named.
_NAMED: Final = 20


@filtered
def retry(
    asked: Asked,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many would go, and why the rest would not.")
    ] = False,
    sent_as: As = None,
    rate: Rate = None,
    ramp: Ramp = RAMP_DEFAULT,
    threshold: Threshold = THRESHOLD_DEFAULT,
    window: Window = WINDOW_DEFAULT,
    module: Module = None,
    detach: Detach = False,
    reason: Reason = None,
    yes: Yes = False,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Send jobs again: each once, few at first. Those that succeed are closed; those that fail again wait as before.

    By id, or all pending ones that match (abandoned ones with --status abandoned). What is sent is checked against the
    actors of the Procfile in this folder. Exit status 0 where all succeeded, else 3.
    """
    with access(asked.as_tenant) as work:
        settings = to_settings(rate=rate, ramp=ramp, threshold=threshold, window=window, actor=sent_as)
        who = operator_name(by)
        if dry and work.tenant_id is not None:
            raise ValueError("--dry-run is for operators: whoever is bound to a tenant cannot read originals")
        # Before a transaction: importing configures sessions.
        broker = None if work.tenant_id is not None else import_application(module or ())
        check_actor(broker, sent_as)
        chosen = _chosen(asked, work)
        if dry:
            _report_dry_run(check(chosen.where, settings, work, broker), chosen, as_json=as_json)
        if not chosen.where.ids and not yes:
            _ask(chosen.where, settings, work, broker)
        with work.begin() as session:
            replay_id = runs.create(session, chosen.where, settings, by=who, reason=reason)
        if not as_json:
            _say_refused(chosen.refused)
        run(replay_id, work, broker, by=who, detach=detach, as_json=as_json, left=len(chosen.refused))


def check_actor(broker: Broker | None, actor: str | None) -> None:
    """Check that there is an actor.

    Raises:
      ValueError: When there is none; the message names those that are called nearly so.
    """
    if broker is None or actor is None:
        return
    try:
        check_is_there(broker, actor)
    except NoSuchActor as e:
        raise ValueError(f"--as: {e}" + ("" if e.like else " (--module imports more)")) from None


def _chosen(asked: Asked, work: Access) -> Chosen:
    """Return which jobs are sent; ends the command where there is none."""
    if not asked.narrows:
        raise InvalidFilter("say which jobs: ids, or what they have in common (--help lists the filters)")
    with work.begin() as session:
        try:
            chosen = choose(session, asked, work.now)
        except NoSuchJob as e:
            fail(str(e), NOTHING)
        except NothingToReplay as e:
            if e.refused:
                _say_refused(e.refused)
                fail(str(e), NOTHING)
            found, words = described(session, e.where, work)
            fail(f"{e}: {f'it matches {words}' if found.jobs else 'no failed job matches'}", NOTHING)
        return chosen if chosen.where.ids else replace(chosen, where=held_fast(session, chosen.where))


def _say_refused(refused: Mapping[UUID, str]) -> None:
    for job_id, why in list(refused.items())[:_NAMED]:
        say(f"{job_id} {one_line(why)}", "yellow")
    if len(refused) > _NAMED:
        say(f"… and {len(refused) - _NAMED:,} others", "yellow")


def check(
    where: Filter, settings: ReplaySettings, work: Access, broker: Broker | None, *, at_most: int | None = None
) -> DryRun:
    """Return what a replay would do now; see :func:`worker.replay.dry_run.dry_run`.

    Raises:
      ConfigurationError: When Redis cannot be asked who consumes what.
    """
    assert broker is not None  # noqa: S101 - operators alone get here
    deployment = Settings.load()
    with make_redis(deployment) as client:
        try:
            today = make_today(deployment, broker, client, knows_all=True)
        except (ConnectionClosed, OSError) as e:
            fail(f"Redis cannot be asked which queues are consumed: {type(e).__name__}", 2)
    with progressing("jobs looked at") as progress, operator_transaction() as session:
        return dry_run(
            session,
            where,
            settings,
            today,
            now=work.now,
            keys=deployment.keys,
            renamed=deployment.renamed,
            at_most=at_most,
            progress=lambda found: progress(found.matched),
        )


def _ask(where: Filter, settings: ReplaySettings, work: Access, broker: Broker | None) -> None:
    """Ask whether to go on, where it is more than one job: with how many would go, and why the rest would not."""
    with work.begin() as session:
        found, words = described(session, where, work)
    if found.jobs < 2:
        return
    if broker is not None:
        looked = check(where, settings, work, broker, at_most=_LOOKED_AT)
        words += "\n" + "\n".join(_in_short(looked, found.jobs))
    confirm(words, f"Retry {counted(found.jobs, 'job')}?", yes=False)


def _in_short(looked: DryRun, jobs: int) -> Iterable[str]:
    of = f" of the {looked.matched:,} that failed first" if looked.matched < jobs else ""
    yield f"{looked.would_go:,}{of} would go now."
    for reason, number in looked.by_number[:_REASONS]:
        yield f"  {counted(number, 'job')} would not: {one_line(reason)}"
    if len(looked.refused) > _REASONS:
        yield "  and others would not (--dry-run says why)"


def _report_dry_run(looked: DryRun, chosen: Chosen, *, as_json: bool) -> None:
    """Say what a replay would do; ends the command: with status 0 where all would go."""
    if as_json:
        refused = {str(job_id): why for job_id, why in chosen.refused.items()}
        typer.echo(to_json({**asdict(looked), "not_replayable": refused}))
    else:
        _say_refused(chosen.refused)
        line = Text(f"{looked.would_go:,} of {counted(looked.matched, 'job')} would go", "bold")
        say(line.append("; nothing was changed.", "not bold"))
        if looked.refused:
            console.print()
            table = grid("jobs", "such as", "would not go, because")
            table.columns[0].justify = "right"
            table.columns[2].no_wrap, table.columns[2].overflow = False, "fold"
            for reason, number in looked.by_number:
                table.add_row(
                    Text(f"{number:,}"), Text(short(looked.examples[reason])), Text(one_line(reason), "yellow")
                )
            console.print(table)
    raise typer.Exit(0 if looked.would_go == looked.matched and looked.matched and not chosen.refused else NOTHING)
