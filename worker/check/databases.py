"""All that is checked in Postgres: each credential by itself, then the database that they lead to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from worker.check.clock import check_clock
from worker.check.connections import check_connections, needed
from worker.check.findings import Finding, error
from worker.check.guard import Guard, Task
from worker.check.history import check_history
from worker.check.migrations import check_migrations
from worker.check.outbox import check_outbox
from worker.check.postgres import (
    TIMEOUT,
    address,
    check_same_database,
    check_server,
    credentials,
    engine,
    rows,
)
from worker.check.procfile import Entry
from worker.check.rights import check_rights
from worker.check.roles import judge_role, read_role
from worker.check.row_level_security import check_row_level_security
from worker.settings import Settings


class Databases:
    """The credentials of ``settings``, and the connections that are opened with them."""

    def __init__(self, settings: Settings, guard: Guard) -> None:
        self._settings = settings
        self._guard = guard
        #: By the variables that name them; only those whose server answered all that it was asked.
        self._connections: dict[str, Connection] = {}

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            # What is wrong with one was said already.
            with suppress(SQLAlchemyError):
                connection.close()

    def credential_tasks(self) -> Iterator[Task]:
        """Give a task for each distinct credential."""
        for url, variables in credentials(self._settings).items():
            yield self._credential_task(url, variables)

    def _credential_task(self, url: str, variables: list[str]) -> Task:
        named = f"{', '.join(variables)} ({address(url)})"
        advice = f"See that the server runs, and that {variables[0]} is right: its host, port, user and password."

        def check() -> list[Finding]:
            opened = list[Connection]()

            def reach() -> Iterator[Finding]:
                opened.append(engine(url).connect())
                yield from check_server(opened[0], named)

            findings = self._guard.run("postgres.reachable", reach, about=named, advice=advice)
            if opened:
                findings += self._check_user(opened[0], variables)
                self._connections[", ".join(variables)] = opened[0]
            return findings

        late = error("postgres.reachable", f"{named}: no answer within {2 * TIMEOUT} seconds", advice)
        return Task(check, 2 * TIMEOUT, late)

    def _check_user(self, connection: Connection, variables: list[str]) -> list[Finding]:
        run = self._guard.run
        other = self._settings.operator_database_url not in {None, self._settings.database_url}
        findings = run("postgres.role", lambda: judge_role(read_role(connection), variables, other_operator=other))
        # Where one credential has several uses, it must do for the workers.
        if variables[0] != "MIGRATION_DATABASE_URL":
            findings += run("postgres.rights", lambda: check_rights(connection, variables[0]))
        if variables[0] == "DATABASE_URL":
            findings += run("clock", lambda: check_clock("Postgres", lambda: _time(connection)))
        return findings

    def shared_task(self, entries: Collection[Entry], *, consoles: int = 0) -> Iterator[Task]:
        """Give a task for the database itself, if a server answered; after :meth:`credential_tasks`.

        Arguments:
          entries: Of the Procfile, that run dramatiq.
          consoles: How many of its entries are the console.
        """
        connections = dict(self._connections)
        if not connections:
            return
        first = next(iter(connections.values()))

        def check() -> list[Finding]:
            run = self._guard.run
            findings = run("postgres.same-database", lambda: check_same_database(connections))
            # The owner's first, who may read the revision for sure.
            findings += run("postgres.migrations", lambda: check_migrations([*reversed(connections.values())]))
            findings += run("postgres.row-level-security", lambda: check_row_level_security(first))
            findings += run("postgres.history", lambda: check_history(first))
            findings += run("postgres.outbox", lambda: check_outbox(connections))
            if entries:
                urls = len({self._settings.database_url, self._settings.operator_url})
                findings += run(
                    "postgres.connections",
                    lambda: check_connections(first, needed(entries, self._settings, urls, consoles=consoles)),
                )
            return findings

        late = error(
            "postgres.reachable",
            f"Postgres answered at first, and then no more within {2 * TIMEOUT} seconds",
            "See what it is busy with: SELECT * FROM pg_stat_activity WHERE state <> 'idle'",
        )
        yield Task(check, 2 * TIMEOUT, late)


def _time(connection: Connection) -> float:
    ((seconds,),) = rows(connection, "SELECT extract(epoch FROM clock_timestamp())::float8")
    return float(seconds)
