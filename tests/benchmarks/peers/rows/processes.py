"""The same queue for 1, 2 and 4 worker processes: jobs a second, and what a job costs."""

from __future__ import annotations

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import check, rate_of_all
from tests.benchmarks.peers.rows.row import Figure, Row
from tests.benchmarks.peers.running import Stage

PROCESSES = (1, 2, 4)


def measure(stage: Stage, count: int) -> dict[str, float]:
    """From when each process had its first job, so that starting does not count."""
    figures = {}
    for processes in PROCESSES:
        sent = count * processes
        stage.send("all", sent, "noop")
        with stage.worker(processes) as worker:
            first = worker.wait_for(1, look_every=0.01)
            used, redis_used = worker.processor_time(), stage.redis_seconds()
            worker.wait_for(sent)
            ended = stage.wait_for_ends()
            used, redis_used = worker.processor_time() - used, stage.redis_seconds() - redis_used
        notes = stage.notes()
        check([note.number for note in notes], range(sent))
        figures[f"rate {processes}"] = rate_of_all(notes, processes, until=ended)
        figures[f"cpu {processes}"] = used / (sent - first) * 1e6
        figures[f"redis {processes}"] = redis_used / (sent - first) * 1e6
        stage.noted.unlink()
    return figures


def _words(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"


ROW = Row(
    title="{count} no-op jobs for each worker process of 8 threads",
    peers=(peers.OURS, peers.STOCK, peers.STOCK_AT_BEST),
    count=20_000,
    figures={
        **{f"rate {n}": Figure(f"jobs a second, {_words(n)}") for n in PROCESSES},
        **{f"cpu {n}": Figure(f"processor time a job, µs, {_words(n)}", more=False) for n in PROCESSES},
        **{f"redis {n}": Figure(f"Redis' a job, µs, {_words(n)}", more=False) for n in PROCESSES},
    },
    measure=measure,
)
