"""Says something to Postgres and waits for the answer within one call of libpq's.

psycopg takes an answer in small steps, and lets other threads have the interpreter at each of some nine (psycopg_c,
``generators.pyx``: every ``nogil``). Where eight threads are in transactions, handing it over and back costs as much as
all else that these do. Neither way can a thread be interrupted meanwhile: a statement is cancelled from another one.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from psycopg import Connection, Cursor, errors, pq, waiting
from psycopg.abc import PQGen
from sqlalchemy.pool import PoolProxiedConnection

_BAD, _NO_PIPELINE, _IN_TRANSACTION = pq.ConnStatus.BAD, pq.PipelineStatus.OFF, pq.TransactionStatus.INTRANS
_IDLE = pq.TransactionStatus.IDLE
_COMMAND_OK, _FATAL_ERROR = pq.ExecStatus.COMMAND_OK, pq.ExecStatus.FATAL_ERROR

# psycopg itself waits in C, where gevent, say, has not taken that over; and threads take turns, as in most of Python.
_IN_TURNS = waiting.wait is getattr(waiting, "wait_c", None) and getattr(sys, "_is_gil_enabled", lambda: True)()
_main_thread = threading.main_thread().ident


def _note_main_thread() -> None:
    global _main_thread
    _main_thread = threading.get_ident()


os.register_at_fork(after_in_child=_note_main_thread)


def _may_wait(connection: Connection[Any]) -> bool:
    return (
        _IN_TURNS
        # Where signals arrive: Ctrl-C must end a statement.
        and threading.get_ident() != _main_thread
        and connection.pgconn.pipeline_status == _NO_PIPELINE
    )


def _ask(connection: pq.abc.PGconn, ask: Callable[[], pq.abc.PGresult]) -> pq.abc.PGresult:
    """Return what Postgres answers, be that an error.

    Raises:
      OperationalError: When the connection is lost, as psycopg would; without the SQLSTATE of what the server said
        before it ended the connection, whose text is there.
    """
    try:
        result = ask()
    except MemoryError:
        # What psycopg makes of no answer at all, be it that nothing can be sent.
        raise errors.OperationalError(connection.get_error_message()) from None
    lost = connection.status == _BAD
    if lost and result.status == _FATAL_ERROR and not result.error_field(pq.DiagnosticField.SQLSTATE):
        # The last of its words only; why the server ended it came before.
        raise errors.OperationalError(connection.get_error_message())
    return result


class RoundTripCursor(Cursor[Any]):
    """A cursor each of whose statements is one such call, unless it is to be prepared, or text of several."""

    def _maybe_prepare_gen(self, pgq: Any, *, prepare: bool | None = None, binary: bool | None = None) -> PQGen[None]:
        connection = self._conn
        if not pgq.params or prepare or binary or connection.prepare_threshold is not None or not _may_wait(connection):
            yield from super()._maybe_prepare_gen(pgq, prepare=prepare, binary=binary)
            return
        self._query = pgq

        def ask() -> pq.abc.PGresult:
            return self._pgconn.exec_params(
                pgq.query, pgq.params, param_types=pgq.types, param_formats=pgq.formats, result_format=self.format
            )

        results = [_ask(self._pgconn, ask)]
        self._check_results(results)
        self._set_results(results)


def commit(connection: PoolProxiedConnection) -> None:
    """Commit what is open on ``connection``, for a dialect's ``do_commit``.

    Raises:
      InFailedSqlTransaction: When a statement of it has failed, though somebody caught that: Postgres answers such a
        COMMIT with ROLLBACK, and no error (https://www.postgresql.org/docs/current/sql-commit.html).
      Error: Whatever else psycopg raises.
    """
    driver: Any = connection.driver_connection
    if driver.pgconn.transaction_status == pq.TransactionStatus.INERROR:
        connection.rollback()
        raise errors.InFailedSqlTransaction("a statement of this transaction failed, so it was rolled back")
    # Within a block of psycopg's own, nobody but that may end its transaction.
    if not _is_free(driver) or driver._num_transactions or driver.pgconn.transaction_status != _IN_TRANSACTION:
        connection.commit()
        return
    with driver.lock:
        result = _ask(driver.pgconn, lambda: driver.pgconn.exec_(b"COMMIT"))
    if result.status != _COMMAND_OK:
        raise errors.error_from_result(result, encoding=driver.info.encoding)


def roll_back(connection: PoolProxiedConnection) -> None:
    """Roll back what is open on ``connection``, if anything is, for a dialect's ``do_rollback``."""
    if connection.driver_connection.pgconn.transaction_status != _IDLE:  # type: ignore[union-attr]
        connection.rollback()


def _is_free(driver: object) -> bool:
    return isinstance(driver, Connection) and _may_wait(driver)


def say(driver: Any, statements: str) -> bool:
    """Say something to Postgres that returns nothing, and wait; tell whether that was done: if not, nothing was.

    SQLAlchemy and psycopg take ten times as long for it. Not for async connections, where nobody may wait.
    """
    if not _is_free(driver):
        return False
    connection = driver.pgconn
    try:
        result = _ask(connection, lambda: connection.exec_(statements.encode()))
    except errors.OperationalError:
        return False
    return result.status == _COMMAND_OK
