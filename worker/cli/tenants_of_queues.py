"""``worker queues list --by-tenant``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import redis
import typer
from rich.text import Text

from worker.cli.common import console
from worker.cli.failed.looks import grid
from worker.queue_admin import EVERYBODY, NOBODY, ByTenant, TenantState, by_tenant
from worker.text import counted, short_age


def show_tenants(
    client: redis.Redis, queues: Iterable[str], namespace: str, most: int, *, as_json: bool = False
) -> None:
    """Print who has what in queues, ``most`` of each; queues in which nobody has anything are left out."""
    found = {queue: by_tenant(client, queue, most=most, namespace=namespace) for queue in queues}
    found = {queue: one for queue, one in found.items() if one.count or one.unsorted or one.shares}
    if as_json:
        typer.echo(json.dumps([_as_json(queue, one) for queue, one in found.items()]))
        return
    if not found:
        console.print("No queue holds anything.")
        return
    for queue, one in found.items():
        # A table for each, because a terminal of 80 columns has no room for the queue beside a tenant's id.
        table = grid()
        table.add_column(queue, overflow="fold", min_width=36)
        for column in ("waiting", "running", "oldest", "weight", "limit"):
            table.add_column(column, justify="right", no_wrap=True)
        for state in one.tenants:
            table.add_row(_name(state), *_numbers(state))
        if one.tenants:
            console.print(table)
        for note in _notes(one):
            console.print(Text(f"{queue}: ", "bold").append(note, "not bold"), soft_wrap=True)


def _name(state: TenantState) -> str:
    return "(none)" if state.tenant_id is None else str(state.tenant_id)


def _numbers(state: TenantState) -> tuple[str, ...]:
    return (
        f"{state.waiting:,}",
        f"{state.running:,}",
        short_age(state.oldest),
        f"{state.weight:g}",
        "-" if state.limit is None else f"{state.limit:,}",
    )


def _notes(one: ByTenant) -> list[str]:
    notes = []
    if one.count > len(one.tenants):
        notes.append(f"{counted(one.count - len(one.tenants), 'tenant')} more, with less; --most shows more")
    if one.unsorted:
        notes.append(f"{counted(one.unsorted, 'message')} more, of which it is not known yet whose they are")
    for whose, share in one.shares.items():
        name = {EVERYBODY: "everybody", NOBODY: "jobs without a tenant"}.get(str(whose), str(whose))
        parts = [] if share.weight is None else [f"weight {share.weight:g}"]
        if share.limit is not None:
            parts.append(f"limit {share.limit:,}" if share.limit else "no limit")
        why = f": {share.reason}" if share.reason else ""
        notes.append(f"{name} has {', '.join(parts)} since {share.since:%Y-%m-%d %H:%M} UTC by {share.by}{why}")
    shown, more = notes[:25], len(notes) - 25
    return [*shown, f"{counted(more, 'share')} more; --json shows them"] if more > 0 else shown


def _as_json(queue: str, one: ByTenant) -> dict[str, Any]:
    tenants = [
        {
            "tenant_id": state.tenant_id and str(state.tenant_id),
            "waiting": state.waiting,
            "running": state.running,
            "oldest": state.oldest,
            "weight": state.weight,
            "limit": state.limit,
        }
        for state in one.tenants
    ]
    shares = {str(whose): share.as_json() for whose, share in one.shares.items()}
    return {"queue": queue, "tenants": tenants, "count": one.count, "unsorted": one.unsorted, "shares": shares}
