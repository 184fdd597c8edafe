"""Whether what is sent inside transactions reaches Redis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError

from db import outbox
from db.errors import ConfigurationError
from middleware.relay import LATE
from worker.check.findings import Finding, error, ok
from worker.check.postgres import reading

NAME = "postgres.outbox"


def check_outbox(connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Check that nothing waits for long in the outbox.

    Arguments:
      connections: By the variables that name them.
    """
    # Whoever works for all tenants.
    connection = next(
        (one for named, one in connections.items() if "OPERATOR_DATABASE_URL" in named),
        next(iter(connections.values())),
    )
    try:
        with reading(connection):
            connection.execute(text("SET LOCAL app.execution_context = 'operator'"))
            sees_all = outbox.sees_all(connection)
            waiting = outbox.by_queue(connection)
    except (ConfigurationError, ProgrammingError):
        # The migrations are not as far; that is said where they are checked.
        return
    count, oldest = sum(one.count for one in waiting), max((one.oldest for one in waiting), default=0.0)
    if oldest > LATE:
        queues = ", ".join(one.queue for one in waiting)
        yield error(
            NAME,
            f"{count:,} messages wait in the outbox, the oldest for {oldest:,.0f} seconds, for queues {queues}",
            "See that a worker runs, and what its log says of the outbox.",
        )
    elif sees_all:
        # Whoever does not is told so where roles are checked.
        yield ok(NAME, f"{count:,} messages wait in the outbox")
