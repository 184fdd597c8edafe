"""``worker tenants offboard``: removes what there is of a tenant that has left, in Postgres and in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated
from uuid import UUID

import redis
import typer
from dramatiq.errors import ConnectionClosed

from db.failed.offboarding import Offboarded
from db.failed.offboarding import offboard as offboard_tenant
from db.session import operator_transaction
from middleware.lua_scripts import Scripts
from worker.cli.audit import keep_event
from worker.cli.common import configure_sessions, explained, fail
from worker.cli.failed.confirm import confirm
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.looks import say
from worker.cli.failed.options import AsJson, Yes
from worker.cli.operator import By, operator_name
from worker.cli.queues import release
from worker.queue_admin import Found, count_messages, forget_shares, remove_messages
from worker.queue_admin.audit import PURGED
from worker.queue_admin.outbox import count_outbox, remove_from_outbox
from worker.redis_client import make_redis
from worker.settings import Settings
from worker.tenants import tenant_named, tenant_names
from worker.text import counted, listed, one_line, to_json


def offboard(
    tenant: Annotated[str, typer.Argument(help="Its UUID, or its name.")],
    reason: Annotated[str | None, typer.Option("--reason", help="Why; it stays in the history.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and remove nothing.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
    by: By = None,
) -> None:
    """Remove a tenant's failed jobs, all that stands beside them, and its waiting messages, for ever.

    Stop what sends for it first. Its row in tenants, and the application's own tables, stay. Exit status 3 where
    something is left, or nothing was there.
    """
    with explained():
        settings = configure_sessions()
        with operator_transaction() as session:
            tenant_id = tenant_named(session, tenant)
            name = tenant_names(session, [tenant_id]).get(tenant_id)
        who = operator_name(by)
        with _redis(settings) as client:
            waiting = (
                []
                if client is None
                else count_messages(client, tenant_id=tenant_id, namespace=settings.redis_namespace)
            )
            counts = offboard_tenant(operator_transaction, tenant_id, by=who, reason=reason, dry_run=True)
            counts.messages = Counter({found.queue: found.removable for found in waiting if found.removable})
            if client is not None:
                # They are removed with those in Redis.
                counts.messages += count_outbox(operator_transaction, tenant_id=tenant_id)
                counts.outbox = 0
            whose = f"{one_line(name)} ({tenant_id})" if name else str(tenant_id)
            if dry_run:
                _report(counts, whose, waiting, "would be removed", as_json=as_json)
                return
            confirm(f"Of {whose}: {_described(counts)}", "Remove all that, for ever?", yes=yes)
            done = offboard_tenant(
                operator_transaction,
                tenant_id,
                by=who,
                reason=reason,
                messages=None if client is None else lambda which: _remove(client, settings, which, who, reason),
            )
            left = (
                []
                if client is None
                else count_messages(client, tenant_id=tenant_id, namespace=settings.redis_namespace)
            )
        _report(done, whose, left, "removed", as_json=as_json)
    if not done.complete or not _total(done):
        raise typer.Exit(NOTHING)


@contextmanager
def _redis(settings: Settings) -> Iterator[redis.Redis | None]:
    """Give a client; None where there is no Redis by design."""
    if settings.stub:
        yield None
        return
    try:
        with make_redis(settings) as client:
            yield client
    except ConnectionClosed as e:
        fail(f"Redis cannot be asked: {str(e).removeprefix('Redis: ')}", 2)


def _remove(client: redis.Redis, settings: Settings, tenant_id: UUID, by: str, reason: str | None) -> Mapping[str, int]:
    """Remove what waits of a tenant, in the outbox, too, and return how many messages, by queue."""
    outbox = count_outbox(operator_transaction, tenant_id=tenant_id)
    if outbox:
        keep_event(
            PURGED,
            changed_by=by,
            reason=reason,
            tenant_id=tenant_id,
            before={"actor": None, "outbox": dict(outbox)},
            after={},
        )
        run = Scripts(client, settings.redis_namespace)
        outbox = remove_from_outbox(operator_transaction, run, tenant_id=tenant_id)
    removed = remove_messages(
        client, by=by, reason=reason or "", tenant_id=tenant_id, namespace=settings.redis_namespace, audit=keep_event
    )
    # Its rows go next; so that Redis remembers nothing of it.
    release(client, settings)
    forget_shares(client, tenant_id, settings.redis_namespace)
    return outbox + Counter({found.queue: found.removable for found in removed if found.removable})


def _report(done: Offboarded, whose: str, left: list[Found], verb: str, *, as_json: bool) -> None:
    running = sum(found.running for found in left)
    if as_json:
        typer.echo(to_json({**done.as_json(), "held": done.held, "running": running}))
        return
    say(f"Of {whose}: {_described(done)} {verb}.")
    if done.held:
        say(f"{counted(done.held, 'job')} left: somebody else held them; say it again.", "yellow")
    if running:
        say(f"{counted(running, 'message')} with workers: say it again once they have ended.", "yellow")


def _described(counts: Offboarded) -> str:
    by_queue = ", ".join(f"{number:,} in {one_line(queue)}" for queue, number in sorted(counts.messages.items()))
    parts = [
        counted(counts.messages.total(), "waiting message") + (f" ({by_queue})" if by_queue else ""),
        counted(counts.rows.total(), "failed job"),
        counted(counts.originals, "original"),
        counted(counts.groups, "group"),
        counted(counts.events, "event"),
        counted(counts.rules, "rule of retention", "rules of retention"),
        counted(counts.once_keys, "once() key"),
        counted(counts.replay_items, "replayed job"),
        *([counted(counts.outbox, "message") + " of the outbox"] if counts.outbox else []),
        counted(counts.answers, "answer") + " of a language model",
        counted(counts.attribution, "row") + " of channel totals and runs",
    ]
    return listed(parts)


def _total(counts: Offboarded) -> int:
    return (
        counts.messages.total()
        + counts.rows.total()
        + counts.groups
        + counts.events
        + counts.rules
        + counts.once_keys
        + counts.replay_items
        + counts.replays
        + counts.outbox
        + counts.answers
        + counts.spending
        + counts.attribution
    )
