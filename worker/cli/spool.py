"""``worker spool``: the failures that wait in Redis while Postgres is away, so it asks Redis alone."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any

import redis
import typer
from rich.markup import escape
from rich.table import Table

from worker.cli.common import console, explained, fail
from worker.redis_client import make_redis
from worker.settings import Settings


def show(as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show what waits in Redis to become rows of worker_failed_jobs, because Postgres is away."""
    with explained():
        settings = Settings.load()
        if settings.stub:
            fail("REDIS_URL: stub:// has no spool", 2)
        try:
            with make_redis(settings) as client:
                spooled = _look(client, f"{settings.redis_namespace}:__dramaturg__.spool")
        except redis.RedisError as e:
            fail(f"Redis cannot be asked: {e}", 2)
    if as_json:
        typer.echo(json.dumps({**spooled, "limit": settings.spool_limit}))
        return
    if not spooled["size"]:
        console.print("Nothing waits: every failure is in worker_failed_jobs.")
        return
    console.print(
        f"{spooled['size']:,} failures wait for Postgres since {spooled['since']}; {settings.spool_limit:,} may."
    )
    table = Table("actor", "error type", "failures")
    for group in spooled["groups"]:
        table.add_row(escape(group["task_name"]), escape(group["error_type"]), f"{group['failures']:,}")
    console.print(table)


def _look(client: redis.Redis, key: str) -> dict[str, Any]:
    groups: Counter[tuple[str, str]] = Counter()
    for _, data in client.hscan_iter(key, count=500):
        try:
            failure = json.loads(data)
            groups[str(failure["task_name"]), str(failure["error_type"])] += 1
        except (ValueError, KeyError, TypeError):
            groups["(unreadable)", "-"] += 1
    since: Any = client.get(f"{key}.since")
    return {
        "size": int(client.hlen(key)),
        "since": datetime.fromtimestamp(int(since), UTC).isoformat() if since else None,
        "groups": [
            {"task_name": name, "error_type": kind, "failures": count} for (name, kind), count in groups.most_common()
        ],
    }
