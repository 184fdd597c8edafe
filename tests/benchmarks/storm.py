"""A storm: 100,000 failures in a row while each commit takes Postgres 5 ms, beside steady jobs of another queue.

Once with a process for either queue, as in the Procfile, and once with one process for both. Prints what is recorded a
second, what went into the spool, the memory of the process that fails over time, how long steady jobs wait before and
during the storm, and what ``worker check``, the log and the metrics say of it. Every failure must have one row, and
every steady job must have run. ``python -m tests.benchmarks.storm [--failures 100000] [--within 300]``.

Postgres is slow by its own ``commit_delay``, with ``commit_siblings`` at 0: whoever flushes the log sleeps before it
does, and holds the lock that others wait for, as with a slow disk. A trigger would cost a row and not a commit, a proxy
would have to know the protocol, and both would slow down more than that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any
from uuid import UUID

import psycopg
import redis
from rich.console import Console
from rich.table import Table

from tests.processes import workers_of
from tests.servers import Database, running_cluster, running_redis, temporary_folder

#: As many as are sent each second of the steady jobs, before and during; and for how many seconds before.
STEADY, BEFORE = 50, 10.0
THREADS = 8
TENANTS = [UUID(int=n) for n in range(1, 11)]
COMMIT_TAKES_MS = 5
SPOOL, QUEUE = "dramatiq:__dramaturg__.spool", "dramatiq:llm.msgs"
ACTORS = "tests.benchmarks.storm_actors"
MODES = {"a process for each queue": ("llm", "attribution"), "one process for both": ("llm attribution",)}


class Steady(threading.Thread):
    """Sends steady jobs until it is told to stop.

    Attributes:
      sent: How many.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._stop_it = threading.Event()

    def run(self) -> None:
        from tests.benchmarks.storm_actors import steady

        due = time.monotonic()
        while not self._stop_it.is_set():
            steady.send_with_options(args=(time.time(),), tenant_id=str(TENANTS[0]))
            self.sent += 1
            due += 1 / STEADY
            self._stop_it.wait(max(0.0, due - time.monotonic()))

    def end(self) -> None:
        """Stop, and wait until it has."""
        self._stop_it.set()
        self.join()


@contextmanager
def workers(queues: Sequence[str], folder: Path) -> Iterator[tuple[list[subprocess.Popen[bytes]], list[Path]]]:
    """Worker processes as an entry of a Procfile starts them, and their logs; the first is the one that fails."""
    logs = [folder / f"{n}.log" for n in range(len(queues))]
    processes = []
    for names, log in zip(queues, logs, strict=True):
        words = ["-m", "worker", "dramatiq", ACTORS, "--processes", "1", "--threads", str(THREADS), "--queues"]
        with log.open("wb") as output:
            command = [sys.executable, *words, *names.split()]
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))
    try:
        yield processes, logs
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def resident(main: subprocess.Popen[bytes]) -> float:
    """Return the MiB that the worker process under ``main`` has; 0 while there is none."""
    found = 0
    for pid in workers_of(main.pid):
        status = Path(f"/proc/{pid}/status")
        if status.exists() and (line := re.search(r"VmRSS:\s+(\d+)", status.read_text())):
            found = max(found, int(line[1]))
    return found / 1024


