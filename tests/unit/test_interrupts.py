"""An interrupt that comes while a module is imported would leave half of it behind for good."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Interrupt, Shutdown

from middleware import interrupts
from middleware.deliveries import Delivery
from middleware.dramatiq_internals import Deadlines
from middleware.graceful_shutdown import GracefulShutdown
from tests.waiting import eventually

SOURCE = """
from gates import slow
slow.began.set()
# An interrupt comes between two waits.
while not slow.go_on.wait(0.001):
    pass
whole = True
"""


class Slow:
    """A module whose import waits until it may go on, and a job that imports it and runs until it is interrupted."""

    def __init__(self, folder: Path) -> None:
        self.name = f"slow_{uuid4().hex}"
        self.began, self.go_on, self.end = threading.Event(), threading.Event(), threading.Event()
        self.came: list[str] = []
        (folder / f"{self.name}.py").write_text(SOURCE)

    def job(self) -> None:
        try:
            import_module(self.name)
            self.wait()
        except Interrupt as e:
            self.came.append(type(e).__name__)
            try:
                # It cleans up.
                self.wait()
            except Interrupt as again:
                self.came.append(type(again).__name__)
            raise

    def wait(self) -> None:
        while not self.end.wait(0.001):
            pass

    def is_whole(self) -> bool:
        return bool(getattr(sys.modules.get(self.name), "whole", False))


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    slow = Slow(tmp_path)
    gates: Any = ModuleType("gates")
    gates.slow = slow
    monkeypatch.setitem(sys.modules, "gates", gates)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield slow
    slow.go_on.set()
    slow.end.set()
    sys.modules.pop(slow.name, None)


def started(run: Callable[[], object]) -> threading.Thread:
    def until_interrupted() -> None:
        with contextlib.suppress(Interrupt):
            run()

    thread = threading.Thread(target=until_interrupted, daemon=True)
    thread.start()
    return thread


def test_a_time_limit_waits_for_the_import(slow: Slow) -> None:
    deadlines = Deadlines(1_000)
    thread = started(slow.job)
    assert thread.ident is not None
    assert slow.began.wait(15)
    deadlines.add_timeout(thread.ident, 0)
    for _ in range(3):
        deadlines._handle_deadlines()
    slow.go_on.set()

    def came() -> bool:
        deadlines._handle_deadlines()
        return bool(slow.came)

    eventually(came)
    assert slow.is_whole()
    deadlines._handle_deadlines()
    slow.end.set()
    thread.join()
    assert slow.came == ["TimeLimitExceeded"]


@pytest.mark.parametrize("notify", [True, False])
def test_a_shutdown_waits_for_the_import(slow: Slow, notify: bool) -> None:
    broker = StubBroker(middleware=[])
    shutdown = GracefulShutdown(notify_shutdown=notify)
    broker.add_middleware(shutdown)
    actor = dramatiq.actor(broker=broker)(slow.job)
    delivery = Delivery(actor.message(), "r", b"")

    def run() -> None:
        shutdown.before_process_message(broker, delivery)
        try:
            slow.job()
        except Shutdown as e:
            shutdown.after_process_message(broker, delivery, exception=e)

    thread = started(run)
    assert slow.began.wait(15)
    worker: Any = None
    for _ in range(2):
        # Dramatiq's main thread and ours both do.
        shutdown.before_worker_shutdown(broker, worker)
    # Before the end.
    shutdown._interrupt(lambda _: True)
    slow.go_on.set()
    eventually(lambda: slow.came)
    assert slow.is_whole()
    for interrupting in [one for one in threading.enumerate() if one.name == "interrupt"]:
        interrupting.join()
    slow.end.set()
    thread.join()
    assert slow.came == ["Shutdown"]
    assert delivery.give_back


def test_one_that_has_begun_to_import_as_it_is_interrupted_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, done = iter([False, True]), list[object]()
    monkeypatch.setattr(interrupts, "is_importing", lambda _: next(looks))
    monkeypatch.setattr(interrupts, "raise_thread_exception", lambda *of: done.append(of))
    monkeypatch.setattr(interrupts, "take_back_interrupt", done.append)
    assert not interrupts.interrupt(1, Shutdown)
    assert done == [(1, Shutdown), 1]
