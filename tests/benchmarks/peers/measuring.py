"""Runs rows: every peer once a round, in turn, so that what else the machine does meets all of them."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.benchmarks.peers import servers
from tests.benchmarks.peers.environments import programs_of, versions_of
from tests.benchmarks.peers.machine import machine
from tests.benchmarks.peers.peers import Peer
from tests.benchmarks.peers.reckoning import Incomplete
from tests.benchmarks.peers.rows.row import Row
from tests.benchmarks.peers.running import staged


def say(words: str) -> None:
    """Print what happens."""
    Console(highlight=False, soft_wrap=True).print(words, markup=False)


def measure(name: str, row: Row, chosen: Sequence[Peer], folder: Path, rounds: int, scale: float) -> dict[str, Any]:
    """Measure a row, and return what JSON keeps of it.

    Arguments:
      name: The row's.
      row: What to measure.
      chosen: Of whom.
      folder: Where environments are.
      rounds: How often.
      scale: Which part of the row's jobs.
    """
    count = max(10, round(row.count * scale))

    def jobs_of(peer: Peer) -> int:
        return max(10, round(count * peer.share))

    runs: dict[str, list[dict[str, float]]] = {}
    versions: dict[str, dict[str, str]] = {}
    incomplete: list[str] = []
    ready = []
    for peer in chosen:
        programs = programs_of(peer, folder)
        if programs is None:
            say(
                f"{name}: {peer.name} is left out: it needs Python {'.'.join(map(str, peer.python))}, which is not here"
            )
        else:
            versions[peer.name] = versions_of(peer, programs)
            ready.append((peer, programs))
    with servers.running(synced=row.synced) as running:
        server_versions = running.versions()
        for turn in range(rounds):
            for peer, programs in ready:
                try:
                    with staged(peer, programs, running) as stage:
                        figures = row.measure(stage, jobs_of(peer))
                except Incomplete as e:
                    say(f"{name}: {peer.name}: {e}")
                    incomplete.append(f"{peer.name}: {str(e).splitlines()[0]}")
                    continue
                runs.setdefault(peer.name, []).append(figures)
                said = ", ".join(
                    f"{figures[key]:,.{figure.digits}f} {figure.what}"
                    for key, figure in row.figures.items()
                    if key in figures
                )
                say(f"{name}, round {turn + 1}: {peer.name}: {said}")
    return {
        "title": row.title.format(count=f"{count:,}"),
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": machine(),
        "python": platform.python_version(),
        "servers": server_versions,
        "synced": row.synced,
        "jobs": count,
        "fewer": {peer.name: jobs_of(peer) for peer, _ in ready if peer.share < 1},
        "figures": {key: {"what": figure.what, "more": figure.more} for key, figure in row.figures.items()},
        "runs": runs,
        "incomplete": incomplete,
        "versions": {peer: versions[peer] for peer in runs},
    }
