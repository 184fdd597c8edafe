"""What a process says of itself while it lives: for whoever looks on, and whoever finds what it left behind."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from pathlib import Path

from middleware.text import clean

#: When this process began, or all but: workers load this while they boot.
_SINCE = time.time()


def process_name(worker_name: str | None = None) -> str:
    """Return what failure rows call this process: ``worker_name``, by default the host's name, and the process id."""
    return f"{clean(worker_name or socket.gethostname())[:240]}/{os.getpid()}"


def process_facts(worker_name: str | None = None, *, stopping: bool = False, threads: int | None = None) -> str:
    """Return, as JSON, who this process is, its memory in MiB now and at its peak, since when it runs, and when it said
    so (seconds since 1970).

    Arguments:
      worker_name: What failure rows call it; the host's name by default. The process id is added.
      stopping: Whether it was told to stop, so that its end is nobody's fault.
      threads: How many messages it may run at once, if that is known yet.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes: getrusage(2) of each.
    mebibytes = peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
    return json.dumps(
        {
            "worker": process_name(worker_name),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "peak": round(mebibytes),
            "resident": _resident(),
            "threads": threads,
            "since": round(_SINCE, 1),
            "at": round(time.time(), 1),
            "stopping": stopping,
            # Earlier releases say nothing of them, because they see none: see middleware/lua/merge_lanes.lua.
            "lanes": True,
        }
    )


def _resident() -> int | None:
    """Return the memory that this process has now, in MiB; None where only its peak can be asked for."""
    try:
        # In pages: proc_pid_statm(5).
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * resource.getpagesize() / 1024**2)