def p50_p95(waits: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile."""
    parts = quantiles(waits, n=20)
    return parts[9], parts[18]


def templates(log: Path) -> list[tuple[int, str]]:
    """Return the kinds of lines that a log has, the most frequent first."""
    kinds: Counter[str] = Counter()
    for line in log.read_text("utf-8", "replace").splitlines():
        if re.search(r"WARNING|ERROR|CRITICAL|warning|error|critical", line):
            kinds[re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d[\d.,:-]*", "*", line)[:160]] += 1
    return [(count, kind) for kind, count in kinds.most_common(8)]


def said(*words: str) -> str:
    """Return what the command ``worker`` prints."""
    command = [sys.executable, "-m", "worker", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def looked() -> list[str]:
    """Return what ``worker check`` warns of, and what the metrics say of the queue and of the spool."""
    findings = [one for one in json.loads(said("check", "--json"))["findings"] if one["status"] != "ok"]
    warned = [f"check: {one['status']}: {one['name']}: {one['found']}" for one in findings if "queue" in one["name"]]
    lines = [
        f"metrics: {line}"
        for line in said("metrics", "--once").splitlines()
        if not line.endswith(" 0.0")
        and re.match(r"dramaturg_(queue|spool|jobs_total|failure_recording_seconds_(sum|count))", line)
        and ("llm" in line or "spool" in line)
    ]
    return [*(warned or ["check: no warning of queues"]), *lines]


def storm(
    queues: Sequence[str], failures: int, within: float, database: Database, client: redis.Redis
) -> dict[str, Any]:
    """Raise one, and return what it did."""
    from tests.benchmarks.storm_actors import WAITS, fail
    from worker.sending import enqueue_many

    seen: dict[str, Any] = {"MiB": [], "most spooled": 0}
    with temporary_folder() as folder, workers(queues, folder) as (processes, logs):
        steady = Steady()
        steady.start()
        while not client.llen(WAITS):
            time.sleep(0.1)
        # What waited for the worker to start is no measure.
        time.sleep(3)
        client.delete(WAITS)
        time.sleep(BEFORE)
        seen["MiB before"], began = round(resident(processes[0]), 1), time.time()
        ids: set[str] = set()
        for first in range(0, failures, 10_000):
            messages = [
                fail.message_with_options(args=(n, "2025-01"), tenant_id=str(TENANTS[n % len(TENANTS)]))
                for n in range(first, min(first + 10_000, failures))
            ]
            ids |= {message.message_id for message in enqueue_many(messages)}
        end, checked = time.time() + within, False
        while client.exists(QUEUE) and time.time() < end:
            time.sleep(1)
            seen["MiB"].append(round(resident(processes[0]), 1))
            seen["most spooled"] = max(seen["most spooled"], client.hlen(SPOOL))
            if not checked and time.time() - began > min(10, within / 3):
                checked, seen["looked"] = True, looked()
        over = time.time()
        while client.exists(SPOOL) and time.time() < end:
            time.sleep(0.1)
        seen["seconds"] = round(over - began, 1)
        seen["seconds until the spool was empty"] = round(time.time() - over, 1)
        seen["left"] = client.hlen(QUEUE)
        steady.end()
        end = time.time() + 30
        while client.exists("dramatiq:attribution.msgs") and time.time() < end:
            time.sleep(0.1)
        seen["log"] = templates(logs[0])
        said_waits: Any = client.lrange(WAITS, 0, -1)
        waits = [tuple(map(float, str(one, "ascii").split(":"))) for one in said_waits]
        seen["steady jobs that did not run"] = client.hlen("dramatiq:attribution.msgs")
    for name, of_phase in (
        ("before", [wait for sent, wait in waits if sent < began]),
        ("during", [wait for sent, wait in waits if began <= sent <= over]),
    ):
        seen[f"wait {name}, p50 and p95 in ms"] = [round(ms, 1) for ms in p50_p95(of_phase)]
        seen[f"longest wait {name}"] = round(max(of_phase), 1)
    with psycopg.connect(database.admin_url) as connection:
        recorded = [row[0] for row in connection.execute("SELECT task_id FROM worker_failed_jobs")]
        connection.execute("TRUNCATE worker_failed_jobs, worker_failed_job_groups, worker_failed_job_events CASCADE")
    seen["rows"], seen["rows a second"] = len(recorded), round(len(recorded) / (over - began))
    if not seen["left"] and sorted(recorded) != sorted(ids):
        raise SystemExit(
            f"{len(ids - set(recorded))} failures have no row; {len(recorded)} rows of {len(ids)} failures"
        )
    return seen


def main() -> None:
    """Raise both, and print what they did."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--failures", type=int, default=100_000)
    parser.add_argument("--within", type=float, default=300.0, help="Seconds after which each ends as it is.")
    arguments = parser.parse_args()
    from worker import migrate

    slow = {
        "fsync": "on",
        "synchronous_commit": "on",
        "commit_delay": str(COMMIT_TAKES_MS * 1000),
        "commit_siblings": "0",
    }
    with running_cluster(slow) as cluster, running_redis() as redis_url, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        os.environ.update({**database.environment(), "REDIS_URL": redis_url, "LOG_LEVEL": "WARNING"})
        with redis.Redis.from_url(redis_url) as client:
            found = {}
            for name, queues in MODES.items():
                found[name] = storm(queues, arguments.failures, arguments.within, database, client)
                client.flushall()
    console = Console(width=130)
    table = Table(
        "", *found, title=f"{arguments.failures:,} failures, {COMMIT_TAKES_MS} ms a commit, {THREADS} threads"
    )
    for name in next(iter(found.values())):
        if name not in {"MiB", "log", "looked"}:
            table.add_row(name, *(str(one[name]) for one in found.values()))
    console.print(table)
    for name, one in found.items():
        every = max(1, len(one["MiB"]) // 20)
        console.print(f"{name}: MiB of the process that fails, over time: {one['MiB'][::every]}")
        for line in one.get("looked", []):
            console.print(f"{name}: in the midst of it: {line}", highlight=False)
        for count, kind in one["log"]:
            console.print(f"{name}: log: {count:,} x {kind}", markup=False)


if __name__ == "__main__":
    main()
