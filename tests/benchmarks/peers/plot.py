"""Draws what was measured: ``python -m tests.benchmarks.peers.plot FILE.json FILE.svg``. Needs the extra ``bench``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import Any

from tests.benchmarks.peers.peers import OURS
from tests.benchmarks.peers.reckoning import Summary, label, summarise

#: Readable on white and on black.
GREY = "#808891"
OURS_COLOUR = "#3b82f6"
OTHERS = "#9aa3ad"
LINES = ("#f59e0b", "#10b981", "#a855f7")
#: Inches of a small panel, at least.
SMALL = 1.55

#: Row, figure, title and digits of each small panel of bars.
PANELS = (
    ("drain", "all", "no-op job: µs of worker, Redis and Postgres", 0),
    ("transaction", "rate", "jobs of a tenant's transaction a second", 0),
    ("failures", "rate", "failures a second", 0),
    ("enqueue", "one_by_one", "sending one at a time, µs a message", 0),
    ("enqueue", "in_bulk", "sending 1,000 at a time, µs a message", 0),
    ("idle", "p50", "idle: send to start, ms; p50, the line to p95", 1),
    ("idle", "calls", "idle: calls to Redis a second", 1),
    ("starting", "first", "seconds from start to the first job", 2),
    ("starting", "memory", "idle memory, MiB, no job having used a database", 0),
    ("starting", "memory used", "idle memory, MiB, after a tenant's transactions", 0),
)
#: Row, title, unit of the axis, and the points along it: what they are called, and the figures that add up there.
CURVES = (
    ("processes", "jobs a second by worker processes", [(f"{n}", [f"rate {n}"]) for n in (1, 2, 4)]),
    (
        "waiting",
        "worker and Redis, µs a job, by what waits",
        [
            (words, [f"cpu {name}", f"redis {name}"])
            for words, name in (
                ("10 at\na time", "10"),
                ("1 k at\na time", "1000"),
                ("100 k", "100000"),
                ("1 M", "1000000"),
                ("100 k\ndelayed", "delayed"),
            )
        ],
    ),
)

Rows = Mapping[str, Mapping[str, Any]]


def draw(rows: Rows, path: Path) -> None:
    """Draw every row that was measured.

    Arguments:
      rows: As the benchmark writes them.
      path: An SVG.
    """
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text, in the reader's font, and the file the same for the same figures.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "peers", "font.size": 8, "lines.linewidth": 1.4})
    # Each word names all of these: two are enough.
    mpl.rcParams.update({"font.sans-serif": ["DejaVu Sans", "sans-serif"]})
    from matplotlib import pyplot

    panels = [panel for panel in PANELS if _summaries(rows, panel[0], panel[1])]
    curves = [curve for curve in CURVES if rows.get(curve[0], {}).get("runs")]
    top = _summaries(rows, "drain", "rate")
    if not (top or panels or curves):
        sys.exit("none of the rows that are drawn has been measured")
    needed = [_height(_summaries(rows, row, figure)) for row, figure, _, _ in panels]
    heights = [0.3 + 0.24 * len(top)] * bool(top) + [max(needed[i : i + 2]) for i in range(0, len(needed), 2)]
    heights += [SMALL] * ((len(curves) + 1) // 2)
    figure = pyplot.figure(figsize=(9, sum(heights) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights)
    if top:
        _bars(
            figure.add_subplot(grid[0, :]),
            top,
            "no-op jobs a second, one worker of 8 threads or with 8 at once, but for what names say",
            0,
        )
    cells = ((row, column) for row in range(bool(top), len(heights)) for column in (0, 1))
    for (row, figure_name, title, digits), cell in zip(panels, cells, strict=False):
        whiskers = _summaries(rows, row, "p95") if figure_name == "p50" else None
        _bars(figure.add_subplot(grid[cell]), _summaries(rows, row, figure_name), title, digits, whiskers)
    if len(panels) % 2:
        next(cells, None)
    for (row, title, points), cell in zip(curves, cells, strict=False):
        _curves(figure.add_subplot(grid[cell]), rows[row]["runs"], title, points)
    drawn = StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    path.write_text(_short(drawn.getvalue()))


def _short(svg: str) -> str:
    """Return the same to hundredths of a point, which nobody sees, without indentation, and turns by nothing."""
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    rounded = re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), svg)
    return re.sub(r"[ \t]*\n[ \t]*", "\n", rounded)


def _wrapped(name: str) -> str:
    return fill(name, 30)


def _height(peers: Collection[str]) -> float:
    """Return the inches of a small panel in which each name has room for its lines."""
    lines = max(_wrapped(peer).count("\n") + 1 for peer in peers)
    return max(SMALL, 0.4 + 0.15 * lines * len(peers))


def _summaries(rows: Rows, row: str, figure: str) -> dict[str, Summary]:
    if figure not in rows.get(row, {}).get("figures", {}):
        return {}
    found = summarise(rows[row]["runs"], figure, OURS.name)
    most_first = rows[row]["figures"][figure]["more"]
    best_last = sorted(found, key=lambda peer: found[peer].median, reverse=not most_first)
    return {label(peer, rows[row]): found[peer] for peer in best_last}


def _bars(
    ax: Any, summaries: Mapping[str, Summary], title: str, digits: int, to: Mapping[str, Summary] | None = None
) -> None:
    """Draw a bar a peer, the best on top, with a line from the least to the most."""
    names = list(summaries)
    medians = [summaries[name].median for name in names]
    ends = [(to or summaries)[name].median if to else summaries[name].most for name in names]
    starts = [summaries[name].median if to else summaries[name].least for name in names]
    ax.barh(names, medians, height=0.66, color=[OURS_COLOUR if name == OURS.name else OTHERS for name in names])
    ax.hlines(names, starts, ends, color=GREY, linewidth=0.9)
    for name, middle, end in zip(names, medians, ends, strict=True):
        said = f"{middle:,.{digits}f}" + (f"; {end:,.{digits}f}" if to else "")
        ax.annotate(said, (max(middle, end), name), (4, 0), textcoords="offset points", va="center", color=GREY)
    ax.set_yticks(names, [_wrapped(name) for name in names])
    ax.set_xlim(0, max(ends) * 1.22)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    _dress(ax, title)


def _curves(
    ax: Any,
    runs: Mapping[str, Sequence[Mapping[str, float]]],
    title: str,
    points: Sequence[tuple[str, Sequence[str]]],
) -> None:
    """Draw a line a peer."""
    others = iter(LINES)
    for peer, of_peer in runs.items():
        colour = OURS_COLOUR if peer == OURS.name else next(others, GREY)
        added = {peer: [{words: sum(run[name] for name in names) for words, names in points} for run in of_peer]}
        values = [summarise(added, words, peer)[peer].median for words, _ in points]
        ax.plot([words for words, _ in points], values, marker="o", markersize=3, color=colour, label=peer)
    # Room for the legend above all lines.
    ax.set_ylim(0, ax.get_ylim()[1] * 1.7)
    ax.legend(loc="upper left", frameon=False, labelcolor=GREY, fontsize=7)
    _dress(ax, title)


def _dress(ax: Any, title: str) -> None:
    ax.set_title(title, loc="left", color=GREY, fontsize=8.5)
    ax.tick_params(colors=GREY, length=0)
    for side, spine in ax.spines.items():
        spine.set_color(GREY)
        if side in ("top", "right"):
            spine.set_visible(False)


def main(given: Sequence[str]) -> None:
    """Draw what was saved."""
    if len(given) != 2:
        sys.exit("which figures, and to which file: python -m tests.benchmarks.peers.plot peers.json peers.svg")
    draw(json.loads(Path(given[0]).read_text())["rows"], Path(given[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
