"""Real processes on real servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import redis
from dramatiq import Message
from psycopg.rows import dict_row

from tests import forks
from tests.processes import children_of
from tests.servers import Database
from worker.broker import make_broker
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Deployment:
    """A database, a Redis, and processes on them."""

    database: Database
    redis_url: str
    folder: Path
    stack: ExitStack
    broker: dramatiq.Broker = field(init=False)
    client: redis.Redis = field(init=False)
    #: What was started, the leader of a process group of its own.
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker = make_broker(Settings.load(self.environment()))
        self.client = self.broker.client  # type: ignore[attr-defined]
        self.stack.callback(self.client.close)

    def environment(self) -> dict[str, str]:
        """The environment of a process of this deployment."""
        path = os.pathsep.join([str(BIN), os.environ["PATH"]])
        return {**os.environ, **self.database.environment(), "REDIS_URL": self.redis_url, "PATH": path}

    def start(self, *command: str, cwd: Path = ROOT, **environment: str) -> Path:
        """Start a process, to be stopped with the test, and return the file of its output."""
        log = self.folder / f"{len(list(self.folder.iterdir()))}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**self.environment(), **environment},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)
        self.stack.callback(_stop, process)
        return log

    def run(self, *command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def worker(self, *words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command ``worker`` to its end, as :mod:`tests.forks` does."""
        return forks.run(words, cwd=cwd, env={**self.environment(), **environment})

    def send(self, actor: dramatiq.Actor[..., Any], tenant_id: UUID | None = None, **kwargs: Any) -> Message[Any]:
        """Send through this deployment's Redis, whatever broker the actor was declared on."""
        options: dict[str, Any] = {"tenant_id": tenant_id} if tenant_id else {}
        return self.broker.enqueue(actor.message_with_options(kwargs=kwargs, **options))

    def waiting(self, queue: str) -> int:
        """Messages of a queue that are neither done nor dead: queued, delayed or running."""
        return int(self.broker.do_qsize(queue))  # type: ignore[attr-defined]

    def held(self, queue: str | None = None) -> int:
        """Messages that some process holds, of all queues, delay queues too, or of one."""
        keys = "dramatiq:__acks__.*" if queue is None else f"dramatiq:__acks__.*.{queue}"
        return sum(int(self.client.scard(key)) for key in self.client.scan_iter(keys))

    def statements(self) -> int:
        """Statements that Postgres runs for workers."""
        with psycopg.connect(self.database.admin_url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dramaturg' AND state = 'active'"
                " AND datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def failures(self) -> list[dict[str, Any]]:
        """All rows of worker_failed_jobs, as a superuser sees them."""
        with psycopg.connect(self.database.admin_url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM worker_failed_jobs ORDER BY failed_at").fetchall()

    def add_tenant(self, name: str) -> UUID:
        """Add a tenant."""
        with psycopg.connect(self.database.admin_url) as connection:
            row = connection.execute("INSERT INTO tenants (name) VALUES (%s) RETURNING id", [name]).fetchone()
        assert row is not None
        return UUID(str(row[0]))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, from the top, so that nobody tells of the end of another."""
    if process.poll() is None:
        family = [process.pid]
        for pid in family:
            family += children_of(pid)
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
