"""Samples a worker with py-spy, where that is installed, for as long as it has jobs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def sampler() -> str | None:
    """Return the program; None where there is none."""
    beside = Path(sys.executable).parent / "py-spy"
    return str(beside) if beside.exists() else shutil.which("py-spy")


@contextmanager
def sampled(process: int) -> Iterator[list[str]]:
    """Sample a process for as long as the block; the list is filled at its end.

    Only what holds the interpreter's lock is counted: what waits for Redis or Postgres costs nothing here.
    """
    stacks: list[str] = []
    program = sampler()
    if program is None:
        yield stacks
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stacks"
        command = [program, "record", "--gil", "--format", "raw", "--rate", "200", "--output", str(path)]
        recording = subprocess.Popen(
            [*command, "--duration", "600", "--pid", str(process)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            yield stacks
        finally:
            recording.send_signal(signal.SIGINT)
            _, problems = recording.communicate()
            if path.exists():
                stacks += path.read_text().splitlines()
            else:
                stacks.clear()
                print(f"py-spy: {problems.decode()[-500:]}")
