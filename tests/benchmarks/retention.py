"""Rows removed per second, by rules and by hand, the longest that a batch holds its groups, and the memory it takes;
and what failures that are recorded meanwhile, into the same groups, feel of it.

With a number of rows, and what to do, if not all: ``python -m tests.benchmarks.retention 1000000 expire``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from uuid import UUID, uuid4

import psycopg
from rich.console import Console
from rich.table import Table

from db import failed_jobs, session
from db.errors import RowLocked
from db.failed import Filter, batches
from db.failed.expiry import expire
from db.failed.offboarding import offboard
from db.failed.removal import forget, purge
from db.failures import Failure
from db.session import operator_transaction
from tests.servers import Database, running_cluster

ROWS = 100_000
ALL = ("expire", "purge", "forget", "off-board", "expire while 4 threads record")
TENANTS, ACTORS = 200, 500

FILL = """
    INSERT INTO worker_failed_jobs (id, task_id, task_name, queue, worker, task_args, task_kwargs, tenant_id,
        error_type, exception_class, error_message, traceback, correlation_id, status, failed_at, resolved_at)
    SELECT id, id, 'app.tasks.job_' || n % {actors}, 'attribution', 'host/1', '[1, "two"]', '{{"three": 3}}',
        lpad(to_hex(n % {tenants}), 32, '0')::uuid, 'validation_error', 'ValueError', 'bad input number ' || n,
        repeat('  File "app.py", line 1, in job' || chr(10), 30), gen_random_uuid(), 'resolved',
        now() - interval '200 days' + n * interval '1 second', now() - interval '100 days'
    FROM (SELECT n, gen_random_uuid() AS id FROM generate_series({begin}, {end}) n) numbered
"""
BESIDE = """
    INSERT INTO worker_failed_job_originals (failed_job_id, tenant_id, original)
    SELECT id, tenant_id, convert_to(repeat('original ', 60), 'UTF8') FROM worker_failed_jobs;
    INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
    SELECT gen_random_uuid(), id, tenant_id FROM worker_failed_jobs;
    ANALYZE
"""


def fill(database: Database, rows: int) -> None:
    """Put rows into an emptied database."""
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute("TRUNCATE worker_failed_jobs, worker_failed_job_groups, worker_failed_job_events CASCADE")
        for begin in range(0, rows, 100_000):
            end = min(begin + 100_000, rows) - 1
            admin.execute(FILL.format(begin=begin, end=end, actors=ACTORS, tenants=TENANTS).encode())
        admin.execute(BESIDE.encode())


def a_failure(n: int) -> Failure:
    """A failure of a group that is being emptied."""
    return Failure(
        delivery_id=str(uuid4()),
        task_id=str(uuid4()),
        task_name=f"app.tasks.job_{n % ACTORS}",
        queue="attribution",
        worker="host/1",
        task_args=[1],
        task_kwargs={},
        tenant_id=UUID(int=n % TENANTS),
        error_type="validation_error",
        exception_class="ValueError",
        error_message="bad input number 1",
        traceback=None,
        retry_count=0,
        last_retry_at=None,
        correlation_id=uuid4(),
        failed_at=datetime.now(UTC),
        fingerprint=FINGERPRINTS[n % ACTORS],
    )


FINGERPRINTS: list[str] = []


def write_until(stopped: threading.Event, seconds: list[float], refused: list[int]) -> None:
    """Record failures, one at a time, 200 a second at most."""
    n = 0
    while not stopped.wait(0.005):
        n += 1
        began = time.perf_counter()
        try:
            failed_jobs.record(a_failure(n))
        except RowLocked:
            refused.append(n)
        seconds.append(time.perf_counter() - began)


def memory(name: str) -> float:
    """Return what Linux says of this process, in MiB: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def child(what: str) -> None:
    """Do it once, and print what it took."""
    session.configure(os.environ["DATABASE_URL"], operator_database_url=os.environ["OPERATOR_DATABASE_URL"])
    with operator_transaction() as opened:
        found = opened.connection().exec_driver_sql(
            "SELECT DISTINCT ON (task_name) fingerprint FROM worker_failed_job_groups ORDER BY task_name"
        )
        FINGERPRINTS.extend(fingerprint for (fingerprint,) in found)
    held: list[float] = []
    took = batches.Pace.took

    def noted(self: batches.Pace, rows: int, seconds: float) -> None:
        held.append(seconds)
        took(self, rows, seconds)

    batches.Pace.took = noted  # type: ignore[method-assign]
    of_all = Filter(queue=("attribution",), status=("resolved",))
    works: dict[str, Callable[[], int]] = {
        "expire": lambda: expire(operator_transaction, now=datetime.now(UTC), by="benchmark").rows.total(),
        "purge": lambda: purge(operator_transaction, of_all, by="benchmark", reason=None).count,
        "forget": lambda: forget(operator_transaction, of_all, by="benchmark", reason=None).count,
        "off-board": lambda: offboard(operator_transaction, UUID(int=1), by="benchmark", reason=None).rows.total(),
    }
    name, _, writers = what.partition(" ")
    stopped, seconds, refused = threading.Event(), list[float](), list[int]()
    writing = [
        threading.Thread(target=write_until, args=(stopped, seconds, refused)) for _ in range(4 if writers else 0)
    ]
    before = memory("VmRSS")
    for thread in writing:
        thread.start()
    began = time.perf_counter()
    rows = works[name]()
    elapsed = time.perf_counter() - began
    stopped.set()
    for thread in writing:
        thread.join()
    print(
        json.dumps(
            {
                "rows": rows,
                "per second": rows / elapsed,
                "longest batch, ms": max(held) * 1000,
                "memory, MiB more": memory("VmHWM") - before,
                "recorded meanwhile": len(seconds),
                "of those 99 % within, ms": quantiles(seconds, n=100)[-1] * 1000 if len(seconds) > 1 else None,
                "longest, ms": max(seconds) * 1000 if seconds else None,
                "waited in vain": len(refused),
            }
        )
    )


def main(rows: int, *chosen: str) -> None:
    """Run those that are chosen, or all, and print the table."""
    from worker import migrate

    durable = {"fsync": "on", "synchronous_commit": "on"}
    figures: dict[str, dict[str, float | None]] = {}
    with running_cluster(durable) as cluster, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        for what in chosen or ALL:
            fill(database, rows)
            command = [sys.executable, "-m", "tests.benchmarks.retention", "child", what]
            environment = {**os.environ, **database.environment()}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            figures[what] = json.loads(done.stdout)
    table = Table("", *next(iter(figures.values())), title=f"Of {rows:,} rows, {TENANTS} tenants, {ACTORS} actors")
    for what, values in figures.items():
        table.add_row(what, *("" if value is None else f"{value:,.0f}" for value in values.values()))
    Console(width=150).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS, *sys.argv[2:])
