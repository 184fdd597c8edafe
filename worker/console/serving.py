"""Serves the console with uvicorn, on loopback alone unless there are tokens."""

from __future__ import annotations

import threading

import uvicorn

from db.errors import ConfigurationError
from worker.console.app import make_app
from worker.console.deployment import Deployment
from worker.logs.setup import configure_process
from worker.loopback import is_loopback
from worker.settings import Settings

#: Where it listens if nobody says.
PORT = 8000


def serve(settings: Settings, *, host: str | None = None, port: int | None = None) -> None:
    """Serve until the process is told to stop.

    Arguments:
      settings: With ``DATABASE_URL``.
      host: An address of this machine; by default every one where there are tokens and ``PORT``, else loopback.
      port: ``PORT`` by default, else 8000.

    Raises:
      ConfigurationError: When it would be open to others without tokens.
    """
    host, port = where(settings, host, port)
    configure_process(settings)
    deployment = Deployment(settings)
    # Importing takes a second or two; whoever looks at a page need not wait for it.
    threading.Thread(target=deployment.load, name="import", daemon=True).start()
    uvicorn.run(
        make_app(settings, deployment),
        host=host,
        port=port,
        # A host's router, whose address nobody knows, ends TLS in front of this.
        forwarded_allow_ips="*" if settings.port is not None else None,
        access_log=False,
        server_header=False,
        # Its lines go where all others do.
        log_config=None,
        # Longer than a live page waits between two looks, and than a router keeps a connection that it may use again.
        timeout_keep_alive=95,
        timeout_graceful_shutdown=5,
    )


def where(settings: Settings, host: str | None, port: int | None) -> tuple[str, int]:
    """Return the address and the port to listen on.

    Raises:
      ConfigurationError: When that is open to others, and there are no tokens.
    """
    if not settings.console_tokens:
        if settings.port is not None:
            raise ConfigurationError(
                "CONSOLE_TOKENS: required where PORT is set, because the host's router sends anybody here; "
                "worker console token makes one"
            )
        if host is not None and not is_loopback(host):
            raise ConfigurationError(
                f"CONSOLE_TOKENS: required to listen on {host!r}: without tokens the console is for this machine alone"
            )
    if host is None:
        host = "0.0.0.0" if settings.port is not None else "127.0.0.1"  # noqa: S104 - there are tokens
    return host, port or settings.port or PORT
