"""What is made once for all who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from tests.waiting import eventually
from worker.console.shared import AT_MOST, KEYS, WAITS, Shared, TakesTooLong


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shared(clock: Clock) -> Shared:
    return Shared(5, clock=clock)


@pytest.fixture
def make() -> Callable[[], int]:
    numbers = count(1)
    return lambda: next(numbers)


def test_it_is_made_anew_after_the_seconds(shared: Shared, clock: Clock, make: Callable[[], int]) -> None:
    assert shared.get("a", make) == 1
    clock.now += 4.9
    assert shared.get("a", make) == 1
    # Of another key it is another.
    assert shared.get("b", make) == 2
    clock.now += 0.2
    assert shared.get("a", make) == 3
    shared.forget()
    assert shared.get("a", make) == 4


def test_what_takes_long_is_kept_longer_and_not_for_ever(shared: Shared, clock: Clock) -> None:
    def slow(seconds: float, value: str) -> Callable[[], str]:
        def make() -> str:
            clock.now += seconds
            return value

        return make

    assert shared.get("a", slow(0.2, "first")) == "first"
    # A hundredth of the time, and no more.
    clock.now += 19.9
    assert shared.get("a", slow(0, "second")) == "first"
    clock.now += 0.2
    assert shared.get("a", slow(10, "third")) == "third"
    clock.now += AT_MOST - 0.1
    assert shared.get("a", slow(0, "fourth")) == "third"
    clock.now += 0.2
    assert shared.get("a", slow(0, "fifth")) == "fifth"


def test_many_who_ask_at_once_wait_for_one(shared: Shared, make: Callable[[], int]) -> None:
    begun, go_on = threading.Event(), threading.Event()
    asked = threading.Semaphore(0)

    def slow() -> int:
        begun.set()
        assert go_on.wait(30)
        return make()

    def ask() -> int:
        asked.release()
        return shared.get("a", slow)

    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(ask) for _ in range(20)]
        for _ in answers:
            assert asked.acquire(timeout=30)
        assert begun.wait(30)
        # Whoever asks for something else does not wait.
        assert shared.get("b", lambda: "other") == "other"
        go_on.set()
        assert [answer.result(30) for answer in answers] == [1] * 20


def test_what_goes_wrong_is_told_to_all_who_wait_and_not_kept(shared: Shared, make: Callable[[], int]) -> None:
    go_on = threading.Event()

    def fail() -> int:
        assert go_on.wait(30)
        raise ConnectionError(f"away {make()}")

    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(shared.get, "a", fail) for _ in range(5)]
        eventually(lambda: sum(answer.running() for answer in answers) == 5)
        go_on.set()
        said = {str(answer.exception(30)) for answer in answers}
    # Not one for each.
    assert "away 1" in said
    assert len(said) < 5
    assert shared.get("a", lambda: "back") == "back"


def test_what_was_begun_before_a_change_is_not_shown_after_it(shared: Shared) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before() -> str:
        begun.set()
        assert go_on.wait(30)
        return "before"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shared.get, "a", before)
        assert begun.wait(30)
        shared.forget()
        assert shared.get("a", lambda: "after") == "after"
        go_on.set()
        assert first.result(30) == "before"
    assert shared.get("a", lambda: "again") == "after"


def test_it_does_not_grow(shared: Shared, make: Callable[[], int]) -> None:
    for key in range(KEYS + 10):
        shared.get(key, make)
    made = make()
    assert shared.get(KEYS + 9, make) == made - 1
    assert shared.get(0, make) == made + 1


def test_nobody_waits_for_long_for_what_is_being_made(shared: Shared, clock: Clock) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def never_ends() -> str:
        begun.set()
        assert go_on.wait(30)
        return "in the end"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shared.get, "a", never_ends)
        assert begun.wait(30)
        clock.now += WAITS
        with pytest.raises(TakesTooLong):
            shared.get("a", lambda: "not made beside the other")
        assert shared.get("b", lambda: "other") == "other"
        go_on.set()
        assert first.result(30) == "in the end"
    assert shared.get("a", lambda: "again") == "in the end"
