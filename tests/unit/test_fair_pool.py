"""Who waits for a connection gets the next one, before whoever has just given one back."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any
from unittest.mock import MagicMock

import pytest
from sqlalchemy.exc import TimeoutError as NoConnection

from db.fair_pool import FairPool
from tests.waiting import eventually


@pytest.fixture
def pool() -> FairPool:
    return FairPool(MagicMock, pool_size=1, max_overflow=0, timeout=60)


def waiters(pool: FairPool) -> int:
    queue: Any = pool._pool
    return len(queue._waiting)


def test_first_come_first_served(pool: FairPool) -> None:
    order: list[str] = []

    def ask(name: str) -> None:
        connection = pool.connect()
        order.append(name)
        connection.close()

    held = pool.connect()
    threads = [threading.Thread(target=ask, args=(name,)) for name in "abc"]
    for n, thread in enumerate(threads, 1):
        thread.start()
        eventually(lambda n=n: waiters(pool) == n)  # type: ignore[misc]
    held.close()
    # At once, as a busy thread does. It is none of those that have waited.
    ask("again")
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "again"]
    assert (pool.checkedin(), pool.checkedout()) == (1, 0)


def test_nobody_waits_where_more_may_be_opened() -> None:
    pool = FairPool(MagicMock, pool_size=1, max_overflow=1, timeout=60)
    one, two = pool.connect(), pool.connect()
    assert pool.overflow() == 1
    one.close()
    two.close()
    assert (pool.checkedin(), pool.overflow()) == (1, 0)


def test_who_waits_in_vain_leaves_the_row() -> None:
    pool = FairPool(MagicMock, pool_size=1, max_overflow=0, timeout=0.05)
    held = pool.connect()
    with pytest.raises(NoConnection):
        pool.connect()
    assert waiters(pool) == 0
    held.close()
    pool.connect().close()


def test_an_interrupt_loses_no_connection(pool: FairPool, monkeypatch: pytest.MonkeyPatch) -> None:
    held = pool.connect()
    wait = threading.Event.wait

    def interrupted(self: threading.Event, timeout: float | None = None) -> bool:
        # It was given one, and is interrupted before it can take it.
        monkeypatch.undo()
        held.close()
        assert wait(self, timeout)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    assert (waiters(pool), pool.checkedin()) == (0, 1)
    pool.connect().close()


@pytest.mark.parametrize("stands", [True, False], ids=["in the row", "before it is in the row"])
def test_an_interrupt_as_one_begins_to_wait_leaves_nobody_in_the_row(pool: FairPool, stands: bool) -> None:
    class Row(deque[Any]):
        def append(self, waiter: Any) -> None:
            if stands:
                super().append(waiter)
            raise KeyboardInterrupt

    queue: Any = pool._pool
    held = pool.connect()
    row, queue._waiting = queue._waiting, Row()
    with pytest.raises(KeyboardInterrupt):
        pool.connect()
    assert waiters(pool) == 0
    queue._waiting = row
    held.close()
    assert pool.checkedin() == 1
    pool.connect().close()
