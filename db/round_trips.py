"""Says something to Postgres and waits for the answer within one call of libpq's.

psycopg takes an answer in small steps, and lets other threads have the interpreter at each of some nine (psycopg_c,
``generators.pyx``: every ``nogil``). Where eight threads are in transactions, handing it over and back costs as much as
all else that these do. Neither way can a thread be interrupted meanwhile: a statement is cancelled from another one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from psycopg import Connection, Cursor, errors, pq, waiting
from psycopg.abc import PQGen
from sqlalchemy.pool import PoolProxiedConnection

# Absent where psycopg runs without its C, and not in use where gevent, which knows when to run another, waits instead.
_wait_in_c: object = getattr(waiting, "wait_c", None)
_main_thread = threading.main_thread()


def _may_wait(connection: Connection[Any]) -> bool:
    return (
        waiting.wait is _wait_in_c
        # Where signals arrive: Ctrl-C must end a statement.
        and threading.get_ident() != _main_thread.ident
        and connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
        # A build of Python whose threads need not take turns has no need of this.
        and getattr(sys, "_is_gil_enabled", _yes)()
    )


def _yes() -> bool:
    return True


def _ask(connection: pq.abc.PGconn, ask: Callable[[], pq.abc.PGresult]) -> pq.abc.PGresult:
    """Return what Postgres answers, be that an error.

    Raises:
      OperationalError: When the connection is lost, as psycopg would.
    """
    try:
        result = ask()
    except MemoryError:
        # What psycopg makes of no answer at all, be it that nothing can be sent.
        raise errors.OperationalError(connection.get_error_message()) from None
    lost = connection.status == pq.ConnStatus.BAD
    if lost and result.status == pq.ExecStatus.FATAL_ERROR and not result.error_field(pq.DiagnosticField.SQLSTATE):
        raise errors.OperationalError(result.get_error_message())
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
    """Commit what is open on ``connection``, for a dialect's ``do_commit``; raises what psycopg raises."""
    driver: Any = connection.driver_connection
    # Within a block of psycopg's own, nobody but that may end its transaction.
    if (
        not _is_free(driver)
        or driver._num_transactions
        or driver.pgconn.transaction_status != pq.TransactionStatus.INTRANS
    ):
        connection.commit()
        return
    with driver.lock:
        result = _ask(driver.pgconn, lambda: driver.pgconn.exec_(b"COMMIT"))
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise errors.error_from_result(result, encoding=driver.info.encoding)


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
    if result.status == pq.ExecStatus.COMMAND_OK:
        return True
    if connection.transaction_status == pq.TransactionStatus.INERROR:
        connection.exec_(b"ROLLBACK")
    return False
