from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.recompute import Model, Window, parse_model, parse_model_version, parse_window

T = TypeVar("T")

END = "2025-02-01"


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("2025-01-01", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T10:30:00", datetime(2025, 1, 1, 10, 30, tzinfo=UTC)),
        ("2025-01-01T10:30:00Z", datetime(2025, 1, 1, 10, 30, tzinfo=UTC)),
        ("2025-01-01T10:30:00.25+05:30", datetime(2025, 1, 1, 5, 0, 0, 250_000, tzinfo=UTC)),
        (date(2025, 1, 1), datetime(2025, 1, 1, tzinfo=UTC)),
        (datetime(2025, 1, 1, 1), datetime(2025, 1, 1, 1, tzinfo=UTC)),  # noqa: DTZ001 - what is tested
        (datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=-8))), datetime(2025, 1, 1, 8, tzinfo=UTC)),
    ],
)
def test_a_window_is_read_into_utc(start: object, expected: datetime) -> None:
    window = parse_window(start, END)
    assert window == Window(expected, datetime(2025, 2, 1, tzinfo=UTC))
    assert window.start.tzinfo is UTC


@pytest.mark.parametrize(
    "bad",
    ["", "yesterday", "2025-13-01", "2025-01-01T25:00", "\ud800", "0000-01-01", "10000-01-01", None, True, 0, 1.5],
)
def test_what_is_no_time_is_named_with_its_argument(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^window_start: .* is not an ISO 8601 timestamp$") as caught:
        parse_window(bad, END)
    assert repr(bad) in str(caught.value)
    with pytest.raises(ValueError, match=r"^window_end: "):
        parse_window("2025-01-01", bad)


def test_a_time_that_has_no_utc_is_named() -> None:
    with pytest.raises(ValueError, match=r"^window_start: '0001-01-01T00:00:00\+01:00' is out of range in UTC$"):
        parse_window("0001-01-01T00:00:00+01:00", END)
    with pytest.raises(ValueError, match=r"^window_end: .* is out of range"):
        parse_window("2025-01-01", "9999-12-31T23:59:59-01:00")


@pytest.mark.parametrize("end", ["2025-02-01", "2025-01-31"])
def test_a_window_must_not_be_empty(end: str) -> None:
    with pytest.raises(ValueError, match=r"^window_start 2025-02-01T00:00:00\+00:00 must be before window_end 2025-0"):
        parse_window("2025-02-01", end)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ValueError, match="window_start") as caught:
        parse_window("x" * 100_000, END)
    assert len(str(caught.value)) < 200


def test_a_model_is_found_by_name() -> None:
    assert parse_model("time_decay") is Model.TIME_DECAY
    assert parse_model(Model.LINEAR) is Model.LINEAR


@pytest.mark.parametrize("bad", ["Linear", "", None, 3, ["linear"], {}])
def test_an_unknown_model_is_named_with_those_there_are(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^model: .* is not one of first_touch, last_touch, linear") as caught:
        parse_model(bad)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("bad", ["", " ", "1" * 51, "1\0", "\ud800", None, 1, b"1"])
def test_a_bad_model_version_is_named(bad: object) -> None:
    with pytest.raises(ValueError, match=r"^model_version: "):
        parse_model_version(bad)
    assert parse_model_version("1" * 50) == "1" * 50


_ANYTHING = st.one_of(
    st.text(), st.none(), st.booleans(), st.integers(), st.floats(), st.datetimes(), st.dates(), st.binary()
)


@given(_ANYTHING, _ANYTHING)
def test_nothing_but_value_error_comes_of_bad_arguments(start: object, end: object) -> None:
    error, window = _outcome(lambda: parse_window(start, end))
    assert "window_" in error if window is None else window.start < window.end
    for name, parse in (("model", parse_model), ("model_version", parse_model_version)):
        error, result = _outcome(lambda parse=parse: parse(start))  # type: ignore[misc]
        assert result is not None or error.startswith(f"{name}: ")


def _outcome(call: Callable[[], T]) -> tuple[str, T | None]:
    try:
        return "", call()
    except ValueError as e:
        return str(e), None
