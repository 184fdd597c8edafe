"""A window of 1,000,000 touches and 100,000 conversions: seconds, and the peak memory of the process that runs it.

Each model in a process of its own, as the tenant-bound role, with no statistics gathered since the load.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from uuid import UUID

import psycopg
from rich.console import Console
from rich.table import Table

from tests.servers import running_cluster

VISITORS, TOUCHES_EACH = 100_000, 10
TENANT = UUID(int=0xA)
WINDOW = ("2025-01-01", "2025-02-01")


def load(admin_url: str) -> None:
    """Make the events where they are needed."""
    with psycopg.connect(admin_url) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'big')", [TENANT])
        connection.execute(
            """
            INSERT INTO attribution_events (tenant_id, event_id, event_type, visitor_id, channel, occurred_at)
            SELECT %s, 't' || v || '-' || n, 'touch', 'v' || v, 'channel ' || (v * 7 + n) %% 12,
                   '2025-01-01Z'::timestamptz + make_interval(secs => (v * 7919 + n * 86400) %% 2000000)
            FROM generate_series(1, %s) v, generate_series(1, %s) n
            """,
            [TENANT, VISITORS, TOUCHES_EACH],
        )
        connection.execute(
            """
            INSERT INTO attribution_events (tenant_id, event_id, event_type, visitor_id, revenue_cents, occurred_at)
            SELECT %s, 'c' || v, 'conversion', 'v' || v, 100 + v %% 50000,
                   '2025-01-25Z'::timestamptz + make_interval(secs => v %% 500000)
            FROM generate_series(1, %s) v
            """,
            [TENANT, VISITORS],
        )


def child(model: str) -> None:
    """Recompute twice and print seconds, rows and memory."""
    from db import session
    from db.tenancy import tenant_context
    from worker.recompute import parse_model, parse_window, recompute

    session.configure(os.environ["DATABASE_URL"])
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        with tenant_context(TENANT), session.transaction() as s:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            done = recompute(s, TENANT, parse_window(*WINDOW), parse_model(model), "1.0.0")
        seconds.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if done.conversions != VISITORS:
        raise SystemExit(f"{done.conversions} conversions")
    print(json.dumps([*seconds, done.allocations, after / 1024, (after - before) / 1024]))


def main() -> None:
    """Load, run every model and print the table."""
    from worker import migrate
    from worker.recompute import Model

    table = Table("model", "first run, s", "re-run, s", "rows", "peak memory, MiB", "grown by, MiB")
    with running_cluster({"fsync": "on", "synchronous_commit": "on"}) as cluster, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        load(database.admin_url)
        for model in Model:
            command = [sys.executable, "-m", "tests.benchmarks.recompute_window", model.value]
            environment = {**os.environ, **database.environment()}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            first, again, rows, peak, grown = json.loads(done.stdout)
            table.add_row(model.value, f"{first:.1f}", f"{again:.1f}", f"{rows:,}", f"{peak:.0f}", f"{grown:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
