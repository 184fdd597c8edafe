"""Where the lines of charts are."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.console.charts import COLOURS, HEIGHT, REST, ROWS, colours_of, in_short, nice_scale, spark, stacked_bars

SINCE = datetime(2026, 5, 1, 11, 2, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
_BAR = re.compile(r"M(?P<x>[\d.]+) (?P<bottom>\d+)h\.84V(?P<top>-?\d+)h-\.84z")


def bars(path: str) -> list[tuple[float, int, int]]:
    """Return left, bottom and top of each, and see that there is nothing else."""
    assert _BAR.sub("", path) == ""
    return [(float(m["x"]), int(m["bottom"]), int(m["top"])) for m in _BAR.finditer(path)]


def test_bars_stand_one_upon_the_other() -> None:
    chart = stacked_bars([("timeout", (0, 3, 1)), (None, (2, 1, 0))], SINCE, MINUTE)
    timeout, rest = chart.stacks
    assert (timeout.name, timeout.total) == ("timeout", 4)
    assert (rest.name, rest.total, rest.colour) == (None, 3, REST)
    assert [mark.label for mark in chart.heights] == ["0", "1", "2", "3", "4"]
    assert [mark.at for mark in chart.heights] == [100, 75, 50, 25, 0]
    assert bars(timeout.path) == [(1.08, HEIGHT, 250), (2.08, HEIGHT, 750)]
    assert bars(rest.path) == [(0.08, HEIGHT, 500), (1.08, 250, 0)]
    assert (chart.bars, chart.total) == (3, 7)
    assert [(bar.number, bar.total, bar.parts) for bar in chart.filled] == [
        (0, 2, ((None, 2),)),
        (1, 4, (("timeout", 3), (None, 1))),
        (2, 1, (("timeout", 1),)),
    ]
    assert chart.highest is not None
    assert chart.highest.since == SINCE + MINUTE


def test_nothing_is_a_chart_as_well() -> None:
    empty = stacked_bars([], SINCE, MINUTE)
    assert (empty.bars, empty.total, empty.highest, empty.rows) == (0, 0, None, ())
    assert len(empty.heights) == 3
    zeros = stacked_bars([("a", (0, 0))], SINCE, MINUTE)
    assert (zeros.stacks[0].path, zeros.highest) == ("", None)


def test_series_that_are_not_of_the_same_bars_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must all be 2 long, not \[2, 1\]"):
        stacked_bars([("a", (1, 2)), ("b", (1,))], SINCE, MINUTE)


@given(
    st.lists(st.integers(0, 10**7), min_size=1, max_size=200).flatmap(
        lambda first: st.lists(
            st.lists(st.integers(0, 10**7), min_size=len(first), max_size=len(first)), max_size=5
        ).map(lambda others: [first, *others])
    )
)
def test_whatever_there_is_no_bar_leaves_the_chart_and_the_table_adds_up(counts: list[list[int]]) -> None:
    chart = stacked_bars([(str(n), each) for n, each in enumerate(counts)], SINCE, MINUTE)
    for stack, each in zip(chart.stacks, counts, strict=True):
        drawn = bars(stack.path)
        assert len(drawn) == sum(1 for count in each if count)
        # Six units more is what one that is hardly there may take.
        assert all(-6 * len(counts) <= top < bottom <= HEIGHT for _, bottom, top in drawn)
    assert len({stack.colour for stack in chart.stacks}) == len(counts)
    assert len(chart.rows) <= ROWS
    assert [sum(column) for column in zip(*(row.counts for row in chart.rows), strict=True)] == list(map(sum, counts))
    assert sum(row.total for row in chart.rows) == chart.total
    assert list(chart.rows) == sorted(chart.rows, key=lambda row: row.since, reverse=True)
    assert chart.row_width * (len(chart.rows) - 1) < len(counts[0]) * MINUTE <= chart.row_width * len(chart.rows)


@given(st.integers(0, 10**12))
def test_scales_are_round_and_reach_what_there_is(highest: int) -> None:
    scale = nice_scale(highest)
    assert scale[0] == 0
    assert 3 <= len(scale) <= 5
    assert scale[-1] >= highest
    step = scale[1]
    assert str(step).rstrip("0") in {"1", "2", "5"}
    assert list(scale) == [step * n for n in range(len(scale))]
    # Not twice as high as it must be.
    assert highest <= 2 or scale[-2] < highest


@pytest.mark.parametrize(
    ("since", "width", "number", "labels"),
    [
        (SINCE, 1, 60, ["11:10", "11:20", "11:30", "11:40", "11:50", "12:00"]),
        (SINCE, 1, 180, ["11:30", "12:00", "12:30", "13:00", "13:30"]),
        (SINCE, 5, 144, ["12:00", "14:00", "16:00", "18:00", "20:00", "22:00"]),
        (SINCE, 10, 144, ["12:00", "16:00", "20:00", "00:00", "04:00", "08:00"]),
    ],
)
def test_times_are_those_that_people_say(since: datetime, width: int, number: int, labels: list[str]) -> None:
    chart = stacked_bars([("a", (1,) * number)], since, timedelta(minutes=width))
    assert [mark.label for mark in chart.times] == labels
    first = chart.times[0]
    place = datetime.strptime(first.label, "%H:%M").replace(year=2026, month=5, day=1, tzinfo=UTC) - since
    assert first.at == pytest.approx(100 * (place / timedelta(minutes=width * number)), abs=0.01)


def test_a_name_keeps_its_colour_whatever_its_rank() -> None:
    names = ["timeout", "upstream_error", "validation_error", "database_error"]
    colours = colours_of(names)
    assert colours == colours_of(reversed(names))
    assert sorted(set(colours.values())) == sorted(colours.values())
    assert all(1 <= colour <= COLOURS for colour in colours.values())
    with pytest.raises(ValueError, match="there are 6 colours, and 7 names"):
        colours_of("abcdefg")


def test_spark_lines() -> None:
    assert spark((0, 5, 10)) == "0,1000 1,500 2,0"
    assert spark((0, 0)) == "0,1000 1,1000"
    assert spark(()) == ""


def test_round_numbers_are_short() -> None:
    numbers = (0, 5, 1_500, 5_000, 10_000, 25_000, 500_000, 1_000_000, 1_500_000, 20_000_000)
    assert [in_short(number) for number in numbers] == [
        "0", "5", "1,500", "5,000", "10k", "25k", "500k", "1M", "1.5M", "20M",
    ]  # fmt: skip
