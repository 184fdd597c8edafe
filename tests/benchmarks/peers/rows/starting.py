"""From the start of a worker to its first job, and what it keeps of memory when it has nothing to do: while no job has
used a database and, of those that have jobs of a tenant's transaction, when some have.
"""

from __future__ import annotations

import time

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.processes import memory
from tests.benchmarks.peers.reckoning import check
from tests.benchmarks.peers.rows import transaction
from tests.benchmarks.peers.rows.row import Figure, Row
from tests.benchmarks.peers.running import Stage, Worker

#: Seconds of nothing to do before memory is looked at.
IDLE = 3
_TRANSACT = {peer.app for peer in transaction.ROW.peers}


def _kept(worker: Worker) -> float:
    time.sleep(IDLE)
    return memory(worker.process.pid)


def measure(stage: Stage, count: int) -> dict[str, float]:
    """Memory is the proportional set size of all its processes, after a few jobs."""
    stage.send("all", count, "noop")
    with stage.worker() as worker:
        worker.wait_for(count)
        notes = stage.notes()
        figures = {"first": (notes[0].at - worker.began) / 1e9, "memory": _kept(worker)}
        if stage.peer.app in _TRANSACT:
            stage.send("all", count, "transaction")
            worker.wait_for(2 * count)
            figures["memory used"] = _kept(worker)
            check(stage.column("SELECT number FROM bench_effects"), range(count))
    check([note.number for note in notes], range(count))
    return figures


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
        "memory": Figure("memory when idle, MiB, no job having used a database", more=False, digits=1),
        "memory used": Figure("memory when idle, MiB, after jobs of a tenant's transaction", more=False, digits=1),
    },
    measure=measure,
)
