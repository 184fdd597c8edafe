"""From the start of a worker to its first job, and what it keeps of memory when it has nothing to do."""

from __future__ import annotations

import time

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.processes import memory
from tests.benchmarks.peers.reckoning import check
from tests.benchmarks.peers.rows.row import Figure, Row
from tests.benchmarks.peers.running import Stage

#: Seconds of nothing to do before memory is looked at.
IDLE = 3


def measure(stage: Stage, count: int) -> dict[str, float]:
    """Memory is the proportional set size of all its processes, after a few jobs."""
    stage.send("all", count, "noop")
    with stage.worker() as worker:
        worker.wait_for(count)
        time.sleep(IDLE)
        kept = memory(worker.process.pid)
    notes = stage.notes()
    check([note.number for note in notes], range(count))
    return {"first": (notes[0].at - worker.began) / 1e9, "memory": kept}


ROW = Row(
    title="Starting a worker before which {count} messages wait",
    peers=(
        peers.OURS,
        peers.STOCK,
        peers.CELERY_THREADS,
        peers.CELERY_PREFORK,
        peers.TASKIQ,
        peers.PGQUEUER,
        peers.OBAN,
        peers.PROCRASTINATE,
    ),
    count=100,
    figures={
        "first": Figure("seconds to the first job", more=False, digits=2),
        "memory": Figure("memory when idle, MiB", more=False, digits=1),
    },
    measure=measure,
)
