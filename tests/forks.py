"""The command ``worker`` in processes of its own, without the second that each would import for.

They are forked from a process that has imported what ``worker`` needs of others and nothing of ours, so that each still
imports ours anew, under its own settings and from its own folder. Standard streams, terminal, signals and end are a
new process'. What a shell or a container starts is tested with programs that are executed.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).parent / "worker"
#: What it imports.
OTHERS = (
    "alembic.command",
    "cryptography.fernet",
    "dramatiq.asyncio",
    "dramatiq.brokers.redis",
    "dramatiq.brokers.stub",
    "dramatiq.cli",
    "dramatiq.middleware",
    "loguru",
    "psycopg",
    "redis.asyncio",
    "rich.live",
    "rich.markup",
    "rich.progress",
    "rich.table",
    "rich.traceback",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "typer.rich_utils",
)


class Fork:
    """A process that runs ``worker``; as :class:`subprocess.Popen`.

    Arguments:
      words: The command's, without its name.
      as_module: Whether as ``python -m worker``, which imports from ``cwd``; else as the script that pip installs.
      cwd: Its folder.
      env: Its environment. Of Python's own variables it heeds ``PYTHONIOENCODING``.
      streams: Its standard input, output and errors; by default none.
      leads: Whether it leads a session; its standard input is its terminal then, if that is one.
      constants: What constants of ours are in it, by their full names, so that no test waits as long as people do.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        as_module: bool = False,
        streams: tuple[int, int, int] | None = None,
        leads: bool = False,
        constants: Mapping[str, float] | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._said, theirs = socket.socketpair()
        what = {"words": words, "as_module": as_module, "cwd": str(cwd), "env": dict(env), "leads": leads}
        request = json.dumps({**what, "constants": dict(constants or {})})
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            socket.send_fds(_parent(), [request.encode()], [*(streams or [nothing] * 3), theirs.fileno()])
        finally:
            os.close(nothing)
            theirs.close()
        self.pid = int(self._hear(60))

    def _hear(self, seconds: float | None) -> bytes:
        self._said.settimeout(seconds)
        heard = self._said.recv(16)
        if not heard:
            raise RuntimeError("the process that forks has died")
        return heard

    def poll(self) -> int | None:
        """Return its exit status once it has ended, negative after a signal."""
        if self.returncode is None:
            try:
                self.returncode = int(self._hear(0))
            except BlockingIOError:
                return None
            self._said.close()
        return self.returncode

    def wait(self, seconds: float = 60) -> int:
        """Return its exit status, once it has ended.

        Raises:
          AssertionError: When it does not within ``seconds``.
        """
        if self.returncode is None:
            try:
                self.returncode = int(self._hear(seconds))
            except TimeoutError:
                self.kill()
                raise AssertionError(f"it has not ended within {seconds} seconds") from None
            self._said.close()
        return self.returncode

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def run(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``worker`` to its end, with nobody who could be asked; return what it wrote.

    Arguments:
      words: The command's, without its name.
      options: Those of :class:`Fork`.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, Path(os.devnull).open("rb") as nobody:
        streams = (nobody.fileno(), output.fileno(), errors.fileno())
        process = Fork(words, streams=streams, **options)
        process.wait()
        output.seek(0)
        errors.seek(0)
        said = (output.read().decode(), errors.read().decode())
    return subprocess.CompletedProcess(["worker", *words], process.wait(), *said)


@functools.cache
def _parent() -> socket.socket:
    """Return the way to the process that forks, which ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.forks", str(theirs.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _forked(asked: socket.socket) -> dict[str, Any]:
    """Fork for each request; return, in the forked process, what is to run there."""
    while True:
        request, fds, *_ = socket.recv_fds(asked, 1 << 20, 4)
        if not request:
            # Who asked has ended.
            sys.exit()
        if between := os.fork():
            for fd in fds:
                os.close(fd)
            # It ends with what it waits for; a zombie until the next one is asked for.
            _children.add(between)
            _children.difference_update([pid for pid in _children if os.waitpid(pid, os.WNOHANG)[0]])
            continue
        asked.close()
        said = socket.socket(fileno=fds.pop())
        pid = os.fork()
        if pid:
            for fd in fds:
                os.close(fd)
            os.setsid()
            said.send(str(pid).encode())
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            said.send(str(status).encode())
            os._exit(0)
        said.close()
        what: dict[str, Any] = json.loads(request)
        if what["leads"]:
            os.setsid()
            if os.isatty(fds[0]):
                fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        return what


def _become(what: dict[str, Any]) -> None:
    """Set up what the interpreter sets up as it starts, and run ``worker``."""
    os.chdir(what["cwd"])
    os.environ.clear()
    os.environ.update(what["env"])
    time.tzset()
    encoding, _, errors = os.environ.get("PYTHONIOENCODING", "").partition(":")
    for name, fd, mode, strict in (
        ("stdin", 0, "r", errors or "strict"),
        ("stdout", 1, "w", errors or "strict"),
        ("stderr", 2, "w", "backslashreplace"),
    ):
        stream = open(fd, mode, encoding=encoding or None, errors=strict, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.path[0] = what["cwd"] if what["as_module"] else str(SCRIPT.parent)
    sys.argv = [str(SCRIPT), *what["words"]]
    for name, value in what["constants"].items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    if what["as_module"]:
        runpy.run_module("worker", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(SCRIPT), run_name="__main__")


_children: set[int] = set()

if __name__ == "__main__":
    for _name in OTHERS:
        importlib.import_module(_name)
    # So that no fork looks through all of it, above all as it ends.
    gc.freeze()
    _become(_forked(socket.socket(fileno=int(sys.argv[1]))))
