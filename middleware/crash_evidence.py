"""What is known of the workers that were lost with a message, in words."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from db.failures import Attempt
from middleware.errors import WorkerLost
from middleware.text import name_of

#: What an exit code suggests to whoever reads it.
_MEANINGS = {
    -signal.SIGKILL: ", as the kernel's out-of-memory killer does, or a person",
    -signal.SIGSEGV: ", a fault in C code",
    -signal.SIGBUS: ", a fault in C code",
    -signal.SIGFPE: ", a fault in C code",
    -signal.SIGILL: ", a fault in C code",
    -signal.SIGABRT: ", by which C code ends itself",
    # Supervision's.
    os.EX_SOFTWARE: ", as it does when a thread has died or a job does not heed its time limit (see its log)",
}


def worker_lost(evidence: Sequence[dict[str, Any]]) -> WorkerLost:
    """Return why a message is not started again.

    Arguments:
      evidence: For each loss: ``started`` and ``silent``, in milliseconds since 1970, and ``facts``, as
        :func:`middleware.process_facts.process_facts` gives them, with an ``end`` where :mod:`middleware.keeper` saw
        one.
    """
    lines = [f"its worker was lost {len(evidence)} times while it ran, so it is not started again"]
    lines += [f"{n}. {_line(loss)}" for n, loss in enumerate(evidence, 1)]
    attempts = [_attempt(loss) for loss in evidence]
    return WorkerLost("\n".join(lines), len(evidence), int(evidence[-1]["started"]), attempts)


def _attempt(loss: dict[str, Any]) -> Attempt:
    facts = loss.get("facts") or {}
    said = f"its worker was lost: nothing was heard of it after {_time(loss['silent'])}"
    if "peak" in facts:
        said += f"; {_peak(facts)}"
    return Attempt(_moment(loss["started"]), facts.get("worker"), name_of(WorkerLost), said)


def how_it_ended(code: int) -> str:
    """Return in words what an exit code says, which is minus the signal where one ended the process."""
    if code >= 0:
        return f"exited with status {code}" + _MEANINGS.get(code, "")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + _MEANINGS.get(code, "")


def _line(loss: dict[str, Any]) -> str:
    facts = loss.get("facts") or {}
    end = facts.get("end")
    said = [f"started {_time(loss['started'])} on {facts.get('worker', 'an unknown worker')}"]
    if end is not None:
        said += [
            f"which {how_it_ended(end['status'])}",
            f"last heard of {_time(loss['silent'])}",
            f"peak memory {end['peak']} MiB",
        ]
        return "; ".join(said)
    said += [
        f"of which nothing was heard after {_time(loss['silent'])}",
        "nobody saw how it ended: its host is gone or it had no keeper (see its main process' log), unless it was only "
        "frozen or deaf in C code",
    ]
    if "peak" in facts:
        said.append(_peak(facts))
    return "; ".join(said)


def _peak(facts: dict[str, Any]) -> str:
    return f"peak memory {facts['peak']} MiB as of its last sign of life"


def _moment(milliseconds: float | str) -> datetime:
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


def _time(milliseconds: float | str) -> str:
    return _moment(milliseconds).isoformat(timespec="milliseconds")
