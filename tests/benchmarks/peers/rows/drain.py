"""No-op jobs, one worker process with 8 threads, or 8 at once where there are no threads."""

from __future__ import annotations

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import check, costs, rate
from tests.benchmarks.peers.rows.row import COSTS, Figure, Row
from tests.benchmarks.peers.running import Stage


def measure(stage: Stage, count: int) -> dict[str, float]:
    """From the first job that ran until the last is acknowledged, so that starting does not count."""
    stage.send("all", count, "noop")
    with stage.worker() as worker:
        first = worker.wait_for(1, look_every=0.01)
        before = stage.spent(worker)
        worker.wait_for(count)
        ended = stage.wait_for_ends()
        spent = costs(before, stage.spent(worker), count - first)
    notes = stage.notes()
    again = check([note.number for note in notes], range(count))
    return {"rate": rate(notes, until=ended), **spent, "again": again}


ROW = Row(
    title="{count} no-op jobs, one worker of 8 threads or with 8 at once, but for what names say",
    peers=(
        peers.OURS,
        peers.STOCK,
        *peers.STOCK_PREFETCHES,
        peers.CELERY_THREADS,
        peers.CELERY_PREFORK,
        peers.TASKIQ,
        peers.PGQUEUER_DEFAULT,
        peers.PGQUEUER,
        peers.OBAN,
        peers.PROCRASTINATE,
        peers.RQ,
    ),
    count=20_000,
    figures={
        "rate": Figure("jobs a second"),
        **COSTS,
    },
    measure=measure,
)
