"""Where the lines of charts are: numbers that templates draw, with the words for whoever cannot see them.

A chart is as wide as there is room. So what is drawn has one unit of width for each time and is stretched, and text
stands beside it, at a percentage.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

#: Units of height of what is drawn.
HEIGHT: Final = 1_000
#: Colours that are told apart, and the one of all the rest.
COLOURS: Final = 6
REST: Final = COLOURS + 1
#: Rows of the table that says the same, at most.
ROWS: Final = 24
#: Steps of times that people count in, in minutes.
_STEPS: Final = (10, 15, 30, 60, 120, 180, 240, 360, 720, 1_440)


@dataclass(frozen=True, slots=True)
class Stack:
    """One series of a chart of stacked bars.

    Attributes:
      name: What it is of; None for all the rest.
      colour: 1 to 6, or 7 for the rest.
      path: What is drawn, as SVG has it.
      total: Of all its bars.
    """

    name: str | None
    colour: int
    path: str
    total: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A line with a label: of a height from the top, or a place from the left, in percent."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar that is not empty: which it is, when it begins, and what is in it by series."""

    number: int
    since: datetime
    total: int
    parts: tuple[tuple[str | None, int], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: a time, and what is in it of each series."""

    since: datetime
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Of all series."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Chart:
    """Stacked bars.

    Attributes:
      bars: How many there are: the width of what is drawn.
      stacks: From the bottom to the top.
      heights, times: Its scales.
      filled: The bars that are not empty.
      rows: The same as numbers, in times of ``row_width``.
      total: Of everything.
    """

    bars: int
    width: timedelta
    stacks: tuple[Stack, ...]
    heights: tuple[Mark, ...]
    times: tuple[Mark, ...]
    filled: tuple[Bar, ...]
    rows: tuple[Row, ...]
    row_width: timedelta
    total: int

    @property
    def highest(self) -> Bar | None:
        """The first of the bars that are highest; None where nothing is in any."""
        return max(self.filled, key=lambda bar: bar.total, default=None)


def stacked_bars(series: Sequence[tuple[str | None, Sequence[int]]], since: datetime, width: timedelta) -> Chart:
    """Return a chart of bars, one upon the other.

    Arguments:
      series: Names, and what each has in each bar; all have as many. The first is at the bottom.
      since: When the first bar begins.
      width: How long each is.

    Raises:
      ValueError: When there are more than six names, or one has more bars than another.
    """
    bars = len(series[0][1]) if series else 0
    if any(len(counts) != bars for _, counts in series):
        raise ValueError(f"series must all be {bars} long, not {[len(counts) for _, counts in series]!r}")
    colours = colours_of(name for name, _ in series if name is not None)
    totals = [sum(counts[n] for _, counts in series) for n in range(bars)]
    scale = nice_scale(max(totals, default=0))
    below = [0] * bars
    stacks = []
    for name, counts in series:
        drawn = [_bar(n, below[n], count, scale[-1]) for n, count in enumerate(counts) if count]
        below = [under + count for under, count in zip(below, counts, strict=True)]
        stacks.append(Stack(name, REST if name is None else colours[name], "".join(drawn), sum(counts)))
    row_width, rows = _rows([counts for _, counts in series], bars, since, width)
    return Chart(
        bars=bars,
        width=width,
        stacks=tuple(stacks),
        heights=tuple(Mark(round(100 - 100 * value / scale[-1], 2), in_short(value)) for value in scale),
        times=tuple(_times(since, width, bars)),
        filled=tuple(
            Bar(n, since + n * width, totals[n], tuple((name, counts[n]) for name, counts in series if counts[n]))
            for n in range(bars)
            if totals[n]
        ),
        rows=tuple(rows),
        row_width=row_width,
        total=sum(totals),
    )


def colours_of(names: Iterable[str]) -> dict[str, int]:
    """Return a colour for each name, no two the same: that of the name itself where no other has it, so that it stays
    when others come and go.

    Raises:
      ValueError: When there are more than six.
    """
    ordered = sorted(set(names))
    if len(ordered) > COLOURS:
        raise ValueError(f"there are {COLOURS} colours, and {len(ordered)} names: {', '.join(ordered)}")
    found: dict[str, int] = {}
    for name in ordered:
        colour = zlib.crc32(name.encode("utf-8", "replace")) % COLOURS
        while colour + 1 in found.values():
            colour = (colour + 1) % COLOURS
        found[name] = colour + 1
    return found


def nice_scale(highest: int) -> tuple[int, ...]:
    """Return round numbers from 0 to one that is no less than ``highest``: three to five of them, in equal steps."""
    step = 1
    while step * 4 < highest:
        # 1, 2, 5, 10, 20, 50 ...
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    steps = max(2, -(-highest // step))
    return tuple(step * n for n in range(steps + 1))


def in_short(value: int) -> str:
    """Return a round number in few characters: ``1,500``, ``20k``, ``3M``."""
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if value >= size:
            return f"{value / (1_000 if unit == 'k' else size):,.4g}{unit}"
    return f"{value:,}"


def spark(values: Sequence[int]) -> str:
    """Return the points of a line through ``values``, one unit apart, as SVG has them; the highest is at the top."""
    highest = max(values, default=0) or 1
    return " ".join(f"{n},{HEIGHT - value * HEIGHT // highest}" for n, value in enumerate(values))


def _bar(number: int, below: int, count: int, highest: int) -> str:
    bottom, top = HEIGHT * below // highest, HEIGHT * (below + count) // highest
    # One failure among ten thousand is to be seen, too.
    top = max(top, bottom + 6)
    return f"M{number + 0.08:.2f} {HEIGHT - bottom}h.84V{HEIGHT - top}h-.84z"


def _times(since: datetime, width: timedelta, bars: int) -> Iterable[Mark]:
    """Give round times, four to eight of them, and no label that would be cut off."""
    whole = width * bars
    minutes = whole / timedelta(minutes=1)
    step = timedelta(minutes=next((step for step in _STEPS if minutes / step < 7), _STEPS[-1]))
    midnight = since.replace(hour=0, minute=0, second=0, microsecond=0)
    at = midnight + ((since - midnight) // step + 1) * step
    while at < since + whole:
        place = 100 * ((at - since) / whole)
        if 3 < place < 97:
            yield Mark(round(place, 2), f"{at:%H:%M}")
        at += step


def _rows(
    series: Sequence[Sequence[int]], bars: int, since: datetime, width: timedelta
) -> tuple[timedelta, Iterable[Row]]:
    """Return the sums of as many bars as let there be few rows, the newest first, and how long such a row is."""
    if not bars:
        return width, ()
    each = -(-bars // ROWS)
    rows = [
        Row(since + first * width, tuple(sum(counts[first : first + each]) for counts in series))
        for first in range(0, bars, each)
    ]
    return each * width, reversed(rows)
