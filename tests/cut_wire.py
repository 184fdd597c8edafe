"""A TCP proxy that goes away and comes back, loses chosen commands and answers, and can lead to another server."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit


class CutWire:
    """Stands between clients and the Redis of ``url`` while the ``with`` block lasts."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._down = False
        self._ends = False
        #: The text of a command, and what becomes of the next that holds it.
        self._marker: bytes | None = None
        self._fate = ""
        #: Set once that has happened.
        self.lost = threading.Event()

    @property
    def url(self) -> str:
        """The server's URL, through this proxy."""
        return urlunsplit(self._url._replace(netloc=f"127.0.0.1:{self._listener.getsockname()[1]}"))

    def down(self) -> None:
        """Cut every connection, and every new one as it is made."""
        with self._lock:
            self._down = True
            self._cut(self._sockets)

    def up(self) -> None:
        """Let connections through again."""
        with self._lock:
            self._down = False

    def lose_answer_to(self, marker: bytes) -> None:
        """Cut the connection on which the next command that holds ``marker`` goes out, once the server has run it."""
        self._fate, self._marker = "answer", marker

    def lose(self, marker: bytes) -> None:
        """Keep the next command that holds ``marker`` from the server, and let its sender wait for an answer."""
        self._fate, self._marker = "command", marker

    def down_at(self, marker: bytes) -> None:
        """Go down when the next command that holds ``marker`` is sent, before it reaches the server."""
        self._fate, self._marker = "down", marker

    def lead_to(self, url: str) -> None:
        """Connect clients to another server from here on; those that are connected stay where they are."""
        with self._lock:
            self._url = urlsplit(url)

    def __enter__(self) -> CutWire:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends = True
        socket.create_connection(self._listener.getsockname()).close()
        self._threads[0].join()
        self.down()
        for thread in self._threads[1:]:
            thread.join()
        for s in [*self._sockets, self._listener]:
            s.close()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _cut(sockets: list[socket.socket]) -> None:
        for s in sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._lock:
                if self._ends or self._down:
                    client.close()
                    if self._ends:
                        return
                    continue
                try:
                    server = socket.create_connection((self._url.hostname or "127.0.0.1", self._url.port or 6379))
                except OSError:
                    client.close()
                    continue
                self._sockets += [client, server]
                doomed = threading.Event()
                self._start(self._pump, client, server, doomed, True)
                self._start(self._pump, server, client, doomed, False)

    def _pump(self, source: socket.socket, sink: socket.socket, doomed: threading.Event, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if asks and self._marker is not None and self._marker in data:
                    self._marker = None
                    if self._fate == "answer":
                        doomed.set()
                    else:
                        if self._fate == "down":
                            self.down()
                        self.lost.set()
                        continue
                elif not asks and doomed.is_set():
                    self.lost.set()
                    break
                sink.sendall(data)
        self._cut([source, sink])
