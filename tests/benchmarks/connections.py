"""What each entry of the Procfile takes: connections to Postgres and Redis and memory, idle and with every thread busy.

Each runs alone on servers of its own, by the Procfile's command, so that what is counted is its. Connections are those
of ``pg_stat_activity`` and ``CLIENT LIST``. Memory is what its processes share counted once (PSS), which is what a host
that counts pages sees. Busy, every thread holds a transaction, then fails, then holds one of its tenant and one across
tenants, then one in a coroutine: pools keep what they opened, so what is seen last is the most that there can be.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import psycopg
import redis
from rich.console import Console
from rich.table import Table

from tests.benchmarks.busy import WAYS, name
from tests.processes import children_of
from tests.servers import Cluster, Database, free_port, running_cluster, running_redis
from tests.waiting import eventually
from worker import migrate
from worker.broker import make_broker
from worker.check.procfile import read_entries
from worker.console_tokens import make_token
from worker.live import list_workers, scheduler_state
from worker.procfile import read_procfile
from worker.queues import Queue
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
#: Seconds for which each job keeps its thread.
HELD = 1.5
#: Requests at a time to the console, more than it answers at once.
VISITORS = 60
TOKEN, KEPT = make_token("ana", "operator")


@dataclass
class Seen:
    """The most that was seen at a time."""

    postgres: int = 0
    redis: int = 0
    memory: int = 0
    #: Connections by role.
    roles: dict[str, int] = field(default_factory=dict)


@dataclass
class Place:
    """Where an entry runs."""

    database: Database
    client: redis.Redis
    environment: dict[str, str]
    pid: int = 0

    def look(self, seen: Seen) -> None:
        """Count once."""
        with psycopg.connect(self.database.admin_url) as connection:
            roles: dict[str, int] = dict(
                connection.execute(
                    "SELECT usename, count(*) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    " AND backend_type = 'client backend' GROUP BY 1"
                ).fetchall()
            )
        seen.postgres = max(seen.postgres, sum(roles.values()))
        seen.roles = {role: max(n, seen.roles.get(role, 0)) for role, n in {**seen.roles, **roles}.items()}
        ours = self.client.client_id()
        clients: Any = self.client.client_list()
        theirs = [c for c in clients if int(c["id"]) != ours and c["name"] != "benchmark"]
        seen.redis = max(seen.redis, len(theirs))
        seen.memory = max(seen.memory, sum(map(memory, family(self.pid))))


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for each in found:
        found += children_of(each)
    return found


def memory(pid: int) -> int:
    """Return the kilobytes of a process, its part of what it shares with others."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


@contextmanager
def watching(place: Place, seen: Seen) -> Iterator[None]:
    """Count all the time while the ``with`` block lasts."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            place.look(seen)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def work(place: Place, queues: Sequence[str], threads: int) -> dict[str, Seen]:
    """Keep every thread of a worker entry busy, in each way."""
    broker = make_broker(Settings.load(place.environment))
    found = dict[str, Seen]()
    for what in WAYS:
        for n in range(2 * threads):
            options: dict[str, Any] = {"tenant_id": str(uuid4())}
            queue = queues[n % len(queues)]
            broker.enqueue(dramatiq.Message(queue, name(queue, what), (), {"seconds": HELD}, options))
        with watching(place, found.setdefault(what, Seen())):
            eventually(lambda: not any(broker.do_qsize(queue) for queue in queues), seconds=120)  # type: ignore[attr-defined]
    broker.close()
    return found


def visit(port: int, place: Place) -> dict[str, Seen]:
    """Ask the console for many pages at a time."""
    paths = ["/", "/failures", "/groups", "/replays", "/tenants", "/audit", "/health/ready"] * VISITORS

    def get(path: str) -> None:
        asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=60) as answer:  # noqa: S310
            answer.read()

    seen = Seen()
    with watching(place, seen), ThreadPoolExecutor(VISITORS) as pool:
        list(pool.map(get, paths))
    return {"visited": seen}


def ready(port: int) -> bool:
    """Whether the console answers."""
    with suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5).status == 200)
    return False


def measure(entry: str, command: str, cluster: Cluster, template: str, *, single: bool) -> tuple[str, dict[str, Seen]]:
    """Return the processes and threads of an entry, and what was seen of it: ``idle`` first."""
    with cluster.database(template) as database, running_redis(appendonly="no") as url:
        port = free_port()
        environment = {
            **os.environ,
            **({"DATABASE_URL": database.owner_url} if single else database.environment()),
            "REDIS_URL": url,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
        }
        client = redis.Redis.from_url(url, client_name="benchmark")
        place = Place(database, client, environment)
        workers, _ = read_entries({entry: command}, {})
        size = "1 x 1"
        starts: Callable[[], object] = lambda: scheduler_state(client).lives  # noqa: E731
        load: Callable[[], dict[str, Seen]] = dict
        if workers:
            processes, threads = workers[0].command.processes or 1, workers[0].command.threads
            size = f"{processes} x {threads}"
            queues = [queue.value for queue in Queue if f"worker.{queue}" in workers[0].command.modules]
            last = f"worker.{queues[-1]}"
            command = f"{command.replace(last, f'{last} tests.benchmarks.busy')} --queues {' '.join(queues)}"
            starts = lambda: len(list_workers(client)) == processes  # noqa: E731
            load = lambda: work(place, queues, processes * threads)  # noqa: E731
        elif "console" in command:
            environment |= {"PORT": str(port), "CONSOLE_TOKENS": str(KEPT), "CONSOLE_HTTPS": "no"}
            starts, load = lambda: ready(port), lambda: visit(port, place)
        else:
            # A tick a second.
            environment["SCHEDULE"] = "worker.housekeeping.sample_queues=* * * * * *"
        process = subprocess.Popen(
            shlex.split(command), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        place.pid = process.pid
        try:
            eventually(starts, seconds=60)
            time.sleep(5)
            idle = Seen()
            with watching(place, idle):
                time.sleep(3)
            return size, {"idle": idle, **load()}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(40)
            client.close()


def main() -> None:
    """Measure the entries that are named, by default all, and print the table."""
    table = Table("entry", "processes x threads", "what", "Postgres", "of them by role", "Redis", "memory, MiB")
    commands = read_procfile(ROOT / "Procfile")
    asked = [each for each in sys.argv[1:] if each != "--single"]
    commands |= dict(each.split("=", 1) for each in asked if "=" in each)
    wanted = [each.partition("=")[0] for each in asked] or [each for each in commands if each != "release"]
    with running_cluster() as cluster, cluster.database() as template:
        migrate.upgrade(template.owner_url)
        for entry in wanted:
            size, found = measure(entry, commands[entry], cluster, template.name, single="--single" in sys.argv)
            for what, seen in found.items():
                roles = ", ".join(f"{role.rpartition('_')[2]} {n}" for role, n in sorted(seen.roles.items()))
                numbers = (str(seen.postgres), roles, str(seen.redis), str(seen.memory // 1024))
                table.add_row(entry, size, what, *numbers)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
