"""``worker queues share | unshare | merge``: how tenants take turns."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from worker.cli import queues
from worker.cli.common import console, fail
from worker.cli.operator import By, operator_name
from worker.cli.queues import Named, Reason, known_queue, tenant_given
from worker.cli.redis_access import redis_access
from worker.queue_admin import EVERYBODY, NOBODY, merge, share, unshare
from worker.queue_admin.shares import Whose
from worker.text import counted

Tenant = Annotated[str | None, typer.Option("--tenant", help="This tenant's: its UUID, or its name.")]
Default = Annotated[bool, typer.Option("--default", help="That of all who have none of their own.")]
Nobody = Annotated[bool, typer.Option("--nobody", help="That of jobs without a tenant.")]


def share_(
    queue: Named,
    tenant: Tenant = None,
    default: Default = False,
    nobody: Nobody = False,
    weight: Annotated[
        float | None, typer.Option("--weight", help="Turns for each of one that weighs 1, from 0.01 to 1,000.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Jobs that may be with workers at once; 0 for no limit.")
    ] = None,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Say how many of QUEUE's turns a tenant has, or how many of its jobs may run at once; what is not given stays."""
    with redis_access("queues to look at") as (client, settings):
        known_queue(client, settings, queue)
        whose = _whose(tenant, default=default, nobody=nobody)
        if weight is None and limit is None:
            fail("--weight or --limit: say one of them")
        try:
            found = share(
                client,
                queue,
                whose,
                weight=weight,
                limit=limit,
                by=operator_name(by),
                reason=reason,
                namespace=settings.redis_namespace,
                audit=queues.audit,
            )
        except ValueError as e:
            fail(f"--{e}")
    turns = "as everybody" if found.weight is None else f"{found.weight:g}"
    at_once = "as everybody" if found.limit is None else f"{found.limit:,}" if found.limit else "none"
    console.print(Text(f"In {queue} {_named(whose)}: weight {turns}, limit {at_once}."), soft_wrap=True)
    if not settings.fair:
        console.print(Text("FAIR is off here: workers that have it so heed neither.", "yellow"), soft_wrap=True)


def unshare_(
    queue: Named,
    tenant: Tenant = None,
    default: Default = False,
    nobody: Nobody = False,
    reason: Reason = "",
    by: By = None,
) -> None:
    """Let a tenant have everybody's share of QUEUE again."""
    with redis_access("queues to look at") as (client, settings):
        known_queue(client, settings, queue)
        whose = _whose(tenant, default=default, nobody=nobody)
        before = unshare(
            client,
            queue,
            whose,
            by=operator_name(by),
            reason=reason,
            namespace=settings.redis_namespace,
            audit=queues.audit,
        )
    said = "has no share of its own any more" if before else "had no share of its own"
    console.print(Text(f"In {queue} {_named(whose)} {said}."), soft_wrap=True)


def merge_(queue: Named) -> None:
    """Put what waits in tenants' lanes of QUEUE back into its one list, for workers that know no lanes.

    Before you go back to a release that knows none, or to stock Dramatiq: stop the workers of this one first.
    """
    with redis_access("queues to look at") as (client, settings):
        known = known_queue(client, settings, queue)
        moved = merge(client, queue, namespace=settings.redis_namespace)
    console.print(Text(f"Put back into the list of {queue}: {counted(moved, 'message')}."), soft_wrap=True)
    if known.consumers:
        alive = f"{counted(len(known.consumers), 'worker')} that may sort them again: stop those first."
        console.print(Text(f"{queue} is consumed by {alive}", "yellow"), soft_wrap=True)


def _whose(tenant: str | None, *, default: bool, nobody: bool) -> Whose:
    if (tenant is not None) + default + nobody != 1:
        fail("say one of --tenant, --default and --nobody")
    if tenant is not None:
        return tenant_given(tenant)
    return EVERYBODY if default else NOBODY


def _named(whose: Whose) -> str:
    return {EVERYBODY: "everybody", NOBODY: "jobs without a tenant"}.get(str(whose), f"tenant {whose}")
