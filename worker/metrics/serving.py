"""Serves ``/metrics`` alone, for those who run no console."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from socketserver import TCPServer
from typing import Final

from db.errors import ConfigurationError
from worker.console_tokens import Token, find_token
from worker.loopback import is_loopback
from worker.metrics.exposition import Exposition

#: Where it listens if nobody says, and seconds that whoever asks may take to say what he wants.
HOST, PORT = "127.0.0.1", 9191
_PATIENCE: Final = 10.0


def check_where(host: str, tokens: Iterable[Token]) -> None:
    """Check that it may listen there.

    Raises:
      ConfigurationError: When that is open to others, and there are no tokens.
    """
    if not is_loopback(host) and not list(tokens):
        raise ConfigurationError(
            f"CONSOLE_TOKENS: required to listen on {host!r}: without tokens metrics are for this machine alone; "
            "worker console token makes one"
        )


def make_server(exposition: Exposition, tokens: Iterable[Token], *, host: str = HOST, port: int = PORT) -> Server:
    """Return a server that listens, and answers once its ``serve_forever`` runs.

    Arguments:
      exposition: What it answers.
      tokens: Of those who may ask; none where anybody on this machine may.
      host: An address, or ``localhost``.
      port: 0 for any.

    Raises:
      ConfigurationError: When it would be open to others without tokens.
      OSError: When it cannot listen there.
    """
    tokens = tuple(tokens)
    check_where(host, tokens)
    return Server((host, port), _handler(exposition, tokens))


class Server(ThreadingHTTPServer):
    """Answers each who asks in a thread of his own."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        try:
            self.address_family = AF_INET6 if ip_address(address[0]).version == 6 else AF_INET
        except ValueError:
            self.address_family = AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # Without asking who this host is, which may take as long as a name server does.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def _handler(exposition: Exposition, tokens: tuple[Token, ...]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self._say(404, "There is /metrics here, and nothing else.\n")
            elif refused := _refusal(self.headers.get, tokens):
                self._say(*refused)
            else:
                body, content_type = exposition.render(self.headers.get("accept"))
                self._answer(200, body, content_type)

        def _say(self, status: int, text: str) -> None:
            self._answer(status, text.encode(), "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.send_header("cache-control", "no-store")
            if status == 401:
                self.send_header("www-authenticate", "Bearer")
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return "dramaturg"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base's
            """Say nothing of each who asks."""

    return Handler


def _refusal(header: Callable[[str], str | None], tokens: tuple[Token, ...]) -> tuple[int, str] | None:
    """Return why whoever asks may not have it: without a token of one who sees all tenants."""
    if not tokens:
        # Whatever name somebody points at this machine: a page that a browser has open here must get nothing.
        said = header("host") or "localhost"
        host = said[1:].partition("]")[0] if said.startswith("[") else said.partition(":")[0]
        return None if is_loopback(host) else (400, "Without CONSOLE_TOKENS metrics are for this machine alone.\n")
    scheme, _, given = (header("authorization") or "").partition(" ")
    token = find_token(tokens, given.strip()) if scheme.lower() == "bearer" else None
    if token is None:
        return 401, "Authorization: Bearer with a token of CONSOLE_TOKENS is needed.\n"
    if token.tenant_id is not None:
        return 403, f"{token.name} sees one tenant, and this is about all of them.\n"
    return None
