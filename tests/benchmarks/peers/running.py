"""One run of one peer: it enqueues in a process, a worker works, and what the jobs noted is read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.benchmarks.peers.peers import Peer
from tests.benchmarks.peers.processes import processor_time
from tests.benchmarks.peers.reckoning import Incomplete, Note, read
from tests.benchmarks.peers.servers import Servers
from tests.servers import Database

HERE = Path(__file__).parent
#: Seconds within which all jobs of a run must have run.
WITHIN = 900


class Stage:
    """Empty servers, and a folder, for one peer."""

    def __init__(self, peer: Peer, programs: Path, database: Database, servers: Servers, folder: Path) -> None:
        self.peer = peer
        self.database = database
        self.redis_url = servers.redis_url
        self._servers = servers
        self.noted = folder / "ran"
        self.log = folder / "log"
        self._programs = programs
        self._sending: list[subprocess.Popen[str]] = []
        self.variables = {
            **os.environ,
            **database.environment(),
            "REDIS_URL": servers.redis_url,
            "PGDSN": database.owner_url,
            **peer.settings,
            "RAN": str(self.noted),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(HERE),
        }

    def _command(self, command: Sequence[str]) -> list[str]:
        program, *rest = (self.variables[part[1:]] if part.startswith("$") else part for part in command)
        return [str(self._programs / program), *rest]

    def prepare(self) -> None:
        """Make the peer's tables.

        Raises:
          Incomplete: When that failed.
        """
        if self.peer.prepare:
            command = self._command(self.peer.prepare)
            done = subprocess.run(command, env=self.variables, cwd=HERE, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Incomplete(f"its tables are not made\n{done.stderr[-3000:]}")

    def begin(self, what: str, *arguments: object) -> subprocess.Popen[str]:
        """Start sending as ``note_sending.py`` does."""
        command = self._command(("python", "note_sending.py", self.peer.app, what, *map(str, arguments)))
        sending = subprocess.Popen(
            command, env=self.variables, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._sending.append(sending)
        return sending

    def send(self, what: str, *arguments: object) -> Any:
        """Send, and return what was seen.

        Raises:
          Incomplete: When that failed.
        """
        return self.end(self.begin(what, *arguments))

    def end(self, sending: subprocess.Popen[str]) -> Any:
        """Wait for what :meth:`begin` started, as :meth:`send` does."""
        said, problems = sending.communicate()
        if sending.returncode:
            raise Incomplete(f"it does not send\n{problems[-3000:]}")
        return json.loads(said.splitlines()[-1])

    def close(self) -> None:
        """End what sends yet."""
        for sending in self._sending:
            with sending:
                sending.kill()

    @contextmanager
    def worker(self, processes: int = 1) -> Iterator[Worker]:
        """Run the peer's worker for as long as the block."""
        command = list(self.peer.worker)
        if "--processes" in command:
            command[command.index("--processes") + 1] = str(processes)
        began = time.monotonic_ns()
        with self.log.open("w+") as log:
            process = subprocess.Popen(
                self._command(command), env=self.variables, cwd=HERE, stdout=log, stderr=log, start_new_session=True
            )
            worker = Worker(process, self.noted, began)
            try:
                yield worker
            except Incomplete as e:
                log.seek(0)
                raise Incomplete(f"{e}\n{log.read()[-3000:]}") from None
            finally:
                worker.stop()

    def notes(self) -> list[Note]:
        """Return what the jobs noted, by time."""
        return read(self.noted.read_bytes().splitlines())

    def column(self, query: str) -> list[Any]:
        """Return what a query gives, as a superuser."""
        with psycopg.connect(self.database.admin_url) as admin:
            return [value for (value,) in admin.execute(query)]

    def wait_for_ends(self) -> int:
        """Wait until nothing is left that was not acknowledged, after all jobs ran; return when, in nanoseconds.

        Some acknowledge jobs in large batches, long after they ran.

        Raises:
          Incomplete: When something is left for a minute.
        """
        until = time.monotonic() + 60
        with psycopg.connect(self.database.admin_url) as admin, redis.Redis.from_url(self.redis_url) as client:
            admin.autocommit = True
            while True:
                left = sum(self._count(admin, client, what) for what in self.peer.left)
                now = time.monotonic_ns()
                if not left:
                    return now
                if time.monotonic() > until:
                    raise Incomplete(f"{left} jobs ran and were not acknowledged within a minute")
                time.sleep(0.005)

    @staticmethod
    def _count(admin: psycopg.Connection, client: redis.Redis, what: str) -> int:
        if what.startswith("SELECT"):
            ((count,),) = admin.execute(what).fetchall()
            return int(count)
        said: Any = client.execute_command(*what.split())
        return int(said["pending"] if isinstance(said, dict) else said)

    def redis_seconds(self) -> float:
        """Return the processor seconds of Redis by now."""
        with redis.Redis.from_url(self.redis_url) as client:
            used = client.info("cpu")
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    def spent(self, worker: Worker) -> dict[str, float]:
        """Return the processor seconds by now: ``worker``, ``redis`` and, where it can be known, ``postgres``."""
        spent = {"worker": worker.processor_time(), "redis": self.redis_seconds()}
        postgres = self._servers.postgres_seconds()
        return spent if postgres is None else {**spent, "postgres": postgres}


@dataclass
class Worker:
    """A peer's worker.

    Attributes:
      process: The one that was started, which leads a session of its own.
      noted: Where its jobs note that they ran.
      began: When it was started, in nanoseconds.
    """

    process: subprocess.Popen[bytes]
    noted: Path
    began: int

    def wait_for(self, count: int, *, look_every: float = 0.05) -> int:
        """Wait until so many jobs have been noted; return how many have.

        Raises:
          Incomplete: When they have not within :data:`WITHIN`, or the worker has ended.
        """
        until, done, read_to = time.monotonic() + WITHIN, 0, 0
        while done < count:
            time.sleep(look_every)
            if self.noted.exists():
                with self.noted.open("rb") as noted:
                    noted.seek(read_to)
                    new = noted.read()
                read_to += len(new)
                done += new.count(b"\n")
            if done < count and self.process.poll() is not None:
                raise Incomplete(f"its worker ended with {self.process.returncode} after {done} of {count} jobs")
            if time.monotonic() > until:
                raise Incomplete(f"{done} of {count} jobs ran within {WITHIN} s")
        return done

    def processor_time(self) -> float:
        """Return the processor seconds of all its processes by now."""
        return processor_time(self.process.pid)

    def stop(self) -> None:
        """Tell it to end, and see that it does; some take half a minute, of which nothing is measured."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def staged(peer: Peer, programs: Path, servers: Servers) -> Iterator[Stage]:
    """Give a stage for one run of a peer."""
    with servers.emptied() as database, tempfile.TemporaryDirectory() as folder:
        stage = Stage(peer, programs, database, servers, Path(folder))
        stage.prepare()
        with closing(stage):
            yield stage
