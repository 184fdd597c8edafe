"""What the modules of worker entries import to: the queues that they consume, or why they cannot be imported.

Modules are imported in a process of their own, as workers import them: what importing them does stays there, and one
that never ends does not keep the check.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.check.procfile import Entry

#: Seconds that importing the modules of all entries may take.
TIMEOUT = 30
_MARK = "dramaturg-check:"


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of importing the modules of the entries."""

    #: By entry; None for every declared queue. An entry that could not be imported has none.
    queues: Mapping[str, Collection[str] | None]
    #: All declared queues, those of ``worker.routing.register`` included.
    declared: Collection[str]
    #: The actors that have a schedule.
    scheduled: Collection[str]
    #: Why a module could not be imported, by entry; the text may hold anything that an error's text does.
    errors: Mapping[str, str]


def import_entries(entries: Collection[Entry], folder: Path, environ: Mapping[str, str]) -> Imported:
    """Import the modules of ``entries`` as workers started in ``folder`` do.

    Raises:
      RuntimeError: When that gave no answer, or none within :data:`TIMEOUT` seconds.
    """
    asked = {
        entry.name: {"modules": entry.command.modules, "queues": entry.command.queues, "path": entry.command.path}
        for entry in entries
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "worker.check.imported", json.dumps(asked)],
            cwd=folder,
            env=dict(environ),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"importing the modules of the entries took more than {TIMEOUT} seconds") from None
    *_, answer = done.stdout.rpartition(_MARK)
    try:
        return Imported(**json.loads(answer))
    except (ValueError, TypeError):
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"importing the modules ended with status {done.returncode}: {last}") from None


def _answer(asked: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    queues: dict[str, list[str] | None] = {}
    errors: dict[str, str] = {}
    for name, entry in asked.items():
        for folder in reversed(entry["path"]):
            sys.path.insert(0, folder)
        for module in entry["modules"]:
            try:
                importlib.import_module(module)
            except BaseException as e:  # noqa: BLE001 - whatever ends a worker at its start
                errors[name] = f"{module}: {type(e).__name__}: {e}"
                break
    import dramatiq

    from worker.broker import queues as declared
    from worker.routing import queues_of
    from worker.scheduler.jobs import scheduled

    for name, entry in asked.items():
        found = entry["queues"] or queues_of(entry["modules"])
        queues[name] = [] if name in errors else None if found is None else sorted(found)
    return {
        "queues": queues,
        "declared": sorted(declared),
        "scheduled": sorted(scheduled(dramatiq.get_broker())),
        "errors": errors,
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    # As a worker's: a module may look at it.
    sys.argv[1:] = []
    # Last, and on a line of its own: modules may print.
    sys.stdout.write(f"\n{_MARK}{json.dumps(_answer(given))}")
