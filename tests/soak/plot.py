"""Draws a soak: ``python -m tests.soak.plot samples.jsonl soak.svg``. Needs the extra ``bench``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.soak.flatness import MIB, processes
from tests.soak.sampling import Sample, load

#: Readable on white and on black.
GREY = "#808891"
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#06b6d4")
#: Entries whose memory is drawn.
ENTRIES = ("attribution", "llm", "maintenance", "housekeeping", "web", "scheduler")


def draw(samples: Sequence[Sample], restarts: Sequence[float], path: Path) -> None:
    """Draw memory, connections, and what waits and has failed; restarts are marked.

    Arguments:
      samples: In order.
      restarts: When rolling restarts began, in seconds.
      path: An SVG.
    """
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text, in the reader's font, and the file the same for the same samples.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "soak", "font.size": 9, "lines.linewidth": 1.2})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 1, figsize=(9, 9.5), sharex=True, layout="constrained")
    _memory(axes[0], samples, "", "memory of a worker process, restarted, MiB")
    _memory(axes[1], samples, " 2", "the same, not restarted, MiB")
    _lines(axes[2], samples, "connections; memory of Redis, MiB", ["connections to Postgres", "connections to Redis"])
    _line(axes[2], samples, "memory of Redis", [sample.counts["memory of Redis"] / MIB for sample in samples])
    _lines(axes[3], samples, "messages in queues, rows", ["waiting", "held", "delayed", "failed jobs"])
    for ax in axes:
        for restart in restarts:
            ax.axvline(restart / 60, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        _dress(ax)
    axes[-1].set_xlabel("minutes; dotted: a rolling restart begins", color=GREY)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _memory(ax: Any, samples: Sequence[Sample], suffix: str, title: str) -> None:
    for entry in ENTRIES:
        role = "main" if entry in {"web", "scheduler"} else "worker"
        seen = processes(samples, entry + suffix, role, settled=0)
        ax.plot([at / 60 for at, _ in seen], [process.rss / MIB for _, process in seen], label=entry)
    ax.set_title(title)


def _lines(ax: Any, samples: Sequence[Sample], title: str, names: Sequence[str]) -> None:
    for name in names:
        _line(ax, samples, name, [sample.counts[name] for sample in samples])
    ax.set_title(title)


def _line(ax: Any, samples: Sequence[Sample], label: str, values: Sequence[float]) -> None:
    ax.plot([sample.at / 60 for sample in samples], values, label=label)


def _dress(ax: Any) -> None:
    for line, colour in zip([line for line in ax.lines if line.get_linestyle() == "-"], COLOURS, strict=False):
        line.set_color(colour)
    ax.set_ylim(bottom=0)
    ax.set_title(ax.get_title(), loc="left", color=GREY, fontsize=9)
    ax.set_title("")
    ax.tick_params(colors=GREY)
    for spine in ax.spines.values():
        spine.set_color(GREY)
    for spine in ("top", "right"):
        ax.spines[spine].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, labelcolor=GREY)


def main(given: Sequence[str]) -> None:
    """Draw what was saved."""
    if len(given) != 2:
        sys.exit("which samples, and to which file: python -m tests.soak.plot samples.jsonl soak.svg")
    said, samples = load(Path(given[0]))
    draw(samples, said["restarts"], Path(given[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
