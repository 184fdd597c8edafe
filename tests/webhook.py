"""A local server that alerts are posted to, which is away or misbehaves as it is told to."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any

from tests.servers import free_port

SECRET, OTHER = "whsec_" + "c2VjcmV0" * 4, "whsec_" + "b3RoZXJz" * 4
#: What nobody but the receiver is to see.
TOKEN = "T0KEN-of-the-receiver"
PATH = f"/services/{TOKEN}"


@dataclass
class Post:
    """What was posted."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def alert(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """The server.

    Attributes:
      posts: What was posted, in order.
      during: Called before it answers.
      slowly: Called with what is written to, between the head of an answer and its body.
    """

    port: int
    posts: list[Post] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    during: Callable[[], object] = lambda: None
    slowly: Callable[[BufferedIOBase], object] = lambda _: None
    _answers: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    def then(self, *statuses: int, **headers: str) -> None:
        """Answer so, one a post, and then 200."""
        self._answers.extend((status, headers) for status in statuses)

    def answer(self) -> tuple[int, dict[str, str]]:
        return self._answers.popleft() if self._answers else (200, {})

    @property
    def taken(self) -> list[dict[str, Any]]:
        """The alerts that it took."""
        return [post.alert for post in self.posts if post.status == 200]

    @contextmanager
    def up(self) -> Iterator[None]:
        """Be there for as long as the ``with`` block lasts."""
        with _Server(("127.0.0.1", self.port), type("Handler", (_Handler,), {"told": self})) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield
            finally:
                server.shutdown()
                thread.join()


def receiver() -> Receiver:
    """Return one that is not there yet."""
    return Receiver(free_port())


class _Handler(BaseHTTPRequestHandler):
    told: Receiver

    def do_GET(self) -> None:
        self.told.asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.during()
        status, headers = self.told.answer()
        headers_of = {name.lower(): value for name, value in self.headers.items()}
        self.told.posts.append(Post(self.path, headers_of, body, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.told.slowly(self.wfile)
        # As some do, it says where it was asked.
        self.wfile.write(f"{status} at {self.path}".encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""
