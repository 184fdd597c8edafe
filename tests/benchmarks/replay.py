"""Replay of failed no-op jobs of ten tenants by one worker process of 8 threads: ``python -m tests.benchmarks.replay``.

For the ramp opened wide and the default one: rows closed a second from the replay's start to its end, round trips to
Postgres of the replaying process for each 100 rows, those that claim them apart, and its peak memory, also beside the
same process' before it began.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final
from uuid import UUID

import dramatiq
import psycopg
from loguru import logger
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event

from tests.servers import Cluster, Database, running_cluster, running_redis

THREADS: Final = 8
TENANTS: Final = tuple(UUID(int=0xA0 + n) for n in range(10))
RAMPS: Final[dict[str, tuple[int, ...] | None]] = {"wide (1000)": (1_000,), "default": None}


def declare() -> dramatiq.Broker:
    """Return the broker, with an actor that does nothing."""
    logging.disable(logging.CRITICAL)
    from worker.broker import broker

    logger.remove()
    dramatiq.actor(broker=broker, queue_name="attribution", actor_name="test.noop")(lambda work: None)
    return broker


def work() -> None:
    """Be the worker, until standard input is closed."""
    broker = declare()
    worker = dramatiq.Worker(broker, worker_threads=THREADS, queues={"attribution"})
    worker.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    worker.stop()
    broker.close()


class Trips:
    """Counts round trips: all of them, and those of transactions that claim."""

    def __init__(self) -> None:
        self.all = self.claiming = self._own = 0
        self._claims = False
        event.listen(Engine, "before_cursor_execute", self._execute)
        event.listen(Engine, "commit", self._commit)

    def _execute(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            self._own, self._claims = 0, False
        self.all += 1
        self._own += 1
        self._claims = self._claims or "claimed AS (" in statement

    def _commit(self, _connection: Any) -> None:
        self.all += 1
        if self._claims:
            self.claiming += self._own + 1


def replay(ramp: tuple[int, ...] | None) -> None:
    """Be the process that replays, and print what it took."""
    broker = declare()
    from db.failed import Filter
    from db.replays import runs
    from db.session import operator_transaction
    from worker.broker import settings
    from worker.replay.making import make_runner, sleep

    client: Any = broker.client  # type: ignore[attr-defined]
    how = runs.ReplaySettings() if ramp is None else runs.ReplaySettings(ramp=ramp)
    with operator_transaction() as session:
        replay_id = runs.create(session, Filter(actor=("test.noop",)), how, by="benchmark")
    runner = make_runner(settings, broker, client, "benchmark", sleep, knows_all=True)
    before, trips, start = _memory(), Trips(), time.perf_counter()
    done = runner.run_to_end(replay_id)
    took = time.perf_counter() - start
    if done is None or done.state != "finished" or set(done.items) != {"succeeded"}:
        raise SystemExit(f"the replay did not succeed: {done}")
    rows = done.items["succeeded"]
    print(
        json.dumps(
            {
                "rows a second": rows / took,
                "round trips of 100 rows": trips.all / rows * 100,
                "of them claiming": trips.claiming / rows * 100,
                "peak MB": _memory(),
                "MB before": before,
            }
        )
    )


def _memory() -> float:
    # Not what getrusage() says, which counts the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def fill(database: Database, rows: int) -> None:
    """Make the rows."""
    from db import session
    from tests.chaos import failed_before

    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        for tenant in TENANTS:
            connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'x')", [tenant])
        connection.execute(f"ALTER DATABASE {database.name} SET synchronous_commit = off".encode())
    session.configure(database.worker_url, operator_database_url=database.operator_url)
    works = [{"kind": f"kind {n}", "text": "x" * 200} for n in range(5)]
    failed_before.record(failed_before.failures(1, rows, TENANTS, [("attribution", "test.noop")], works))
    session.dispose()
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {database.name} RESET synchronous_commit".encode())
        connection.execute("VACUUM ANALYZE")


@contextmanager
def working(environment: dict[str, str]) -> Iterator[None]:
    """Run the worker."""
    command = [sys.executable, "-m", "tests.benchmarks.replay", "--be", "worker"]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            process.stdin.close()
            process.wait(60)


def measure(cluster: Cluster, template: Database, redis_url: str, ramp: str) -> dict[str, float]:
    """Replay all rows of a copy of ``template``."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with cluster.database(template.name) as database:
        environment = {**os.environ, **database.environment(), "REDIS_URL": redis_url}
        with working(environment):
            command = [sys.executable, "-m", "tests.benchmarks.replay", "--be", ramp]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, float] = json.loads(done.stdout)
        return found


def _listed(rounds: list[dict[str, float]]) -> str:
    return ", ".join(f"{one['rows a second']:,.0f}" for one in rounds)


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ramp", choices=list(RAMPS), action="append", help="both by default")
    parser.add_argument("--be", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be is not None:
        start: Callable[[], None] = work if arguments.be == "worker" else lambda: replay(RAMPS[arguments.be])
        start()
        return
    from worker import migrate

    durable = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    with running_cluster(durable) as cluster, running_redis() as redis_url, cluster.database() as template:
        migrate.upgrade(template.owner_url)
        fill(template, arguments.rows)
        found = {
            ramp: [measure(cluster, template, redis_url, ramp) for _ in range(arguments.rounds)]
            for ramp in arguments.ramp or RAMPS
        }
    table = Table("ramp", *next(iter(found.values()))[0], title=f"{arguments.rows:,} rows, medians")
    for ramp, rounds in found.items():
        table.add_row(ramp, *(f"{median(one[name] for one in rounds):,.1f}" for name in rounds[0]))
    console = Console(width=130)
    console.print(table)
    for ramp, rounds in found.items():
        console.print(f"{ramp}: {_listed(rounds)} rows a second")


if __name__ == "__main__":
    main()
