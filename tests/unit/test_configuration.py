"""What is said of Postgres before SQLAlchemy is imported, and what is imported when."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dramatiq.threading import raise_thread_exception

from db import configuration, loaded
from db.errors import ConfigurationError
from db.session import normalise_url
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
URLS = [
    "postgres://user:password@host:5432/name",
    "postgresql://host/name?sslmode=require",
    "postgresql+psycopg:///name?host=/tmp",
    "postgres://user:p@ss@host/name",
    "postgres://user:a/b?c#d@host:5432/name",
    "postgres://[::1]:5432/name",
    "postgres://host:/name",
    "postgres://",
    "postgres://host:port/name",
    "postgres://user:password@host:54x/name",
    "postgres:/host/name",
    "mysql://host/name",
    "user:password@host/name",
    "host:5432",
    "",
]


def verdict(check: Any, url: str) -> str:
    try:
        check(url)
    except ConfigurationError as e:
        return str(e)
    return "a Postgres URL"


@pytest.mark.parametrize("url", URLS)
def test_urls_are_judged_as_sqlalchemy_does(url: str) -> None:
    assert verdict(configuration.check_url, url) == verdict(normalise_url, url)


#: What takes long to import, and what a worker process does not need before something needs Postgres.
LATE = {"sqlalchemy", "psycopg", "cryptography.fernet", "rich", "typer", "alembic"}
STEPS = """
import sys
import worker.broker
print(*sorted(set(sys.modules) & {names!r}))
from db import configuration, loaded, session
print(session._state.config == configuration.current(), session._bind("worker").url.render_as_string())
configuration.configure("postgres://other/name")
print(session._bind("worker").url.render_as_string())
"""


def test_a_worker_process_imports_it_when_something_needs_it() -> None:
    names = LATE
    environment = {"DATABASE_URL": "postgres://a:b@host/name", "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(names=names)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "",
        "True postgresql+psycopg://a:***@host/name",
        "postgresql+psycopg://other/name",
    ]


def test_what_ends_before_it_is_imported_stays_so() -> None:
    steps = "from db import loaded\nloaded.close_for_good(1)\nfrom db import session\nprint(session._state.closed)"
    done = subprocess.run([sys.executable, "-c", steps], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A module that waits, in the midst of being imported, for ``go``."""
    gate = SimpleNamespace(begun=threading.Event(), go=threading.Event())
    monkeypatch.setattr(threading, "gate", gate, raising=False)
    (tmp_path / "late_module.py").write_text(
        "import threading\nthreading.gate.begun.set()\nassert threading.gate.go.wait(10)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield gate
    gate.go.set()
    sys.modules.pop("late_module", None)


class Interrupt(BaseException):
    pass


def test_whoever_is_interrupted_leaves_nothing_behind_in_halves(gate: SimpleNamespace) -> None:
    ended: list[BaseException] = []

    def job() -> None:
        try:
            loaded.load("late_module")
        except Interrupt as e:
            ended.append(e)

    thread = threading.Thread(target=job)
    thread.start()
    assert gate.begun.wait(10)
    assert thread.ident is not None
    raise_thread_exception(thread.ident, Interrupt)
    gate.go.set()
    thread.join(10)
    assert len(ended) == 1
    eventually(lambda: getattr(sys.modules.get("late_module"), "whole", False))


def test_what_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise ImportError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    said: list[str] = []

    def ask() -> None:
        try:
            loaded.load("broken_module")
        except ImportError as e:
            said.append(str(e))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(10)
    assert said == ["no such library"]
