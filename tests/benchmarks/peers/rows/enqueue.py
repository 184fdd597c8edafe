"""Sending from one thread, one message at a time, and many at once where there is a way."""

from __future__ import annotations

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import check
from tests.benchmarks.peers.rows.row import Figure, Row
from tests.benchmarks.peers.running import Stage


def measure(stage: Stage, count: int) -> dict[str, float]:
    """Each way in a process of its own, after a hundred that do not count; then all of it runs, so that all came."""
    figures, sent = {}, 0
    for what in ("one_by_one", "in_bulk"):
        seconds = stage.send(what, sent, count)
        if seconds is not None:
            figures[what] = seconds / count * 1e6
            sent += count + 100
    with stage.worker() as worker:
        worker.wait_for(sent)
    check([note.number for note in stage.notes()], range(sent))
    return figures


ROW = Row(
    title="Sending {count} messages from one thread",
    peers=(
        peers.OURS,
        peers.STOCK,
        peers.CELERY_THREADS,
        peers.TASKIQ,
        peers.PGQUEUER,
        peers.OBAN,
        peers.PROCRASTINATE,
    ),
    count=10_000,
    figures={
        "one_by_one": Figure("one at a time, µs a message", more=False),
        "in_bulk": Figure("1,000 at a time, µs a message", more=False, digits=1),
    },
    measure=measure,
)
