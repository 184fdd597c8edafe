"""Looks every few seconds at what processes and servers have taken."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.processes import children_of
from tests.soak.world import World
from tests.supervisor import Supervisor
from worker.queues import Queue

#: Samples between two of what takes longer: tables, and the kinds of keys.
SELDOM = 6
#: What in the names of keys, and of clients, tells one from the other.
_ONE_OF_MANY = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d{3,}")


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """One process at one moment.

    Attributes:
      entry: Whose.
      role: ``main``, ``keeper`` or ``worker``.
      age: Seconds since it was first seen.
      rss: Bytes.
    """

    entry: str
    role: str
    pid: int
    age: float
    rss: int
    threads: int
    files: int


@dataclass(frozen=True, slots=True)
class Sample:
    """All of it at one moment.

    Attributes:
      at: Seconds since the load began.
      counts: Of the servers, by name.
      tables: Rows of each table; seldom.
      keys: Keys in Redis by kind; seldom.
    """

    at: float
    processes: list[ProcessSample]
    counts: dict[str, float]
    tables: dict[str, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)


class Sampler:
    """A thread that takes samples until the ``with`` block ends.

    Attributes:
      samples: In order.
      errors: What kept it from one.
    """

    def __init__(self, world: World, supervisor: Supervisor, every: float) -> None:
        self._world = world
        self._supervisor = supervisor
        self._every = every
        self._began = time.monotonic()
        self._seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.samples: list[Sample] = []
        self.errors: list[str] = []

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def now(self) -> float:
        """Seconds since the first sample."""
        return time.monotonic() - self._began

    def _run(self) -> None:
        # Connections of its own, there all the time, so that looking changes nothing.
        with psycopg.connect(self._world.superuser(), autocommit=True) as connection, self._world.redis() as client:
            for n in range(1_000_000):
                try:
                    self.samples.append(self._take(connection, client, seldom=n % SELDOM == 0))
                except (psycopg.Error, redis.RedisError, OSError) as e:
                    self.errors.append(f"no sample: {type(e).__name__}: {e}"[:300])
                if self._stop.wait(self._every):
                    return

    def _take(self, connection: psycopg.Connection[Any], client: redis.Redis, *, seldom: bool) -> Sample:
        now = self.now
        return Sample(
            round(now, 1),
            list(self._processes(now)),
            {**_postgres(connection), **_redis(client)},
            _tables(connection) if seldom else {},
            _keys(client) if seldom else {},
        )

    def _processes(self, now: float) -> Iterator[ProcessSample]:
        for entry in self._supervisor.entries:
            main = self._supervisor.group(entry)
            if main is None:
                continue
            found = [(main, "main")]
            for child in children_of(main):
                # The keeper stands between Dramatiq's main process and the worker.
                workers = children_of(child)
                found += [(child, "keeper" if workers else "worker"), *((each, "worker") for each in workers)]
            for pid, role in found:
                age = now - self._seen.setdefault(pid, now)
                try:
                    yield ProcessSample(entry, role, pid, round(age, 1), *_facts(pid))
                except (OSError, LookupError):
                    # It has just ended.
                    continue


def _facts(pid: int) -> tuple[int, int, int]:
    said = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(said["VmRSS"].split()[0]) * 1024, int(said["Threads"]), files


def _postgres(connection: psycopg.Connection[Any]) -> dict[str, float]:
    row = connection.execute(
        "SELECT count(*) FILTER (WHERE usename = 'app_user'), count(*) FILTER (WHERE usename = 'app_operator'),"
        " pg_database_size(current_database()) FROM pg_stat_activity WHERE datname = current_database()"
    ).fetchone()
    assert row is not None
    found: dict[str, float] = {"connections of workers": row[0], "connections of operators": row[1]}
    found["connections to Postgres"], found["size of the database"] = row[0] + row[1], row[2]
    rows = connection.execute("SELECT status, count(*) FROM worker_failed_jobs GROUP BY 1").fetchall()
    found |= {f"failed jobs, {status}": 0 for status in ("pending", "in_progress", "resolved", "abandoned")}
    found |= {f"failed jobs, {status}": count for status, count in rows}
    found["failed jobs"] = sum(count for _, count in rows)
    return found


def _redis(client: redis.Redis) -> dict[str, float]:
    info: Any = client.info()
    found: dict[str, float] = {
        "connections to Redis": info["connected_clients"],
        "memory of Redis": info["used_memory"],
        "keys in Redis": int(client.dbsize()),
        "spooled": client.hlen("dramatiq:__dramaturg__.spool"),
    }
    for queue in Queue:
        waiting, there, delayed = (
            client.llen(f"dramatiq:{queue.value}"),
            client.hlen(f"dramatiq:{queue.value}.msgs"),
            client.hlen(f"dramatiq:{queue.value}.DQ.msgs"),
        )
        found[f"waiting in {queue.value}"] = waiting
        found[f"held of {queue.value}"] = max(0, there - waiting)
        found[f"delayed in {queue.value}"] = delayed
    for what in ("waiting in", "held of", "delayed in"):
        found[what.split()[0]] = sum(found[f"{what} {queue.value}"] for queue in Queue)
    return found


def _tables(connection: psycopg.Connection[Any]) -> dict[str, int]:
    names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {
        name: int(connection.execute(f"SELECT count(*) FROM {name}".encode()).fetchone()[0])  # type: ignore[index]
        for (name,) in names.fetchall()
    }


def _keys(client: redis.Redis) -> dict[str, int]:
    return dict(Counter(kind_of(key.decode("utf-8", "replace")) for key in client.scan_iter("*", count=5_000)))


def kind_of(name: str) -> str:
    """Return what keys have in common."""
    return _ONE_OF_MANY.sub("*", name)


def save(samples: list[Sample], path: Path, **more: Any) -> None:
    """Write samples, a line each; the first holds ``more``."""
    lines = [json.dumps(more), *(json.dumps(asdict(sample)) for sample in samples)]
    path.write_text("\n".join(lines) + "\n")


def load(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Return what :func:`save` wrote."""
    first, *lines = path.read_text().splitlines()
    samples = []
    for line in lines:
        said = json.loads(line)
        samples.append(Sample(**{**said, "processes": [ProcessSample(**each) for each in said["processes"]]}))
    return json.loads(first), samples
