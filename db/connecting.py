"""What becomes of each connection to Postgres: whether statements are prepared on it.

Statements that are prepared, which :func:`db.configuration.configure` must be asked for, cost Postgres no parsing and,
after some executions, no planning, which row-level security makes dear; and psycopg less, too. What that costs is said
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psycopg import errors, pq
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from db import times

#: What in Postgres says that a prepared statement's result has another form by now.
_CHANGED = "RevalidateCachedQuery"


def set_up(prepare_threshold: int | None) -> Callable[[DBAPIConnection, ConnectionPoolEntry], None]:
    """Return what is to be told of each new connection.

    Arguments:
      prepare_threshold: Executions after which a statement is prepared; ``None`` for never.
    """

    def connected(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        driver: Any = record.driver_connection
        times.adapt(driver.adapters)
        if prepare_threshold is not None and _is_direct(connection, driver):
            driver.prepare_threshold = prepare_threshold

    return connected


def _is_direct(connection: DBAPIConnection, driver: Any) -> bool:
    """Tell whether the server process at the other end is the one that was connected to.

    A pooler, such as PgBouncer, gives each transaction another, which knows nothing of what was prepared before; it has
    made up the process id that it told.
    """
    cursor = connection.cursor()
    try:
        cursor.execute("SELECT pg_backend_pid()")
        found: Any = cursor.fetchone()
    finally:
        cursor.close()
    if driver.pgconn.transaction_status != pq.TransactionStatus.IDLE:
        connection.rollback()
    return bool(found[0] == driver.pgconn.backend_pid)


def drop_prepared(context: ExceptionContext) -> None:
    """Told of errors: drop all connections of the pool when a table was altered since a statement on it was prepared.

    It fails on each that has prepared it, for ever: this job fails once, and no other does.
    """
    error = context.original_exception
    if isinstance(error, errors.FeatureNotSupported) and error.diag.source_function == _CHANGED:
        context.is_disconnect = True
