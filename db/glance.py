"""Asks Postgres whether there is anything to do without SQLAlchemy, which is half of what an idle worker has in memory.

It is not sure of more than that there is nothing: whoever hears otherwise looks as always, with :mod:`db.session`. So
it is closed once that is imported, and where anything is in its way.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from db import configuration
from db.loaded import is_loaded

if TYPE_CHECKING:
    import psycopg

#: Milliseconds that an answer may take, where Postgres is there to heed it.
ANSWER_WITHIN: Final = 5_000
#: Seconds for which one who asks, or closes, waits for another who asks.
WAIT_FOR_OTHERS: Final = 0.5

_lock = threading.Lock()
_connection: psycopg.Connection[Any] | None = None


def may_be_there(what: str) -> bool:
    """Tell whether there may be rows, as an operator; False only where it is sure that there are none.

    Arguments:
      what: A query of ours, without parameters.
    """
    with _alone() as is_alone:
        if not is_alone:
            return True
        if not is_loaded():
            try:
                return _ask(what)
            except Exception:  # noqa: BLE001 - whatever it is, whoever looks next finds it, too, and has words for it
                _close()
                return True
        _close()
        return True


@contextmanager
def _alone() -> Iterator[bool]:
    """Keep others out, and tell whether that is so: who asks may wait for ever, where Postgres is frozen."""
    if not _lock.acquire(timeout=WAIT_FOR_OTHERS):
        yield False
        return
    try:
        yield True
    finally:
        _lock.release()


def _ask(what: str) -> bool:
    global _connection
    import psycopg

    if _connection is None:
        config = configuration.current()
        _connection = psycopg.connect(
            configuration.libpq_url(config.operator_database_url),
            autocommit=True,
            **configuration.connect_arguments(config),
        )
    # In one string, as db.session begins a transaction, and for one round trip.
    cursor = _connection.execute(
        "BEGIN; SET LOCAL app.execution_context = 'operator'; SET LOCAL app.current_tenant_id = ''; "
        f"SET LOCAL statement_timeout = {ANSWER_WITHIN}; SELECT EXISTS ({what}); COMMIT",
        prepare=False,
    )
    while cursor.description is None:
        if not cursor.nextset():
            raise ValueError("no answer")
    (found,) = cursor.fetchone() or (True,)
    return bool(found)


def _close() -> None:
    global _connection
    if _connection is not None:
        connection, _connection = _connection, None
        connection.close()


def close() -> None:
    """Close its connection, if it has one, and leave it to the end of the process where an answer does not come."""
    with _alone() as is_alone:
        if is_alone:
            _close()
