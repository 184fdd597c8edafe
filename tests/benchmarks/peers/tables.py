"""Prints what was measured: medians, least and most, and ours to each peer's."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.peers.peers import OURS
from tests.benchmarks.peers.reckoning import label, summarise
from tests.benchmarks.peers.rows import ROWS


def show(name: str, measured: dict[str, Any]) -> None:
    """Print a row, a table for each of its figures."""
    servers = ", ".join(f"{server} {version}" for server, version in measured["servers"].items())
    synced = "synced to disk" if measured["synced"] else "not synced to disk"
    console = Console(width=120, highlight=False)
    console.rule(f"{measured['title']}", align="left")
    console.print(f"{measured['machine']}; Python {measured['python']}, {servers}, Postgres {synced}", markup=False)
    for key, figure in ROWS[name].figures.items():
        summaries = summarise(measured["runs"], key, OURS.name)
        table = Table(figure.what, "median", "least", "most", f"{OURS.name} to it", "runs")
        for column in table.columns[1:]:
            column.justify = "right"
        for peer in sorted(summaries, key=lambda peer: summaries[peer].median, reverse=figure.more):
            found = summaries[peer]
            table.add_row(
                label(peer, measured),
                *(f"{value:,.{figure.digits}f}" for value in (found.median, found.least, found.most)),
                "" if found.ratio is None or not figure.compared else f"{found.ratio:.2f} x",
                str(len(measured["runs"][peer])),
            )
        if summaries:
            console.print(table)
    again = {peer: int(sum(run.get("again", 0) for run in runs)) for peer, runs in measured["runs"].items()}
    said = ", ".join(f"{peer} {count:,}" for peer, count in again.items() if count)
    console.print(f"In all of these every job ran. Jobs that ran more than once: {said or 'none'}", markup=False)
    for words in measured["incomplete"]:
        console.print(f"Left out: {words}", markup=False)


def show_versions(rows: dict[str, dict[str, Any]]) -> None:
    """Print what ran."""
    versions = {peer: found for measured in rows.values() for peer, found in measured["versions"].items()}
    for peer, found in versions.items():
        words = ", ".join(f"{package} {version}" for package, version in found.items())
        Console(width=120, highlight=False).print(f"{peer}: {words}", markup=False)
