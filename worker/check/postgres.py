"""One Postgres credential: whether it answers, what it is, and whether one may write there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from db.session import normalise_url
from worker.check.findings import Finding, error, ok
from worker.settings import Settings

#: Seconds to wait for a connection, and for each statement.
TIMEOUT = 5
#: As Postgres numbers its versions.
OLDEST = 150_000


def credentials(settings: Settings) -> dict[str, list[str]]:
    """Return every distinct URL and the variables that name it, the runtime user's first."""
    found: dict[str, list[str]] = {}
    for name in ("database_url", "operator_database_url", "migration_database_url"):
        url = getattr(settings, name)
        if url is not None:
            found.setdefault(url, []).append(name.upper())
    return found


def address(url: str) -> str:
    """Return ``url`` as ``user@host:port/database``: without its password, and without options, which may hold one."""
    parsed = make_url(url)
    host = parsed.query.get("host")
    where = parsed.host or (host if isinstance(host, str) else "local socket")
    return f"{parsed.username or 'default user'}@{where}:{parsed.port or 5432}/{parsed.database or ''}"


def engine(url: str) -> Engine:
    """Return an engine that reaches Postgres as workers do, and keeps no connections."""
    return create_engine(
        normalise_url(url),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={
            "prepare_threshold": None,
            "connect_timeout": TIMEOUT,
            "application_name": "dramaturg-check",
        },
    )


@contextmanager
def reading(connection: Connection) -> Iterator[Connection]:
    """A transaction that changes nothing, and in which no statement takes longer than :data:`TIMEOUT`."""
    with connection.begin():
        # Not as options of the connection, which PgBouncer refuses.
        connection.execute(
            text(
                f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = '{TIMEOUT}s'; SET LOCAL lock_timeout = '1s'"
            )
        )
        yield connection


def rows(connection: Connection, query: str, values: Mapping[str, Any] | None = None) -> list[Any]:
    """Return what ``query`` gives."""
    with reading(connection):
        return list(connection.execute(text(query), values or {}))


def check_server(connection: Connection, named: str) -> Iterator[Finding]:
    """Check the server's version, and that it may be written to.

    Arguments:
      connection: To look with.
      named: The variables and the address, for people.
    """
    ((version, shown, in_recovery, read_only),) = rows(
        connection,
        "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only') = 'on'",
    )
    yield judge_version(version, f"{named}: PostgreSQL {shown}")
    yield judge_writable(named, in_recovery=in_recovery, read_only=read_only)


def judge_version(version: int, found: str) -> Finding:
    """Judge a version as ``server_version_num`` has it."""
    if version < OLDEST:
        return error("postgres.version", found, f"Use PostgreSQL {OLDEST // 10_000} or newer.")
    return ok("postgres.version", found)


def judge_writable(named: str, *, in_recovery: bool, read_only: bool) -> Finding:
    """Judge whether failures can be written there."""
    if in_recovery:
        return error("postgres.writable", f"{named}: this is a replica, in recovery", "Name the primary in the URL.")
    if read_only:
        return error(
            "postgres.writable",
            f"{named}: default_transaction_read_only is on, so no failure can be recorded",
            "ALTER ROLE ... or ALTER DATABASE ... RESET default_transaction_read_only, wherever it was set.",
        )
    return ok("postgres.writable", f"{named}: a primary that may be written to")


def check_same_database(connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Check that all credentials lead to one database.

    Arguments:
      connections: By the variables that name them.
    """
    query = "SELECT (SELECT system_identifier FROM pg_control_system()), current_database()"
    found = {named: tuple(rows(connection, query)[0]) for named, connection in connections.items()}
    if len(set(found.values())) > 1:
        where = "; ".join(f"{named}: database {name} of cluster {cluster}" for named, (cluster, name) in found.items())
        yield error(
            "postgres.same-database",
            f"the variables lead to different databases: {where}",
            "Name one database in all of them: failures recorded in one are not seen in another.",
        )
    elif len(found) > 1:
        yield ok("postgres.same-database", "all credentials lead to one database")
