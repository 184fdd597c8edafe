"""The console's thread that runs replays: in turn, bounded, and gone when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from dramatiq.errors import ConnectionClosed

from db.errors import ConfigurationError
from tests.waiting import eventually
from worker.console import running
from worker.console.running import AT_A_TIME, TRIES, Running


class FakeRunner:
    """Says of each run what it is told to say."""

    def __init__(self) -> None:
        self.ran: list[UUID] = []
        self.answer: Callable[[UUID], Any] = lambda _: SimpleNamespace(state="finished")
        self.wait: Callable[[float], bool] | None = None

    def make(self, wait: Callable[[float], bool]) -> Any:
        self.wait = wait
        return self

    def run_to_end(self, replay_id: UUID, *, at_most: float) -> Any:
        self.ran.append(replay_id)
        return self.answer(replay_id)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> FakeRunner:
    monkeypatch.setattr(running, "AGAIN_AFTER", 0.01)
    return FakeRunner()


def test_each_runs_in_turn_until_it_runs_no_more(runner: FakeRunner) -> None:
    first, second = uuid4(), uuid4()
    left = {first: 3, second: 2}
    given = threading.Event()

    def answer(replay_id: UUID) -> Any:
        given.wait(10)
        left[replay_id] -= 1
        return SimpleNamespace(state="running" if left[replay_id] else "paused")

    runner.answer = answer
    here = Running(runner.make)
    assert here.add(first)
    assert here.add(second)
    given.set()
    eventually(lambda: left == {first: 0, second: 0})
    # Neither waits until the other has ended; the first may have begun before the second was there.
    assert runner.ran in ([first, second, first, second, first], [first, first, second, first, second])
    here.stop()
    assert not here.add(first)


def test_what_another_has_is_tried_a_few_times_and_what_is_away_too(runner: FakeRunner) -> None:
    def answer(replay_id: UUID) -> Any:
        if replay_id == away:
            raise ConnectionClosed("away")
        if replay_id == broken:
            raise KeyError("broken")
        return None

    elsewhere, away, broken, last = uuid4(), uuid4(), uuid4(), uuid4()
    runner.answer = answer
    here = Running(runner.make)
    for each in (elsewhere, away, broken):
        here.add(each)
    eventually(lambda: runner.ran.count(elsewhere) == runner.ran.count(away) == TRIES + 1)
    runner.answer = lambda _: SimpleNamespace(state="finished")
    here.add(last)
    eventually(lambda: last in runner.ran)
    here.stop()
    counts = [runner.ran.count(each) for each in (elsewhere, away, broken, last)]
    assert counts == [TRIES + 1, TRIES + 1, 1, 1]


def test_no_more_wait_than_there_is_room_for_and_a_stop_does_not_wait_for_them(runner: FakeRunner) -> None:
    begun = threading.Event()

    def answer(_: UUID) -> Any:
        assert runner.wait is not None
        begun.set()
        # As a runner does between two looks.
        while not runner.wait(0.01):
            pass
        return SimpleNamespace(state="running")

    runner.answer = answer
    here = Running(runner.make)
    here.add(uuid4())
    assert begun.wait(10)
    taken = [here.add(uuid4()) for _ in range(AT_A_TIME + 1)]
    assert taken == [True] * AT_A_TIME + [False]
    here.stop()
    assert len(runner.ran) == 1


def test_where_nothing_can_be_imported_it_lets_go_and_tries_again_with_the_next(runner: FakeRunner) -> None:
    wrong = [True]
    tried = threading.Semaphore(0)

    def make(wait: Callable[[float], bool]) -> Any:
        tried.release()
        if wrong:
            raise ConfigurationError("module shop cannot be imported")
        return runner

    here = Running(make)
    assert here.add(uuid4())
    assert tried.acquire(timeout=10)
    wrong.clear()
    last = uuid4()
    # Until the thread that could not is gone, what it is given goes with it.
    eventually(lambda: here.add(last) and last in runner.ran)
    here.stop()
    assert set(runner.ran) == {last}
