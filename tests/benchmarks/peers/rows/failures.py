"""Failures recorded a second: each job raises ``ValueError`` at its only try.

Everybody logs as by default, each failure with its traceback, to a file: that is part of what a failure costs in
production, and who logs less is faster by less log. ``failures-silent`` is the same with all of them silenced.
"""

from __future__ import annotations

import time
from dataclasses import replace

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import Incomplete, check, costs, rate
from tests.benchmarks.peers.rows.row import COSTS, Figure, Row
from tests.benchmarks.peers.running import WITHIN, Stage

RECORDED = "SELECT (task_args->>0)::int FROM worker_failed_jobs"


def recorded(stage: Stage, count: int) -> int:
    """Wait for so many rows; return when they were there, in nanoseconds.

    Raises:
      Incomplete: When they are not in time.
    """
    until = time.monotonic() + WITHIN
    while True:
        (rows,) = stage.column("SELECT count(*) FROM worker_failed_jobs")
        now = time.monotonic_ns()
        if rows >= count:
            return now
        if time.monotonic() > until:
            raise Incomplete(f"{rows} of {count} failures were recorded within {WITHIN} s")
        time.sleep(0.02)


def measure(stage: Stage, count: int) -> dict[str, float]:
    """From the first job until the last is acknowledged and, but where none is, recorded."""
    records = stage.peer.settings.get("FAILURES") != "none"
    stage.send("all", count, "fail")
    with stage.worker() as worker:
        first = worker.wait_for(1, look_every=0.01)
        before = stage.spent(worker)
        worker.wait_for(count)
        until = stage.wait_for_ends()
        if records:
            until = max(until, recorded(stage, count))
        spent = costs(before, stage.spent(worker), count - first)
    notes = stage.notes()
    again = check([note.number for note in notes], range(count))
    rows = stage.column(RECORDED)
    if len(rows) != (count if records else 0):
        raise Incomplete(f"{len(rows)} rows of {count} failures")
    if records:
        check(rows, range(count))
    return {"rate": rate(notes, until=until), **spent, "again": again}


_STOCK = (
    peers.STOCK.but("Dramatiq, recording none", FAILURES="none"),
    peers.STOCK_AT_BEST.but(f"{peers.STOCK_AT_BEST.name}, recording none", FAILURES="none"),
    # With prefetch 512 as well, because without it waiting for messages is most of what stock Dramatiq does.
    peers.STOCK.but("Dramatiq, a connection per thread", FAILURES="keep"),
    peers.STOCK_AT_BEST.but(f"{peers.STOCK_AT_BEST.name}, a connection per thread", FAILURES="keep"),
    # Ten times as slow, and more.
    replace(peers.STOCK.but("Dramatiq, a connection per failure", FAILURES="connect"), share=0.2),
)
_CELERY = replace(peers.CELERY_THREADS.but("Celery, threads, a connection per failure", FAILURES="connect"), share=0.2)
ROW = Row(
    title="{count} failures, one process of 8 threads",
    peers=(peers.OURS, *_STOCK, _CELERY),
    count=5_000,
    figures={
        "rate": Figure("failures a second"),
        **COSTS,
    },
    measure=measure,
    synced=True,
)
SILENT = replace(
    ROW,
    title="{count} failures, one process of 8 threads, nobody logs",
    peers=tuple(peer.but(peer.name, SILENT="1", LOG_LEVEL="CRITICAL") for peer in ROW.peers),
    extra=True,
)
