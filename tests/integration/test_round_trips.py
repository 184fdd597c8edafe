"""``db.round_trips``: what is said in one call has the same outcome as what psycopg says step by step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import Cursor
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db import round_trips, session
from db.round_trips import RoundTripCursor
from db.session import transaction
from db.tenancy import tenant_context
from tests.servers import Cluster, Database

Run = Callable[[Session], object]


@pytest.fixture(scope="module")
def configured(cluster: Cluster, template: Database) -> Iterator[Database]:
    with cluster.database(template.name) as database:
        session.configure(database.worker_url, operator_database_url=database.operator_url, pool_size=1, max_overflow=0)
        yield database
        session.dispose()


@pytest.fixture(params=["in one call", "step by step"])
def in_one_call(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    one = bool(request.param == "in one call")
    monkeypatch.setattr(round_trips, "_main_thread", None if one else threading.get_ident())
    return one


def outcome(run: Run) -> tuple[type[BaseException] | None, str | None, bool]:
    """What came of a transaction: psycopg's error, its SQLSTATE, and whether its connection is lost."""
    with tenant_context(uuid4()):
        try:
            with transaction() as s:
                run(s)
        except DBAPIError as e:
            assert e.orig is not None  # noqa: PT017 - what it is, is for whoever asks
            return type(e.orig), getattr(e.orig, "sqlstate", None), e.connection_invalidated
    return None, None, False


def values(s: Session) -> list[Any]:
    found = s.execute(
        text("SELECT CAST(:a AS int), CAST(:b AS text), CAST(:c AS uuid[]), CAST(:d AS bytea), CAST(:e AS int)"),
        {"a": 1, "b": "ü", "c": [uuid4()], "d": b"\x00\xff", "e": None},
    )
    return [type(value) for value in found.one()]


def terminate(s: Session, url: str) -> None:
    with psycopg.connect(url, autocommit=True) as admin:
        pid = s.execute(text("SELECT pg_backend_pid() WHERE :yes"), {"yes": True}).scalar_one()
        assert admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone() == (True,)


def end(s: Session, url: str) -> None:
    """End the connection while a statement runs."""
    with psycopg.connect(url, autocommit=True) as admin:
        pid = s.execute(text("SELECT pg_backend_pid() WHERE :yes"), {"yes": True}).scalar_one()
        killer = threading.Thread(target=kill_what_sleeps, args=(admin, pid))
        killer.start()
        try:
            s.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": 30})
        finally:
            killer.join()


def kill_what_sleeps(admin: psycopg.Connection[Any], pid: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND query LIKE '%%pg_sleep%%'"
            " AND state = 'active'",
            [pid],
        ).fetchall()
        if found:
            return


def deferred(s: Session) -> None:
    """Something that only COMMIT finds out to be wrong."""
    s.execute(text("CREATE TEMPORARY TABLE two (id int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"))
    s.execute(text("INSERT INTO two VALUES (:id), (:id)"), {"id": 1})


