"""Keeps the entries of the Procfile running, as a host would."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.plan import QUEUES
from tests.chaos.world import ROOT
from worker.procfile import read_procfile

#: Seconds until what has exited is started again, and from SIGTERM to SIGKILL.
RESTART_AFTER, KILL_AFTER = 0.5, 30.0


@dataclass
class Entry:
    """A line of the Procfile, and the process that runs it now; its worker processes are in its process group."""

    queue: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0
    kill_at: float | None = None


@dataclass
class Supervisor:
    """Starts, watches, restarts and ends the processes of all entries."""

    environment: dict[str, str]
    folder: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    #: When process groups ended, by their id.
    ended: dict[int, float] = field(default_factory=dict)
    started: int = 0
    #: Further entries, by the entry of the Procfile that each is a second one of.
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        for name, command in read_procfile(ROOT / "Procfile").items():
            if name in QUEUES:
                ours = command.replace(f"worker.{name}", f"tests.chaos.actors --queues {name}")
                self.entries[name] = Entry(name, shlex.split(ours))
        for name, like in self.more.items():
            self.entries[name] = Entry(name, self.entries[like].command)

    def start(self) -> None:
        """Start everything."""
        for entry in self.entries.values():
            self._start(entry)
        self._thread.start()

    def _start(self, entry: Entry) -> None:
        self.started += 1
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with (self.folder / f"{entry.queue}.log").open("ab") as log:
            entry.process = subprocess.Popen(
                entry.command,
                cwd=ROOT,
                env={**self.environment, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        entry.kill_at = None

    def group(self, queue: str) -> int | None:
        """Return the id of an entry's process group, which is that of its main process; ``None`` while it is down."""
        with self._lock:
            process = self.entries[queue].process
            return None if process is None or process.poll() is not None else process.pid

    def terminate(self, queue: str) -> None:
        """Tell every process of an entry to end, at once, as Heroku does; and kill what is left after a while."""
        with self._lock:
            entry = self.entries[queue]
            if entry.process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(entry.process.pid, signal.SIGTERM)
                entry.kill_at = time.monotonic() + KILL_AFTER

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            with self._lock:
                for entry in self.entries.values():
                    self._look_after(entry)

    def _look_after(self, entry: Entry) -> None:
        process = entry.process
        if process is None:
            if time.monotonic() >= entry.restart_at:
                self._start(entry)
        elif process.poll() is not None:
            self._end(process.pid)
            entry.process, entry.restart_at = None, time.monotonic() + RESTART_AFTER
        elif entry.kill_at is not None and time.monotonic() > entry.kill_at:
            self._end(process.pid)

    def _end(self, group: int) -> None:
        # What outlives its master goes with it, as a container's processes do.
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.ended.setdefault(group, time.time())

    def stop(self) -> None:
        """End everything: what does not within a while is killed."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        running = [entry.process for entry in self.entries.values() if entry.process is not None]
        for sent in (signal.SIGCONT, signal.SIGTERM):
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sent)
        end = time.monotonic() + KILL_AFTER
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            self._end(process.pid)
            process.wait()


@contextmanager
def supervised(environment: dict[str, str], folder: Path, more: dict[str, str] | None = None) -> Iterator[Supervisor]:
    """Keep all entries running as long as the ``with`` block lasts."""
    supervisor = Supervisor(environment, folder, more=more or {})
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()
