"""Runs one peer once: fills its queue, starts its worker, waits for every job, and reckons from what the jobs noted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers.peers import Peer

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


class Incomplete(Exception):
    """Raised when jobs did not run, or what did so is not what was sent."""


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
      rate: Jobs a second, from the first that ran to the last.
      enqueued: Messages a second, from one thread.
      first: Seconds from the start of the worker to its first job.
      again: Jobs that ran more than once.
      memory: MiB of the worker's processes while it ran, shared pages of several counted once for each.
    """

    rate: float
    enqueued: float
    first: float
    again: int
    memory: float


def run(peer: Peer, programs: Path, environment: Mapping[str, str], count: int, within: float = 600) -> Run:
    """Run ``count`` jobs of ``peer``.

    Raises:
      Incomplete: When they have not all run within so many seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "ran"
        variables = {
            **os.environ,
            **environment,
            **peer.settings,
            "RAN": str(noted),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{HERE}:{ROOT}" if not peer.environment else str(HERE),
        }
        say = f"import time, {peer.app} as app\nt = time.perf_counter()\napp.send_all({count})\n"
        sent = subprocess.run(
            [str(programs / "python"), "-c", f"{say}print(time.perf_counter() - t)"],
            env=variables,
            cwd=HERE,
            check=True,
            capture_output=True,
            text=True,
        )
        command = [part if not part.startswith("$") else variables[part[1:]] for part in peer.worker]
        began = time.monotonic_ns()
        with (Path(folder) / "log").open("w+") as log:
            worker = subprocess.Popen(
                [str(programs / command[0]), *command[1:]],
                env=variables,
                cwd=HERE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                memory = _wait(worker, noted, count, within)
            except Incomplete as e:
                log.seek(0)
                raise Incomplete(f"{peer.name}: {e}\n{log.read()[-3000:]}") from None
            finally:
                _stop(worker)
        return _reckon(peer, noted, count, began, float(sent.stdout.split()[-1]), memory)


def _wait(worker: subprocess.Popen[bytes], noted: Path, count: int, within: float) -> float:
    """Wait until so many jobs have been noted; return the most memory that was seen, in MiB."""
    until, most = time.monotonic() + within, 0.0
    while True:
        time.sleep(0.25)
        most = max(most, _memory_of(worker.pid))
        done = noted.read_bytes().count(b"\n") if noted.exists() else 0
        if done >= count:
            return most
        if worker.poll() is not None:
            raise Incomplete(f"its worker ended with {worker.returncode} after {done} of {count} jobs")
        if time.monotonic() > until:
            raise Incomplete(f"{done} of {count} jobs ran within {within:.0f} s")


def _memory_of(session: int) -> float:
    """Return MiB of all processes of a session."""
    pages = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                    pages += int((process / "statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _stop(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is None:
        worker.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _reckon(peer: Peer, noted: Path, count: int, began: int, sending: float, memory: float) -> Run:
    lines = [line.split() for line in noted.read_text().splitlines()]
    numbers = [int(number) for number, _ in lines]
    if set(numbers) != set(range(count)):
        raise Incomplete(f"{peer.name}: {count - len(set(numbers) & set(range(count)))} of {count} jobs never ran")
    times = sorted(int(at) for _, at in lines)
    return Run(
        rate=(len(times) - 1) / ((times[-1] - times[0]) / 1e9),
        enqueued=count / sending,
        first=(times[0] - began) / 1e9,
        again=len(numbers) - count,
        memory=memory,
    )
