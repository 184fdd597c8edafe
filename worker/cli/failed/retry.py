"""``worker failed retry``: sends failed jobs again, and closes those that succeed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Final
from uuid import UUID

import typer
from dramatiq import Broker
from dramatiq.errors import ConnectionClosed
from rich.text import Text
from sqlalchemy.orm import Session

from db.failed import Filter, InvalidFilter, Status, find
from db.failed.statuses import why_not
from db.replays import runs
from db.replays.items import holders
from db.replays.runs import ReplaySettings
from db.session import operator_transaction
from worker.cli.common import console, fail
from worker.cli.failed.confirm import confirm, described, held_fast
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import grid, progressing, say
from worker.cli.failed.options import Access, AsJson, Asked, NoSuchJob, Yes, access, filtered, statuses, to_filter
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
from worker.cli.replays.words import sends_it
from worker.cli.text import counted, one_line, short, to_json
from worker.redis_client import make_redis
from worker.replay.application import import_application
from worker.replay.dry_run import DryRun, dry_run
from worker.replay.making import make_today
from worker.settings import Settings

#: What a replay takes jobs from.
REPLAYABLE: Final[tuple[Status, ...]] = ("pending", "abandoned")
#: Jobs that are looked at before somebody is asked, and reasons that are named then.
_LOOKED_AT: Final = 5_000
_REASONS: Final = 5
#: Refused jobs that are named, and ids looked up at a time.
_NAMED: Final = 20
_AT_ONCE: Final = 1_000


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


@dataclass(frozen=True, slots=True)
class Chosen:
    """Jobs that a replay is for, and those that were named and that it cannot be for, with the reason."""

    where: Filter
    refused: dict[UUID, str]


def check_actor(broker: Broker | None, actor: str | None) -> None:
    """Check that there is an actor.

    Raises:
      ValueError: When there is none; the message names those that are called nearly so.
    """
    if broker is None or actor is None or actor in broker.actors:
        return
    like = difflib.get_close_matches(actor, broker.actors, n=3, cutoff=0.5)
    like += [name for name in broker.actors if name.endswith(f".{actor.rpartition('.')[2]}") and name not in like]
    raise ValueError(
        f"--as: there is no actor {actor!r} in the modules that were imported"
        + (f"; there is {', '.join(like[:5])}" if like else " (--module imports more)")
    )


def _chosen(asked: Asked, work: Access) -> Chosen:
    """Return which jobs are sent; ends the command where there is none."""
    with work.begin() as session:
        try:
            where = to_filter(session, asked, work.now)
        except NoSuchJob as e:
            fail(str(e), NOTHING)
        if where.is_empty and not asked.status:
            raise InvalidFilter("say which jobs: ids, or what they have in common (--help lists the filters)")
        if where.ids:
            return _chosen_by_id(session, where)
        # Those that were given up only where somebody asks for them.
        wanted: tuple[Status, ...] = statuses(asked) or (REPLAYABLE if asked.status else ("pending",))
        able = tuple(status for status in REPLAYABLE if status in wanted)
        narrowed = replace(where, status=able)
        if not able or not find(session, narrowed, limit=1).jobs:
            found, words = described(session, where, work)
            fail(f"nothing to retry: {f'it matches {words}' if found.jobs else 'no failed job matches'}", NOTHING)
        return Chosen(held_fast(session, narrowed), {})


def _chosen_by_id(session: Session, where: Filter) -> Chosen:
    """Return those of the jobs that were named that can be sent, and why the others cannot."""
    there = _statuses(session, Filter(ids=where.ids))
    matching = _statuses(session, where)
    replays = holders(session, where.ids)
    refused: dict[UUID, str] = {}
    for job_id in where.ids:
        if job_id not in there:
            refused[job_id] = "is not there"
        elif there[job_id] == "in_progress" and job_id in replays:
            refused[job_id] = f"{why_not('in_progress', 'in_progress')}: replay {sends_it(replays[job_id])}"
        elif there[job_id] not in REPLAYABLE:
            refused[job_id] = why_not(there[job_id], "in_progress")
        elif job_id not in matching:
            refused[job_id] = "does not match the other filters"
    left = tuple(job_id for job_id in where.ids if job_id not in refused)
    if not left:
        _say_refused(refused)
        fail("nothing to retry", NOTHING)
    return Chosen(replace(where, ids=left), refused)


def _statuses(session: Session, where: Filter) -> dict[UUID, Status]:
    found: dict[UUID, Status] = {}
    for n in range(0, len(where.ids), _AT_ONCE):
        page = find(session, replace(where, ids=where.ids[n : n + _AT_ONCE]), limit=_AT_ONCE)
        found |= {job.id: job.status for job in page.jobs}
    return found


def _say_refused(refused: dict[UUID, str]) -> None:
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
    for reason, number in _by_number(looked)[:_REASONS]:
        yield f"  {counted(number, 'job')} would not: {one_line(reason)}"
    if len(looked.refused) > _REASONS:
        yield "  and others would not (--dry-run says why)"


def _by_number(looked: DryRun) -> list[tuple[str, int]]:
    return sorted(looked.refused.items(), key=lambda one: (-one[1], one[0]))


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
            for reason, number in _by_number(looked):
                table.add_row(
                    Text(f"{number:,}"), Text(short(looked.examples[reason])), Text(one_line(reason), "yellow")
                )
            console.print(table)
    raise typer.Exit(0 if looked.would_go == looked.matched and looked.matched and not chosen.refused else NOTHING)
