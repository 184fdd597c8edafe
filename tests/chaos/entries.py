"""The entries of the Procfile that the ledger runs, with its actors instead of ours."""

from __future__ import annotations

from tests.chaos.plan import QUEUES
from tests.supervisor import ROOT
from worker.procfile import read_procfile


def entries(more: dict[str, str] | None = None) -> dict[str, str]:
    """Return the commands, by the entries' names.

    Arguments:
      more: Further entries, by the entry of the Procfile that each is a second one of.
    """
    procfile = read_procfile(ROOT / "Procfile")
    found = {name: procfile[name].replace(f"worker.{name}", f"tests.chaos.actors --queues {name}") for name in QUEUES}
    return {**found, **{name: found[like] for name, like in (more or {}).items()}}
