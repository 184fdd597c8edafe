"""Whether Postgres has as many connections as the processes of the Procfile may open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection

from worker.check.findings import Finding, ok, warning
from worker.check.postgres import rows
from worker.check.procfile import Entry
from worker.settings import Settings

NAME = "postgres.connections"


def needed(entries: Iterable[Entry], settings: Settings, urls: int, *, consoles: int = 0) -> int:
    """Return how many connections one of each entry opens at most, unless its actors are async: those have more pools.

    Arguments:
      entries: Those that run dramatiq.
      settings: Of the environment, before what an entry sets itself.
      urls: How many credentials a worker has; each has a pool of its own.
      consoles: How many entries are the console.
    """
    total = consoles * (settings.db_pool_size + settings.db_max_overflow) * urls
    for entry in entries:
        size, overflow = (
            int(entry.environment.get(name.upper(), getattr(settings, name)))
            for name in ("db_pool_size", "db_max_overflow")
        )
        total += (entry.command.processes or 1) * (size + overflow) * urls
    return total


def check_connections(connection: Connection, most: int) -> Iterator[Finding]:
    """Compare what is there for the user of ``connection`` with ``most``, what all may take."""
    ((available, limit),) = rows(
        connection,
        """
        SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                - coalesce(current_setting('reserved_connections', true)::int, 0),
            least(
                (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()),
                (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user))
        """,
    )
    yield judge_connections(most, available if limit is None else min(limit, available))


def judge_connections(most: int, available: int) -> Finding:
    """Judge whether ``most`` connections fit into those ``available``."""
    if most > available:
        return warning(
            NAME,
            f"one of each entry opens up to {most} connections, and Postgres has {available} for them",
            "Lower DB_POOL_SIZE or DB_MAX_OVERFLOW, raise max_connections, or put PgBouncer between.",
        )
    return ok(NAME, f"up to {most} of {available} connections for one of each entry")
