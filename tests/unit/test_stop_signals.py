from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from middleware.stop_signals import STOP_SIGNALS, StopSignals

Handler = Callable[[int, FrameType | None], None]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    yield
    for number, handler in before:
        signal.signal(number, handler)


def dramatiqs(said: list[str]) -> Handler:
    """Install a handler like that of Dramatiq's worker processes."""
    running = True

    def termhandler(number: int, frame: FrameType | None) -> None:
        nonlocal running
        said.append("stopping" if running else "killing")
        running = False

    for number in STOP_SIGNALS:
        signal.signal(number, termhandler)
    return termhandler


def test_only_the_first_signal_is_heard_whichever_it_is() -> None:
    said: list[str] = []
    dramatiqs(said)
    StopSignals(lambda: said.append("began")).install()
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert said == ["began", "stopping"]


def test_one_that_came_before_was_the_first() -> None:
    said: list[str] = []
    dramatiqs(said)
    os.kill(os.getpid(), signal.SIGTERM)
    StopSignals(lambda: said.append("began")).install()
    os.kill(os.getpid(), signal.SIGTERM)
    assert said == ["stopping", "began"]


def test_a_child_that_a_job_forks_ends_when_it_is_told_to() -> None:
    said: list[str] = []
    dramatiqs(said)
    StopSignals(lambda: said.append("began")).install()
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert said == []
