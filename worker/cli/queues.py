"""``worker queues list | pause | resume | purge | adopt``; :mod:`worker.cli.shares` has the others.

They ask Redis alone, but for the history of what they do, and for what ``adopt`` records.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Annotated, Any
from uuid import UUID

import redis
import typer
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from db.alone import alone
from db.errors import ConfigurationError
from db.outbox import InQueue, by_queue
from db.session import operator_transaction
from middleware.lua_scripts import Scripts
from middleware.tally import OUTCOMES
from worker.adoption import ALONE, adopt, count_dead, told_of_others
from worker.cli.audit import keep_event, keep_event_if_possible
from worker.cli.common import configure_sessions, console, fail
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import grid
from worker.cli.operator import By, operator_name
from worker.cli.redis_access import redis_access
from worker.cli.tenants_of_queues import show_tenants
from worker.live import Throughput, throughput
from worker.queue_admin import Audit, Found, Pause, QueueState, count_messages, list_queues, pause, purge, resume
from worker.queue_admin.audit import PURGED
from worker.queue_admin.outbox import count_outbox, remove_from_outbox
from worker.queues import Queue
from worker.replay.application import import_application
from worker.replay.removed import release_removed
from worker.settings import Settings
from worker.tenants import tenant_named
from worker.text import counted, short_age

app = typer.Typer(no_args_is_help=True)

#: Who is told of what operators do here, and of what cannot be undone.
audit: Audit = keep_event_if_possible
strict_audit: Audit = keep_event

AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; others are shown it.")]
Named = Annotated[str, typer.Argument(metavar="QUEUE", help="A queue's name; worker queues list shows them.")]


@app.command("list")
def list_(
    by_tenant: Annotated[
        bool, typer.Option("--by-tenant", help="Show whose messages they hold, those with most first.")
    ] = False,
    most: Annotated[int, typer.Option("--most", min=1, max=10_000, help="Tenants to show of each queue.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what queues hold, and who consumes them."""
    with redis_access("queues to look at") as (client, settings):
        states = _states(client, settings)
        if by_tenant:
            show_tenants(client, [state.name for state in states], settings.redis_namespace, most, as_json=as_json)
            return
        ended = throughput(client, queues=[state.name for state in states], namespace=settings.redis_namespace)
        outbox = _outbox(settings)
    if as_json:
        in_outbox = {one.queue: one.count for one in outbox or ()}
        typer.echo(
            json.dumps(
                [
                    _as_json(state)
                    | _throughput(ended[state.name])
                    | {"outbox": None if outbox is None else in_outbox.get(state.name, 0)}
                    for state in states
                ]
            )
        )
        return
    table = grid()
    table.add_column("queue", overflow="fold", min_width=12)
    for column in ("waiting", "delayed", "running", "oldest", "/min", "failed/h", "consumers"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for state in states:
        counts = (f"{count:,}" for count in (state.waiting, state.delayed, state.running))
        rate, failed = ended[state.name].rate, sum(ended[state.name].failed)
        table.add_row(
            Text(state.name),
            *counts,
            short_age(state.oldest),
            f"{rate:,.1f}" if 0 < rate < 10 else f"{rate:,.0f}",
            Text(f"{failed:,}", "bold red" if failed else ""),
            f"{len(state.consumers):,}",
            _state(state),
        )
    console.print(table)
    for state in states:
        for note in _notes(state):
            console.print(Text(f"{state.name}: ", "bold").append(note, "not bold"), soft_wrap=True)
    for one in outbox or ():
        waits = f"{counted(one.count, 'message')} in the outbox, not in Redis yet, for {short_age(one.oldest)}"
        console.print(Text(f"{one.queue}: ", "bold").append(waits, "not bold"), soft_wrap=True)


@app.command("pause")
def pause_(queue: Named, reason: Reason = "", by: By = None) -> None:
    """Let no worker fetch from QUEUE, until it is resumed; what runs or was fetched already finishes."""
    with redis_access("queues to look at") as (client, settings):
        known = known_queue(client, settings, queue)
        if known.pause is None:
            found = pause(
                client, queue, by=operator_name(by), reason=reason, namespace=settings.redis_namespace, audit=audit
            )
            said = f"{queue} is paused; {counted(known.waiting, 'message')} waiting, {known.running:,} with workers."
        else:
            found = known.pause
            said = f"{queue} was paused already {_since(found)}."
    console.print(Text(said), soft_wrap=True)
    if known.stock_consumers:
        stock = f"{known.stock_consumers:,} of stock Dramatiq's processes do not know of it, and go on."
        console.print(Text(stock, "yellow"), soft_wrap=True)


@app.command("resume")
def resume_(queue: Named, reason: Reason = "", by: By = None) -> None:
    """Let workers fetch from QUEUE again."""
    with redis_access("queues to look at") as (client, settings):
        known = known_queue(client, settings, queue)
        ended = resume(
            client, queue, by=operator_name(by), reason=reason, namespace=settings.redis_namespace, audit=audit
        )
    said = (
        f"{queue} was not paused."
        if ended is None
        else f"{queue} is resumed; it was paused {_since(ended)}. {counted(known.waiting, 'message')} waiting."
    )
    console.print(Text(said), soft_wrap=True)


@app.command("purge")
def purge_(
    queue: Named,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="This tenant's messages only: its UUID, or its name.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option("--actor", help="This actor's messages only; its last name will do.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Remove what waits in QUEUE and what is delayed, for ever; what runs or was fetched already finishes."""
    with redis_access("queues to look at") as (client, settings):
        known_queue(client, settings, queue)
        # Not one that is empty: whoever names nobody means not everybody.
        tenant_id = None if tenant is None else tenant_given(tenant)
        actor = actor and _in_full(client, settings, queue, tenant_id, actor)
        outbox = _purge_outbox(client, settings, queue, tenant_id, actor, yes=yes, by=operator_name(by), reason=reason)
        removed = purge(
            client,
            queue,
            by=operator_name(by),
            reason=reason,
            tenant_id=tenant_id,
            actor=actor,
            namespace=settings.redis_namespace,
            before_removal=lambda found: None if yes else _confirm(found[0], tenant_id, actor),
            audit=strict_audit,
        )
        released = release(client, settings) if removed.removable else 0
    if as_json:
        typer.echo(json.dumps({**_counts(removed), "outbox": outbox, "released": released}))
        return
    console.print(Text(f"Removed: {_described(removed)}. {removed.running:,} with workers, left."), soft_wrap=True)
    if outbox:
        console.print(Text(f"Removed from the outbox: {counted(outbox, 'message')}."), soft_wrap=True)
    if released:
        console.print(
            Text(f"Pending again, because it was to retry them: {counted(released, 'failed job')}."), soft_wrap=True
        )


@app.command("adopt")
def adopt_(
    queues: Annotated[
        list[str] | None, typer.Argument(metavar="[QUEUE]...", help="Of these; of all that are declared by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how many it would be, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make failed jobs of the dead messages that stock Dramatiq keeps in Redis for seven days; a worker does it daily.

    Those of queues that are not declared here may be another application's: name such a queue to take them.

    Exit status 3 where some could not be recorded; those stay where they are.
    """
    with redis_access("dead messages to look at") as (client, settings):
        declared = {*(queue.value for queue in Queue), *settings.extra_queues}
        which = set(queues or declared)
        there = count_dead(client, which, namespace=settings.redis_namespace)
        if dry_run:
            found, left = {queue: count for queue, count in there.items() if queue in which}, 0
        else:
            # What the messages' actors and exceptions are is known where those are imported.
            broker = import_application()
            with alone(ALONE) as first:
                if not first:
                    fail("a worker, or somebody else, is adopting them at this moment", NOTHING)
                done = adopt(broker, client, which, namespace=settings.redis_namespace)
            found, left = {queue: count for queue, count in done.queues.items() if count}, done.left
    # Of whoever names queues, those that are declared and not named are no others'.
    others = {queue: count for queue, count in there.items() if queue not in which | declared}
    if as_json:
        typer.echo(json.dumps({"queues": found, "left": left, "not_declared": others, "dry_run": dry_run}))
    else:
        by_queue = "".join(f", {count:,} of {queue}" for queue, count in sorted(found.items()) if count)
        total = counted(sum(found.values()), "dead message")
        console.print(Text(f"{'Would adopt' if dry_run else 'Adopted'}: {total}{by_queue}."), soft_wrap=True)
        if left:
            console.print(Text(f"{counted(left, 'dead message')} left: see above why.", "yellow"), soft_wrap=True)
        if told := told_of_others(others, ()):
            console.print(Text(f"{told}.", "yellow"), soft_wrap=True)
    if left:
        raise typer.Exit(NOTHING)


def _outbox(settings: Settings) -> list[InQueue] | None:
    """Return what waits in the outbox; None where Postgres cannot be asked, which most need not care about."""
    if settings.database_url is None:
        return None
    try:
        configure_sessions()
        with operator_transaction() as session:
            return by_queue(session)
    except (SQLAlchemyError, ConfigurationError):
        return None


def _purge_outbox(
    client: redis.Redis,
    settings: Settings,
    queue: str,
    tenant_id: UUID | None,
    actor: str | None,
    *,
    yes: bool,
    by: str,
    reason: str,
) -> int | None:
    """Remove what waits for the queue in the outbox, and return how much that was; None where Postgres cannot be asked.

    First, because what is relayed meanwhile is then found in Redis.
    """
    if _outbox(settings) is None:
        return None
    which: dict[str, Any] = {"queue": queue, "tenant_id": tenant_id, "actor": actor}
    count = count_outbox(operator_transaction, **which)[queue]
    if not count:
        return 0
    if not yes:
        _ask(f"{counted(count, 'message')}{_whose(tenant_id, actor)} that wait for queue {queue} in the outbox")
    strict_audit(
        PURGED,
        changed_by=by,
        reason=reason or None,
        tenant_id=tenant_id,
        before={"actor": actor, "outbox": {queue: count}},
        after={},
    )
    return remove_from_outbox(operator_transaction, Scripts(client, settings.redis_namespace), **which).total()


def tenant_given(tenant: str) -> UUID:
    """Return the tenant that a UUID or a name means; a name needs Postgres."""
    try:
        return UUID(tenant)
    except ValueError:
        configure_sessions()
    with operator_transaction() as session:
        return tenant_named(session, tenant)


def _in_full(client: redis.Redis, settings: Settings, queue: str, tenant_id: UUID | None, actor: str) -> str:
    """Return an actor's name where one with messages here is called so, else what the names of those end with that a
    person means."""
    found = count_messages(client, tenant_id=tenant_id, actor=actor, queues=[queue], namespace=settings.redis_namespace)
    return actor if any(one.removable for one in found) or actor.startswith(".") else f".{actor}"


def release(client: redis.Redis, settings: Settings) -> int:
    """Set failed jobs back whose replays were removed, and return how many; where Postgres is away, workers do it."""
    try:
        return release_removed(Scripts(client, settings.redis_namespace), operator_transaction)
    except (SQLAlchemyError, ConfigurationError) as e:
        sys.stderr.write(
            f"worker: Postgres is away ({type(e).__name__}), so failed jobs that were being retried by what was removed"
            " are in progress until a worker that consumes housekeeping finds it back\n"
        )
        return 0


def _confirm(found: Found, tenant_id: UUID | None, actor: str | None) -> None:
    """Ask whether to go on; it ends the command where the answer is no, or nobody is there to give one."""
    _ask(f"{_described(found)}{_whose(tenant_id, actor)} in queue {found.queue}")


def _whose(tenant_id: UUID | None, actor: str | None) -> str:
    whose = "" if tenant_id is None else f" of tenant {tenant_id}"
    if actor is not None:
        whose += f" of actors whose name ends with {actor}" if actor.startswith(".") else f" of actor {actor}"
    return whose


def _ask(what: str) -> None:
    if not sys.stdin.isatty():
        fail(f"this would remove {what}: say --yes, because nobody can be asked")
    if not typer.confirm(f"Remove {what}, for ever?", err=True):
        fail("nothing was removed")


def _described(found: Found) -> str:
    parts = [f"{counted(found.waiting, 'waiting message')}", f"{found.delayed:,} delayed"]
    if found.suspects:
        parts.append(f"{found.suspects:,} waiting to run alone")
    return ", ".join(parts)


def _counts(found: Found) -> dict[str, Any]:
    counts = asdict(found)
    # A purge leaves the spool.
    del counts["spooled"]
    return counts


def _states(client: redis.Redis, settings: Settings) -> list[QueueState]:
    return list_queues(client, settings.extra_queues, namespace=settings.redis_namespace)


def known_queue(client: redis.Redis, settings: Settings, queue: str) -> QueueState:
    """Return a queue as it is; one that there is not ends the command."""
    states = {state.name: state for state in _states(client, settings)}
    if queue not in states:
        fail(f"there is no queue {queue!r}, but {', '.join(states)} (EXTRA_QUEUES declares more)")
    return states[queue]


def _as_json(state: QueueState) -> dict[str, Any]:
    paused = None if state.pause is None else state.pause.as_json()
    return {**asdict(replace(state, pause=None)), "pause": paused}


def _throughput(ended: Throughput) -> dict[str, Any]:
    last_hour = {outcome: sum(getattr(ended, outcome)) for outcome in OUTCOMES}
    return {"ended_a_minute": ended.rate, "last_hour": last_hour}


def _state(state: QueueState) -> Text:
    if state.pause is not None:
        return Text("paused", "yellow")
    if state.consumers or state.stock_consumers:
        return Text("ok", "green")
    return Text("no workers", "dim" if state.empty else "bold red")


def _notes(state: QueueState) -> Iterator[str]:
    """Say what is out of the ordinary about a queue."""
    if state.pause is not None:
        yield f"paused {_since(state.pause)}"
    if state.suspects:
        yield f"{counted(state.suspects, 'message')} that ran when a worker was lost, waiting to run alone"
    if state.stock_consumers:
        yield f"consumed by {counted(state.stock_consumers, 'worker')} of stock Dramatiq, too"


def _since(found: Pause) -> str:
    return f"since {found.since:%Y-%m-%d %H:%M} UTC by {found.by}{f': {found.reason}' if found.reason else ''}"
