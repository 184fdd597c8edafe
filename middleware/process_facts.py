"""What a process says of itself while it lives, for whoever finds what it left behind."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time

from middleware.text import clean


def process_name(worker_name: str | None = None) -> str:
    """Return what failure rows call this process: ``worker_name``, by default the host's name, and the process id."""
    return f"{clean(worker_name or socket.gethostname())[:240]}/{os.getpid()}"


def process_facts(worker_name: str | None = None, *, stopping: bool = False) -> str:
    """Return, as JSON, who this process is, its peak memory in MiB, and when it said so (seconds since 1970).

    Arguments:
      worker_name: What failure rows call it; the host's name by default. The process id is added.
      stopping: Whether it was told to stop, so that its end is nobody's fault.
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
            "at": round(time.time(), 1),
            "stopping": stopping,
        }
    )
