"""A TCP proxy that counts round trips."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit


class Wire:
    """Stands between a client and the server of ``url`` while the ``with`` block lasts, and counts turns.

    A turn is whatever a client says until the server answers, however many packets that takes: one round trip.
    """

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._turns = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._mute = False

    def mute_new_connections(self) -> None:
        """Accept connections from here on, and never answer."""
        self._mute = True

    @property
    def url(self) -> str:
        """The server's URL, through this proxy."""
        user, _, _ = self._url.netloc.rpartition("@")
        return urlunsplit(self._url._replace(netloc=f"{user}@127.0.0.1:{self._listener.getsockname()[1]}"))

    @property
    def turns(self) -> int:
        """Turns so far, over all connections. What a client has an answer to has been counted."""
        with self._lock:
            return self._turns

    def __enter__(self) -> Wire:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        # Wakes the thread that accepts, which sees that it is to end.
        socket.create_connection(self._listener.getsockname()).close()
        self._threads[0].join()
        self._listener.close()
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for s in self._sockets:
            s.close()

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closed:
                client.close()
                return
            if self._mute:
                self._sockets.append(client)
                continue
            server = socket.create_connection((self._url.hostname or "127.0.0.1", self._url.port or 5432))
            self._sockets += [client, server]
            answered = threading.Event()
            answered.set()
            self._start(self._pump, client, server, answered, True)
            self._start(self._pump, server, client, answered, False)

    def _pump(self, source: socket.socket, sink: socket.socket, answered: threading.Event, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not asks:
                    answered.set()
                elif answered.is_set():
                    answered.clear()
                    with self._lock:
                        self._turns += 1
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
