"""Jobs of a tenant's transaction: one SELECT and one INSERT under row-level security.

Ours sets the tenant with its ``BEGIN``; the others by ``set_config`` as a statement, as one does without us.
"""

from __future__ import annotations

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import check, costs, rate
from tests.benchmarks.peers.rows.row import COSTS, Figure, Row
from tests.benchmarks.peers.running import Stage


def measure(stage: Stage, count: int) -> dict[str, float]:
    """From the first job that was committed until the last is acknowledged; the table says which were."""
    stage.send("all", count, "transaction")
    with stage.worker() as worker:
        first = worker.wait_for(1, look_every=0.01)
        before = stage.spent(worker)
        worker.wait_for(count)
        ended = stage.wait_for_ends()
        spent = costs(before, stage.spent(worker), count - first)
    again = check(stage.column("SELECT number FROM bench_effects"), range(count))
    return {"rate": rate(stage.notes(), until=ended), **spent, "again": again}


ROW = Row(
    title="{count} jobs of a tenant's transaction (SELECT, INSERT), one process of 8 threads",
    peers=(
        peers.OURS,
        peers.STOCK,
        peers.STOCK_AT_BEST,
        peers.STOCK_AT_BEST.but(f"{peers.STOCK_AT_BEST.name}, nothing prepared", PREPARE="no"),
        peers.CELERY_THREADS,
    ),
    count=10_000,
    figures={
        "rate": Figure("jobs a second"),
        **COSTS,
    },
    measure=measure,
    synced=True,
)
