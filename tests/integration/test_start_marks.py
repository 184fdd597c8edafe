"""A start is noted though the connection for it has been lost meanwhile: else the crash that follows is not counted."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from middleware.sending import send_at_once
from middleware.start_marks import StartMarks
from tests.waiting import eventually

KEY = "dramatiq:__dramaturg__.started.me"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def noted(client: redis.Redis) -> set[bytes]:
    found: Any = client.hkeys(KEY)
    return set(found)


def test_a_start_right_after_the_connection_was_cut_is_noted(client: redis.Redis) -> None:
    marks = StartMarks(client, KEY)
    marks.mark(b"q:1")
    eventually(lambda: noted(client) == {b"q:1"})
    for n in range(2, 12):
        # All but the one that asks.
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        marks.mark(f"q:{n}".encode())
        eventually(lambda n=n: f"q:{n}".encode() in noted(client))  # type: ignore[misc]
    marks.close()


def test_its_connections_take_no_place_of_the_clients(redis_url: str) -> None:
    # Redis-py counts what its pool has made, and from 8.0 makes no more than a hundred.
    with redis.Redis.from_url(redis_url, max_connections=2) as client:
        marks = StartMarks(client, KEY)
        for n in range(10):
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            marks.mark(f"q:{n}".encode())
        eventually(lambda: len(noted(client)) == 10)
        with client.pipeline() as one, client.pipeline() as another:
            one.watch(KEY)
            another.watch(KEY)
        marks.close()


def test_nobody_waits_for_a_redis_that_is_away_each_time(client: redis.Redis) -> None:
    tried: list[int] = []

    class Away(redis.Connection):
        def connect(self) -> None:
            tried.append(1)
            raise redis.ConnectionError("away")

    away = redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Away))
    marks = StartMarks(away, KEY)
    for n in range(100):
        marks.mark(f"q:{n}".encode())
    # Twice at first; the others come within the pause.
    assert len(tried) == 2
    assert len(marks._running) == 100


def test_the_end_of_an_earlier_delivery_is_not_that_of_a_later_one(client: redis.Redis) -> None:
    marks = StartMarks(client, KEY)
    marks.mark(b"q:1")
    began = time.time()
    # Its lease was lost, and it begins again in this process.
    eventually(lambda: time.time() - began > 0.002)
    marks.mark(b"q:1")
    began_again = time.time()
    marks.forget(b"q:1", began)
    assert b"q:1" in marks._running
    assert not marks.over(b"q:1", began)
    marks.forget(b"q:1", began_again)
    assert not marks._running
    marks.close()


def test_closing_takes_no_connection_from_under_who_sends_on_it(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = StartMarks(client, KEY)
    marks.mark(b"q:1")
    left = marks._local.connection._sock
    closing = threading.Thread(target=marks.close)
    numbers: list[int] = []

    def closed_meanwhile(to: socket.socket, data: bytes) -> bool:
        if not numbers:
            closing.start()
            closing.join(0.2)
            # What it says, another socket could be by now.
            numbers.append(to.fileno())
        return send_at_once(to, data)

    monkeypatch.setattr("middleware.start_marks.send_at_once", closed_meanwhile)
    marks.mark(b"q:2")
    eventually(lambda: noted(client) == {b"q:1", b"q:2"})
    closing.join()
    assert numbers[0] >= 0
    assert left.fileno() < 0
    marks.close()
