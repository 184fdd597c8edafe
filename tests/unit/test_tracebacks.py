"""Stored tracebacks are read as they were written, and the application's own frames told from others."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import db.session
from middleware.traceback_text import traceback_text
from worker.failed.tracebacks import is_own, parse, short_path


def inner(n: int) -> None:
    if n:
        inner(n - 1)
    raise KeyError('deep\n  File "/not/a/frame.py", line 1, in message')


def raised() -> BaseException:
    try:
        try:
            inner(0)
        except KeyError as e:
            try:
                int("x")
            except ValueError:
                raise RuntimeError("outer") from e
    except RuntimeError as e:
        return e
    raise AssertionError


def test_what_is_written_is_read() -> None:
    error = raised()
    text = traceback_text(error)
    assert text is not None
    last, cause = parse(text, "tests.actor")
    assert [frame.function for frame in last.frames] == ["raised"]
    assert last.said == ["RuntimeError: outer"]
    assert last.link == ""
    assert cause.link == "caused by"
    expected = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__cause__.__traceback__)]  # type: ignore[union-attr]
    assert [(frame.file, frame.line, frame.function) for frame in cause.frames] == expected
    assert cause.frames[-1].code[0].startswith("raise KeyError(")
    # A message is no frame, whatever it holds.
    assert cause.said[0].startswith("KeyError: ")
    assert all(frame.file == __file__ for frame in cause.frames)


def test_an_exception_while_another_was_handled() -> None:
    try:
        try:
            inner(0)
        except KeyError:
            int("x")
    except ValueError as e:
        text = traceback_text(e)
    last, first = parse(str(text), "tests.actor")
    assert last.said == ["ValueError: invalid literal for int() with base 10: 'x'"]
    assert first.link == "while handling"


def test_a_deep_stack_says_what_is_left_out_and_is_read_all_the_same() -> None:
    def one(n: int) -> None:
        other(n)

    def other(n: int) -> None:
        (one if n else inner)(n - 1 if n else 60)

    try:
        one(30)
    except KeyError as e:
        text = str(traceback_text(e))
    assert "frames left out" in text
    assert "[Previous line repeated" in text
    (found,) = parse(text, "tests.actor")
    assert found.frames[-1].function == "inner"
    assert {frame.function for frame in found.frames} >= {"one", "other", "inner"}
    assert found.said[0].startswith("KeyError: ")


@given(st.text())
def test_whatever_it_is_it_is_no_error(text: str) -> None:
    assert parse(text, "a.b", "c:d")


@given(st.lists(st.sampled_from([
    "Traceback (most recent call last):", '  File "/a.py", line 3, in f', "    code", "    ~~^^", "E: m", "",
    "During handling of the above exception, another exception occurred:",
])))  # fmt: skip
def test_parts_of_tracebacks_in_any_order_are_no_error(lines: list[str]) -> None:
    found = parse("\n".join(lines), "a.b")
    assert sum(len(raised.frames) for raised in found) <= lines.count('  File "/a.py", line 3, in f')


SITE = "/app/.venv/lib/python3.12/site-packages"


@pytest.mark.parametrize(
    ("file", "actor", "own"),
    [
        ("/app/shop/billing.py", "shop.billing.charge", True),
        ("/app/shop/middleware/auth.py", "shop.billing.charge", True),
        ("/app/shop/db/models.py", "shop.billing.charge", True),
        (r"C:\app\shop\billing.py", "shop.billing.charge", True),
        (f"{SITE}/httpx/_client.py", "shop.billing.charge", False),
        # An application may be installed.
        (f"{SITE}/shop/billing.py", "shop.billing.charge", True),
        (f"{SITE}/shop.py", "shop.charge", True),
        (f"{SITE}/dramatiq/worker.py", "dramatiq.thing", False),
        (f"{SITE}/middleware/tenant_context.py", "shop.x", False),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", "shop.x", False),
        ("/usr/lib/python3.12/json/decoder.py", "shop.x", False),
        (r"C:\Python312\Lib\json\decoder.py", "shop.x", False),
        ("<frozen importlib._bootstrap>", "shop.x", False),
        ("<string>", "shop.x", False),
        # Ours, in a checkout on another machine.
        ("/srv/dramaturg/middleware/tenant_context.py", "shop.x", False),
        ("/srv/dramaturg/db/session.py", "shop.x", False),
        ("/srv/dramaturg/worker/attribution.py", "shop.x", False),
        ("/srv/dramaturg/worker/attribution.py", "worker.attribution.recompute_window", True),
        (db.session.__file__, "shop.x", False),
        (traceback.__file__, "shop.x", False),
        (pytest.__file__, "shop.x", False),
        (__file__, "shop.x", True),
        (str(Path(sys.executable).parent / "script.py"), "shop.x", True),
    ],
)
def test_whose_a_file_is(file: str, actor: str, own: bool) -> None:
    assert is_own(file, actor) is own


def test_the_place_that_the_worker_knew_is_the_applications() -> None:
    text = f'Traceback (most recent call last):\n  File "{SITE}/plugin/jobs.py", line 3, in run\n    x\nE: m\n'
    assert [frame.own for frame in parse(text, "shop.x")[0].frames] == [False]
    assert [frame.own for frame in parse(text, "shop.x", "plugin.jobs:Job.run")[0].frames] == [True]
    assert [frame.own for frame in parse(text, "shop.x", "plugin.jobs:Job.walk")[0].frames] == [False]
    assert [frame.own for frame in parse(text, "shop.x", "other.jobs:Job.run")[0].frames] == [False]


def test_the_end_of_a_path() -> None:
    assert short_path("/app/shop/billing.py") == "/app/shop/billing.py"
    assert short_path(f"{SITE}/httpx/_client.py") == "…/site-packages/httpx/_client.py"
