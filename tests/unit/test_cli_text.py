"""What people read: harmless, short, and right."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cli.failed.export import cell
from worker.cli.failed.stats import bars
from worker.text import age, counted, last_name, listed, one_line, printable, to_json

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


@given(st.text())
def test_nothing_drives_a_terminal(text: str) -> None:
    for c in printable(text):
        assert c in "\n\t\u200c\u200d" or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert "\n" not in one_line(text)
    assert "\t" not in one_line(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb", "a\\rb"),
        ("a\r\nb", "a\nb"),
        ("\u202eabc", "\\u202eabc"),
        ("\x07\x08\x7f", "\\x07\\x08\\x7f"),
        ("für 株式会社 👩‍💻", "für 株式会社 👩‍💻"),
        ("[red]plain[/]", "[red]plain[/]"),
    ],
)
def test_what_is_shown_instead(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_the_first_line_that_says_something() -> None:
    assert one_line("\n  \n  a   b\nc") == "a b"
    assert one_line("") == ""


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(seconds=-5), "0s"),
        (timedelta(seconds=59.9), "59s"),
        (timedelta(seconds=60), "1m"),
        (timedelta(minutes=119), "1h"),
        (timedelta(hours=23, minutes=59), "23h"),
        (timedelta(days=13), "13d"),
        (timedelta(days=14), "2w"),
        (timedelta(days=800), "114w"),
    ],
)
def test_how_long_ago(ago: timedelta, said: str) -> None:
    assert age(NOW - ago, NOW) == said


def test_words() -> None:
    assert [counted(n, "job") for n in (0, 1, 1000)] == ["0 jobs", "1 job", "1,000 jobs"]
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert [last_name(name) for name in ("a.b.C", "C", "odd.")] == ["C", "C", "odd."]


def test_json_is_ascii_in_one_line_and_the_same_when_read() -> None:
    @dataclass
    class Inner:
        at: datetime
        ids: list[UUID]

    value: dict[Any, Any] = {"a": Inner(NOW, [UUID(int=1)]), UUID(int=2): "\x1b\x7fü\u202e\n", "n": Counter(x=1)}
    text = to_json(value)
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text) == {
        "a": {"at": NOW.isoformat(), "ids": [str(UUID(int=1))]},
        str(UUID(int=2)): "\x1b\x7fü\u202e\n",
        "n": {"x": 1},
    }


def test_bars() -> None:
    assert bars([0, 1, 4, 8], ascii_only=False) == " ▁▄█"
    assert bars([0, 1, 1000], ascii_only=False) == " ▁█"
    assert bars([0, 1, 8], ascii_only=True) == " .@"
    assert bars([0, 0], ascii_only=False) == "  "
    assert bars([], ascii_only=True) == ""


@given(st.text())
def test_no_cell_is_a_formula(text: str) -> None:
    found = cell(text)
    assert not found.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))  # noqa: RUF001


def test_cells() -> None:
    assert [cell(value) for value in (None, 3, True, NOW, [1, "ü"], {"a": 1}, -5)] == [
        *("", "3", "True", NOW.isoformat(), '[1, "ü"]', '{"a": 1}', "-5")
    ]  # fmt: skip
    assert cell("x" * 40_000) == "x" * 32_000 + "… [8,000 more characters]"
