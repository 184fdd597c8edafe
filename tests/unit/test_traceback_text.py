from __future__ import annotations

import re
import traceback

import pytest

from middleware.text import clean, message_of, name_of
from middleware.traceback_text import CAUSES, FRAMES, traceback_text


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as e:  # noqa: BLE001 - it is what was just raised
        return e


def test_as_python_prints_it() -> None:
    def inner() -> None:
        raise KeyError("missing")

    def outer() -> None:
        try:
            inner()
        except KeyError as e:
            raise ValueError("bad input") from e

    with pytest.raises(ValueError, match="bad input") as e:
        outer()
    expected = "".join(traceback.format_exception(e.value))
    # Python 3.11 and later mark the place in a line with ^^^^, which we leave out.
    expected = re.sub(r"^ *[~^]+\n", "", expected, flags=re.MULTILINE)
    assert traceback_text(e.value) == expected


def test_during_handling() -> None:
    with pytest.raises(ValueError, match="second") as e:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second")  # noqa: B904 - the context is what is tested
    text = traceback_text(e.value) or ""
    assert text.index("KeyError: 'first'") < text.index("During handling") < text.index("ValueError: second")


def test_a_suppressed_context_stays_out() -> None:
    with pytest.raises(ValueError, match="second") as e:
        try:
            raise KeyError("first")
        except KeyError:
            raise ValueError("second") from None
    assert "first" not in (traceback_text(e.value) or "")


def test_an_exception_that_was_never_raised_has_none() -> None:
    assert traceback_text(ValueError("x")) is None


def test_a_deep_stack_keeps_both_ends() -> None:
    def dive(n: int) -> None:
        if n == 0:
            raise ValueError("the bottom")
        dive(n - 1)

    with pytest.raises(ValueError, match="the bottom") as e:
        dive(600)
    text = traceback_text(e.value) or ""
    assert "frames left out]" in text
    assert text.endswith("ValueError: the bottom\n")
    assert "test_a_deep_stack_keeps_both_ends" in text
    assert len(text) < 2 * FRAMES * 300


def test_a_long_chain_of_causes_ends() -> None:
    error: BaseException = raised(ValueError("cause 0"))
    for n in range(1, 5_000):
        error = raised(ValueError(f"cause {n}"), error)
    text = traceback_text(error) or ""
    assert text.endswith("ValueError: cause 4999\n")
    assert text.count("direct cause") == CAUSES
    assert "earlier causes left out" in text


def test_a_chain_that_goes_round_ends() -> None:
    first, second = raised(ValueError("first")), raised(ValueError("second"))
    first.__cause__, second.__cause__ = second, first
    text = traceback_text(first) or ""
    assert text.count("ValueError: ") == 2
    assert text.endswith("ValueError: first\n")


def test_a_group_names_its_members() -> None:
    group = raised(ExceptionGroup("many", [ValueError(f"member {n}") for n in range(100)]))
    text = traceback_text(group) or ""
    assert "ValueError: member 0" in text
    assert "90 more exceptions" in text


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not telling")


def test_an_exception_whose_str_raises() -> None:
    assert message_of(Mute()) == "(the exception's __str__ raised RuntimeError)"
    assert "Mute: (the exception's __str__ raised RuntimeError)" in (traceback_text(raised(Mute())) or "")


def test_names_are_bare_for_builtins_only() -> None:
    assert name_of(ValueError) == "ValueError"
    assert name_of(Mute) == f"{__name__}.Mute"


def test_clean_text_is_text_for_postgres() -> None:
    assert clean("a\x00b\ud800c") == "a\\x00b\\ud800c"
