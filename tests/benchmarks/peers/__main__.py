"""``python -m tests.benchmarks.peers``: makes the environments, starts servers, runs everybody in turn, row by row,
prints tables, and writes JSON, which ``python -m tests.benchmarks.peers.plot`` draws.

Everybody has the defaults of his, but for what names say, and hiredis and uvloop where he can use them. ``--profile``
says where our own time goes instead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.measuring import measure
from tests.benchmarks.peers.peers import Peer
from tests.benchmarks.peers.rows import ROWS
from tests.benchmarks.peers.rows.row import Row
from tests.benchmarks.peers.tables import show, show_versions


def chosen_peers(row: Row, asked: list[str], everybody: bool) -> list[Peer]:
    """Return those of a row whose names have one of these parts; without any, all that are not extra."""
    if asked:
        return [peer for peer in row.peers if any(part.lower() in peer.name.lower() for part in asked)]
    return [peer for peer in row.peers if everybody or not peer.extra]


def chosen_rows(asked: str | None) -> list[str]:
    """Return the names of rows.

    Raises:
      SystemExit: When one is asked for that there is not.
    """
    names = asked.split(",") if asked else [name for name, row in ROWS.items() if not row.extra]
    if unknown := set(names) - set(ROWS):
        raise SystemExit(f"--rows: {', '.join(sorted(unknown))}: the rows are {', '.join(ROWS)}")
    return names


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers")
    parser.add_argument("--rows", help=f"of {', '.join(ROWS)}, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="which part of a row's jobs, to try it out: 0.05")
    parser.add_argument("--all", action="store_true", help="those peers, too, that are not measured by default")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "dramaturg-peers")
    parser.add_argument("--json", type=Path, help="what was measured goes here; rows that are there already stay")
    parser.add_argument("--profile", action="store_true", help="where our own time goes")
    parser.add_argument("peers", nargs="*", help="parts of names; all by default")
    asked = parser.parse_args()
    if asked.profile:
        from tests.benchmarks.peers.profiling.report import profile

        profile(asked.folder, asked.scale)
        return
    rows: dict[str, dict[str, Any]] = {}
    if asked.json and asked.json.exists():
        rows = json.loads(asked.json.read_text())["rows"]
    measured = chosen_rows(asked.rows)
    for name in measured:
        peers = chosen_peers(ROWS[name], asked.peers, asked.all)
        if peers:
            rows[name] = measure(name, ROWS[name], peers, asked.folder, asked.rounds, asked.scale)
            if asked.json:
                asked.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    for name in measured:
        if name in rows:
            show(name, rows[name])
    show_versions({name: rows[name] for name in measured if name in rows})


if __name__ == "__main__":
    main()
