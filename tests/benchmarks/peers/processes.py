"""What the processes of a session use: processor time, and memory of which each shares what others have, too."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.processes import children_of


def of_session(session: int) -> list[int]:
    """Return the ids of all processes of a session."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == session:
                    found.append(int(process.name))
            except (OSError, IndexError):
                continue
    return found


def processor_time_of(process: int) -> float:
    """Return the processor seconds of all threads of a process; 0 where it has ended."""
    try:
        # The clock of another process, as clock_getcpuclockid(3) makes it: to the nanosecond, where /proc has ticks.
        return time.clock_gettime((~process << 3) | 2)
    except OSError:
        return 0.0


def _of_ended_children(process: int) -> float:
    """Return the processor seconds of a process' children that have ended, to the hundredth that /proc has."""
    try:
        user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[13:15]
    except (OSError, ValueError):
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def processor_time(session: int) -> float:
    """Return the processor seconds of a session's processes, and of their children that have ended."""
    return sum(processor_time_of(process) + _of_ended_children(process) for process in of_session(session))


def processor_time_below(process: int) -> float:
    """Return the processor seconds of a process and its children, each of which may lead a session of its own."""
    return _of_ended_children(process) + sum(map(processor_time_of, (process, *children_of(process))))


def memory(session: int) -> float:
    """Return the proportional set size of a session's processes, in MiB: a page of two counts half for each."""
    total = 0
    for process in of_session(session):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024
