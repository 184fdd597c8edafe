from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from middleware.sending import send_at_once

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def fill(one: socket.socket) -> int:
    """Send until there is no room, and return how much was sent."""
    one.setblocking(False)
    sent = 0
    try:
        while True:
            sent += one.send(b"x" * 4096)
    except BlockingIOError:
        return sent


def read(one: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += one.recv(count - len(found))
    return found


def test_it_is_sent(pair: Pair) -> None:
    here, there = pair
    assert send_at_once(here, b"a\0b")
    assert there.recv(10) == b"a\0b"


def test_without_room_nothing_is(pair: Pair) -> None:
    here, there = pair
    full = fill(here)
    assert not send_at_once(here, b"more")
    assert read(there, full) == b"x" * full
    assert send_at_once(here, b"more")
    assert there.recv(10) == b"more"


def test_what_was_begun_is_sent_whole(pair: Pair) -> None:
    here, there = pair
    data = bytes(range(256)) * 40_000
    here.settimeout(30)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(read(there, len(data))))
    reading.start()
    assert send_at_once(here, data)
    reading.join(30)
    assert found == [data]


def test_to_nobody_nothing_is(pair: Pair) -> None:
    here, there = pair
    there.close()
    assert not send_at_once(here, b"x")
    here.close()
    assert not send_at_once(here, b"x")


def test_only_the_kernels_sockets(pair: Pair) -> None:
    context = ssl.create_default_context()
    with context.wrap_socket(pair[0], server_hostname="x", do_handshake_on_connect=False) as encrypting:
        assert not send_at_once(encrypting, b"x")
    assert not send_at_once(None, b"x")
