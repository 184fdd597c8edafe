"""Keeps the entries of the Procfile running, as a host would."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import eventually

ROOT = Path(__file__).parents[1]
#: Seconds until what has exited is started again, and from SIGTERM to SIGKILL.
RESTART_AFTER, KILL_AFTER = 0.5, 30.0


@dataclass
class Entry:
    """A line of the Procfile, and the process that runs it now; its worker processes are in its process group."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    restart_at: float = 0.0
    kill_at: float | None = None
    #: Whether it is not to be started again.
    off: bool = False


@dataclass
class Supervisor:
    """Starts, watches, restarts and ends the processes of all entries.

    Arguments:
      commands: Of the entries, by their names.
    """

    environment: dict[str, str]
    folder: Path
    commands: Mapping[str, str]
    entries: dict[str, Entry] = field(default_factory=dict)
    #: When process groups ended, by their id.
    ended: dict[int, float] = field(default_factory=dict)
    started: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        for name, command in self.commands.items():
            self.entries[name] = Entry(name, shlex.split(command))

    def start(self) -> None:
        """Start everything."""
        for entry in self.entries.values():
            self._start(entry)
        self._thread.start()

    def _start(self, entry: Entry) -> None:
        self.started += 1
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        with (self.folder / f"{entry.name}.log").open("ab") as log:
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

    def group(self, name: str) -> int | None:
        """Return the id of an entry's process group, which is that of its main process; ``None`` while it is down."""
        with self._lock:
            process = self.entries[name].process
            return None if process is None or process.poll() is not None else process.pid

    def terminate(self, name: str) -> None:
        """Tell every process of an entry to end, at once, as Heroku does; and kill what is left after a while."""
        with self._lock:
            entry = self.entries[name]
            if entry.process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(entry.process.pid, signal.SIGTERM)
                entry.kill_at = time.monotonic() + KILL_AFTER

    def restart(self, name: str) -> None:
        """Terminate an entry, and return when it has been started again.

        Raises:
          AssertionError: When it has not within a minute.
        """
        before = self.group(name)
        self.terminate(name)
        eventually(lambda: self.group(name) not in (None, before), seconds=KILL_AFTER + 30)

    def switch_off(self, name: str) -> None:
        """Terminate an entry, start it no more, and return when it has ended."""
        with self._lock:
            entry = self.entries[name]
            process, entry.off = entry.process, True
            self.terminate(name)
        if process is not None:
            eventually(lambda: process.poll() is not None, seconds=KILL_AFTER + 30)

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            with self._lock:
                for entry in self.entries.values():
                    self._look_after(entry)

    def _look_after(self, entry: Entry) -> None:
        process = entry.process
        if process is None:
            if not entry.off and time.monotonic() >= entry.restart_at:
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
def supervised(environment: dict[str, str], folder: Path, commands: Mapping[str, str]) -> Iterator[Supervisor]:
    """Keep all entries running as long as the ``with`` block lasts."""
    supervisor = Supervisor(environment, folder, commands)
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()
