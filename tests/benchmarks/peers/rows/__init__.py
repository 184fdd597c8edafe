"""What is measured, one row a file."""

from __future__ import annotations

from tests.benchmarks.peers.rows import (
    drain,
    enqueue,
    failures,
    idle,
    processes,
    starting,
    transaction,
    waiting,
)
from tests.benchmarks.peers.rows.row import Row

ROWS: dict[str, Row] = {
    "drain": drain.ROW,
    "transaction": transaction.ROW,
    "enqueue": enqueue.ROW,
    "idle": idle.ROW,
    "failures": failures.ROW,
    "failures-silent": failures.SILENT,
    "processes": processes.ROW,
    "waiting": waiting.ROW,
    "starting": starting.ROW,
}
