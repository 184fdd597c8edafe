"""What each index and the triggers of failed jobs cost: failures recorded a second with all of them and without one.

By one thread, on a durable server, into a table that holds many rows; ``python -m tests.benchmarks.understanding
--cost``. WAL tells what was written, whatever else the machine did meanwhile; the slowest batch is what a worker that
waits for its failure may have met.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from uuid import UUID

import psycopg
from rich.console import Console
from rich.table import Table

from db import session
from db.failed_jobs import record_all
from tests.benchmarks.failed_jobs_data import failures
from tests.servers import Database

#: A tenant that has no rows, so that what was recorded can be taken away again.
TENANT = UUID(int=0xFFFF)
#: How many failures are recorded in a run, by how many are recorded at once.
COUNTS = {1: 300, 8: 800, 100: 2_000}
ROUNDS = 5

_TEXT = "idx_worker_failed_jobs_text"
_JOBS = ("correlation_id", "error_type", "exception_class")
#: What is switched off: indexes by name, or the triggers.
VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "no text index": (_TEXT,),
    **{f"no index on {name}": (f"idx_worker_failed_jobs_{name}",) for name in _JOBS},
    "no index on details": ("idx_worker_failed_job_details_group",),
    "no indexes on events": tuple(
        f"idx_worker_failed_job_events_{name}" for name in ("failed_job_id", "tenant_id", "happened_at")
    ),
    "no index on groups": ("idx_worker_failed_job_groups_tenant_id",),
    "no triggers": ("triggers",),
}
VARIANTS["none of them"] = tuple(name for names in VARIANTS.values() for name in names)
_TABLES = ("originals", "deliveries", "details", "events")


@dataclass
class Figures:
    """Of one variant and size of batch, one of each a round."""

    per_second: list[float] = field(default_factory=list)
    wal_bytes: list[float] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)


def measure(
    database: Database, sizes: Sequence[int] = tuple(COUNTS), variants: dict[str, tuple[str, ...]] = VARIANTS
) -> None:
    """Run every variant once a round, and print a table for each size of batch."""
    session.configure(database.worker_url, operator_database_url=database.operator_url)
    figures = {size: {name: Figures() for name in variants} for size in sizes}
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        for turn in range(ROUNDS + 1):
            for name, off in variants.items():
                with _without(admin, off):
                    for size in sizes:
                        # The first round only warms up.
                        _record(admin, size, figures[size][name] if turn else Figures())
                _take_away(admin)
    session.dispose()
    for size in sizes:
        _show(f"Recorded {size} at once", figures[size])


@contextmanager
def _without(admin: psycopg.Connection, off: Sequence[str]) -> Iterator[None]:
    """Switch indexes off and on again, which takes no time, where building one again takes minutes.

    What is inserted meanwhile is missing from them, and is removed before anything is searched.
    """
    indexes = [name for name in off if name != "triggers"]

    def switch(on: bool) -> None:
        admin.execute(
            "UPDATE pg_index SET indisready = %s, indisvalid = %s WHERE indexrelid = ANY(%s::regclass[])",
            [on, on, indexes],
        )
        if "triggers" in off:
            admin.execute(f"ALTER TABLE worker_failed_jobs {'ENABLE' if on else 'DISABLE'} TRIGGER USER")

    switch(False)
    try:
        yield
    finally:
        switch(True)


def _record(admin: psycopg.Connection, size: int, figures: Figures) -> None:
    batches = [failures(size, TENANT) for _ in range(COUNTS[size] // size)]
    slowest, wal = 0.0, _wal(admin)
    start = time.perf_counter()
    for batch in batches:
        began = time.perf_counter()
        record_all(batch)
        slowest = max(slowest, time.perf_counter() - began)
    took = time.perf_counter() - start
    figures.per_second.append(COUNTS[size] / took)
    figures.wal_bytes.append((_wal(admin) - wal) / COUNTS[size])
    figures.slowest.append(slowest * 1000)


def _wal(admin: psycopg.Connection) -> int:
    row = admin.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def _take_away(admin: psycopg.Connection) -> None:
    with admin.transaction():
        admin.execute("SET LOCAL session_replication_role = replica")
        for name in (*(f"worker_failed_job_{each}" for each in (*_TABLES, "groups")), "worker_failed_jobs"):
            admin.execute(f"DELETE FROM {name} WHERE tenant_id = %s", [TENANT])


def _show(title: str, figures: dict[str, Figures]) -> None:
    everything = next(iter(figures.values()))
    table = Table(
        "variant", "per second", "lowest", "highest", "ratio", "WAL each, kB", "slowest batch, ms", title=title
    )
    for name, each in figures.items():
        per_second = median(each.per_second)
        table.add_row(
            name,
            *(f"{n:,.0f}" for n in (per_second, min(each.per_second), max(each.per_second))),
            f"{per_second / median(everything.per_second):.2f}",
            f"{median(each.wal_bytes) / 1000:.1f}",
            f"{median(each.slowest):,.0f} ({max(each.slowest):,.0f})",
        )
    Console(width=130).print(table)
