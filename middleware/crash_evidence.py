"""What is known of the workers that were lost with a message, in words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from db.failures import Attempt
from middleware.errors import WorkerLost
from middleware.text import name_of


def worker_lost(evidence: Sequence[dict[str, Any]]) -> WorkerLost:
    """Return why a message is not started again.

    Arguments:
      evidence: For each loss: ``started`` and ``silent``, in milliseconds since 1970, and ``facts``, as
        :func:`middleware.process_facts.process_facts` gives them.
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


def _line(loss: dict[str, Any]) -> str:
    facts = loss.get("facts") or {}
    said = [
        f"started {_time(loss['started'])} on {facts.get('worker', 'an unknown worker')}",
        f"of which nothing was heard after {_time(loss['silent'])}",
        "its exit code or signal stands in the log of its main process, unless it was only frozen or deaf in C code",
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
