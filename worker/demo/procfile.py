"""Runs entries of the Procfile as a host would, with their output in files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from db.errors import ConfigurationError
from worker.procfile import read_procfile


def find_procfile() -> Path:
    """Return the Procfile: beside the package in a checkout, inside it as installed."""
    package = Path(__file__).resolve().parent.parent
    for path in (package / "Procfile", package.parent / "Procfile"):
        if path.is_file():
            return path
    raise ConfigurationError(f"the Procfile is missing: neither in nor beside {package}")


class Workers:
    """Processes of the Procfile, for ``with``. Each gets SIGTERM at the end, as a host does it.

    Arguments:
      names: The entries to run.
      arguments: What is added to the command of an entry.
      environment: Settings beside this process's environment.
      logs: The folder for their output, one file an entry.
    """

    def __init__(
        self,
        names: list[str],
        environment: dict[str, str],
        logs: Path,
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        self._names = names
        self._arguments = arguments or {}
        # The programs of this environment first, whether or not it is activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        self._environment = {**os.environ, **environment, "PATH": path}
        self._logs = logs
        self._running: dict[str, tuple[subprocess.Popen[bytes], BinaryIO]] = {}

    def __enter__(self) -> Workers:
        commands = read_procfile(find_procfile())
        self._logs.mkdir(parents=True, exist_ok=True)
        for name in self._names:
            log = self.log(name).open("wb")
            # "exec" makes the process the worker itself, and not a shell that the signal would stop at. Their folder is
            # not the user's, where a module may hide one of ours.
            process = subprocess.Popen(
                f"exec {commands[name]} {self._arguments.get(name, '')}",
                shell=True,
                cwd=self._logs,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._running[name] = (process, log)
        return self

    def log(self, name: str) -> Path:
        """Return where an entry's output goes."""
        return self._logs / f"{name}.log"

    def check(self) -> None:
        """Raise when one has ended.

        Raises:
          ConfigurationError: Naming it and where its output is.
        """
        for name, (process, _) in self._running.items():
            if process.poll() is not None:
                raise ConfigurationError(
                    f"entry {name!r} of the Procfile ended with status {process.returncode}; it says why in "
                    f"{self.log(name)}"
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, _ in self._running.values():
            process.send_signal(signal.SIGTERM)
        for process, log in self._running.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            log.close()