class TestOutcomes:
    def test_values(self, configured: Database, in_one_call: bool) -> None:
        with tenant_context(uuid4()), transaction() as s:
            assert values(s) == [int, str, list, bytes, type(None)]

    def test_what_a_statement_does_wrong(self, configured: Database, in_one_call: bool) -> None:
        def divide(s: Session) -> None:
            s.execute(text("SELECT 1 / CAST(:by AS int)"), {"by": 0})

        assert outcome(divide) == (psycopg.errors.DivisionByZero, "22012", False)

    def test_what_commit_finds(self, configured: Database, in_one_call: bool) -> None:
        assert outcome(deferred) == (psycopg.errors.UniqueViolation, "23505", False)
        with tenant_context(uuid4()), transaction() as s:
            assert s.execute(text("SELECT to_regclass('two')")).scalar_one() is None

    def test_a_server_process_that_is_killed_meanwhile(self, configured: Database, in_one_call: bool) -> None:
        with tenant_context(uuid4()), pytest.raises(DBAPIError) as raised, transaction() as s:
            end(s, configured.admin_url)
        assert raised.value.connection_invalidated
        assert isinstance(raised.value.orig, psycopg.OperationalError)
        # Why, in either case, though libpq forgets the SQLSTATE of it.
        assert "terminating connection due to administrator command" in str(raised.value)
        assert outcome(values) == (None, None, False)

    def test_one_that_is_killed_before_a_statement(self, configured: Database, in_one_call: bool) -> None:
        def die(s: Session) -> None:
            terminate(s, configured.admin_url)
            values(s)

        kind, _, lost = outcome(die)
        assert kind is not None
        assert issubclass(kind, psycopg.OperationalError)
        assert lost
        assert outcome(values) == (None, None, False)

    def test_one_that_is_killed_before_commit(self, configured: Database, in_one_call: bool) -> None:
        kind, _, lost = outcome(lambda s: terminate(s, configured.admin_url))
        assert kind is not None
        assert issubclass(kind, psycopg.OperationalError)
        assert lost
        assert outcome(values) == (None, None, False)

    def test_a_connection_that_was_closed_under_it(self, configured: Database, in_one_call: bool) -> None:
        def close(s: Session) -> None:
            driver: Any = s.connection().connection.driver_connection
            driver.pgconn.finish()
            values(s)

        kind, _, lost = outcome(close)
        assert kind is not None
        assert issubclass(kind, psycopg.OperationalError)
        assert lost
        assert outcome(values) == (None, None, False)

    def test_an_answer_of_several_statements(self, configured: Database, in_one_call: bool) -> None:
        with tenant_context(uuid4()), transaction() as s:
            driver: Any = s.connection().connection.driver_connection
            cursor = driver.execute("SELECT 1; SELECT 2")
            assert cursor.fetchone() == (1,)
            assert cursor.nextset()
            assert cursor.fetchone() == (2,)

    def test_what_psycopg_does_otherwise_still_works(self, configured: Database, in_one_call: bool) -> None:
        with tenant_context(uuid4()), transaction() as s:
            driver: Any = s.connection().connection.driver_connection
            with driver.pipeline():
                assert driver.execute("SELECT %s::int", [1]).fetchone() == (1,)
            assert driver.execute("SELECT %b::int", [7], binary=True).fetchone() == (7,)
            with driver.transaction():
                assert driver.execute("SELECT %s::int", [2], prepare=True).fetchone() == (2,)
            driver.execute("CREATE TEMPORARY TABLE copied (id int) ON COMMIT DROP")
            cursor = driver.cursor()
            with cursor.copy("COPY copied FROM STDIN") as copy:
                copy.write_row([3])
            cursor.executemany("INSERT INTO copied VALUES (%s)", [(4,), (5,)])
            assert cursor.rowcount == 2
            assert list(cursor.stream("SELECT id FROM copied WHERE id > %s ORDER BY id", [3])) == [(4,), (5,)]


def test_what_is_psycopgs_own_is_as_this_expects() -> None:
    # Private there. Where an upgrade moves it, statements are no longer said in one call, or fail.
    for name in ("_maybe_prepare_gen", "_check_results", "_set_results", "_convert_query"):
        assert callable(getattr(Cursor, name))
    assert "_maybe_prepare_gen" in vars(RoundTripCursor)


def test_threads_say_it_in_one_call(configured: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    ask = round_trips._ask

    def spy(*arguments: Any) -> Any:
        asked.append(threading.current_thread() is threading.main_thread())
        return ask(*arguments)

    monkeypatch.setattr(round_trips, "_ask", spy)
    job = threading.Thread(target=outcome, args=(values,))
    job.start()
    job.join()
    # BEGIN, the statement, COMMIT. The main thread stays free for signals.
    assert asked == [False] * 3
    assert outcome(values)[0] is None
    assert asked == [False] * 3
