"""Keeps work that one process at a time should do to one process, through Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from db.session import operator_transaction


@contextmanager
def alone(name: str) -> Iterator[bool]:
    """Tell whether no other process does what ``name`` says, and keep all others from it as long as the block lasts.

    What is sent in the block leaves at its end, as from any transaction.
    It never waits: who comes second is told so. It ends with the process, whatever that dies of, and with the
    connection, so what is done must bear that another begins it meanwhile.

    Raises:
      sqlalchemy.exc.OperationalError: When Postgres is away, at the end of the block, too.
    """
    with operator_transaction() as session:
        # The transaction holds it, not the session, which PgBouncer may give to somebody else. It is open for as long
        # as the work lasts and reads nothing more, so it has no snapshot and keeps no dead row from vacuum.
        session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        taken = session.execute(
            text("SELECT pg_try_advisory_xact_lock(hashtextextended('dramaturg alone ' || CAST(:name AS text), 0))"),
            {"name": name},
        ).scalar_one()
        yield bool(taken)
