"""Medians and ratios, as a table."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from statistics import median

from rich.console import Console
from rich.table import Table


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every variant once a round, so that what else the machine does meets all of them."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            figures[name].append(run())
    return figures


def show(title: str, unit: str, figures: Mapping[str, list[float]], *, against: str, digits: int = 0) -> None:
    """Print medians with the lowest and highest, and each one's ratio to the variant ``against``."""
    base = median(figures[against])
    table = Table("variant", f"median {unit}", "lowest", "highest", f"ratio to {against}", title=title)
    for name, values in figures.items():
        numbers = (f"{n:,.{digits}f}" for n in (median(values), min(values), max(values)))
        table.add_row(name, *numbers, f"{median(values) / base:.2f}")
    console = Console(width=130)
    console.print(table)
    console.print(
        f"Python {platform.python_version()}, {platform.machine()}, {len(next(iter(figures.values())))} rounds"
    )
