"""A small local server that speaks OpenAI's chat API, and misbehaves as it is told to."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What it says where nothing else is asked of it, and how many tokens that took.
ANSWER = "Email brought the most revenue."
TOKENS = {"prompt_tokens": 400, "completion_tokens": 50, "total_tokens": 450}

Behaviour = Callable[["_Handler"], None]


@dataclass
class LlmServer:
    """The server: what it was asked, and what it does next.

    Attributes:
      url: Its base URL.
      asked: The bodies of what it was asked, in order.
      keys: The keys that came with them.
      during: Called while it answers, before it does.
    """

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    _next: deque[Behaviour] = field(default_factory=deque)
    #: What it does once it has nothing next.
    _always: list[Behaviour] = field(default_factory=list)

    def forget(self) -> None:
        """Be as new."""
        self.asked.clear()
        self.keys.clear()
        self._next.clear()
        self._always.clear()
        self.during = lambda: None

    def then(self, *behaviours: Behaviour) -> None:
        """Behave in these ways, one a request, and then well again."""
        self._next.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """Behave in this way until told otherwise."""
        self._always[:] = [behaviour]

    def behaviour(self) -> Behaviour:
        """Return how to behave now."""
        if self._next:
            return self._next.popleft()
        return self._always[0] if self._always else answers()


def answers(text: str | None = ANSWER, **choice: Any) -> Behaviour:
    """Answer, with ``usage``, ``finish_reason`` or ``refusal`` as given."""
    usage = choice.pop("usage", TOKENS)
    message = {"role": "assistant", "content": text, "refusal": choice.pop("refusal", None)}
    choices = [{"index": 0, "message": message, "finish_reason": "stop", **choice}]
    return replies(
        {"id": "c", "object": "chat.completion", "created": 0, "model": "small-2", "choices": choices}, usage
    )


def replies(body: dict[str, Any], usage: object = None) -> Behaviour:
    """Reply with JSON."""
    return raw(200, json.dumps(body if usage is None else {**body, "usage": usage}).encode())


def fails(status: int, message: str = "no", code: str | None = None, **headers: str) -> Behaviour:
    """Answer with an error, as OpenAI writes them."""
    body = {"error": {"message": message, "type": code or "error", "param": None, "code": code}}
    return raw(status, json.dumps(body).encode(), **headers)


def raw(status: int, body: bytes, **headers: str) -> Behaviour:
    """Reply with bytes."""

    def behave(handler: _Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


def endless() -> Behaviour:
    """Answer without an end."""

    def behave(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:
            handler.wfile.write(b" " * 65_536)

    return behave


def cut() -> Behaviour:
    """Cut the connection in the middle of an answer."""

    def behave(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices"')
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True

    return behave


def silent(until: threading.Event) -> Behaviour:
    """Say nothing until the event, then hang up."""

    def behave(handler: _Handler) -> None:
        until.wait(60)
        handler.close_connection = True

    return behave


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    told: LlmServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.told.asked.append(body)
        self.told.keys.append(self.headers.get("Authorization"))
        if self.path != "/v1/chat/completions":
            fails(404, "no such path")(self)
            return
        self.told.during()
        try:
            self.told.behaviour()(self)
        except OSError:
            # It has heard enough.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


@contextmanager
def running_llm() -> Iterator[LlmServer]:
    """A server on loopback, for as long as the ``with`` block lasts."""
    told = LlmServer("")
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"told": told})) as server:
        told.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield told
        finally:
            server.shutdown()
            thread.join()
