"""Statements are prepared for who asks for it, and a table that is altered costs one failure then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db import session
from db.session import transaction
from db.tenancy import tenant_context
from tests.servers import Database

TENANT = UUID(int=0xA)
PREPARED = text("SELECT count(*) FROM pg_prepared_statements")


@pytest.fixture
def configured(database: Database) -> Iterator[Database]:
    session.configure(database.worker_url, pool_size=2, max_overflow=0, prepare_threshold=5)
    with tenant_context(TENANT):
        yield database
    session.dispose()


def prepared_after(times: int) -> int:
    for n in range(times):
        with transaction() as s:
            assert s.execute(text("SELECT :n + 1"), {"n": n}).scalar_one() == n + 1
    with transaction() as s:
        return int(s.execute(PREPARED).scalar_one())


def test_a_statement_is_prepared_once_it_was_executed_some_times(configured: Database) -> None:
    assert prepared_after(5) == 0
    assert prepared_after(3) == 1


def test_never_unless_that_is_asked_for(database: Database) -> None:
    # Another tenant would get a plan that was made for this one.
    session.configure(database.worker_url, pool_size=1, max_overflow=0)
    with tenant_context(TENANT):
        assert prepared_after(20) == 0
    session.dispose()


def test_in_coroutines_too(configured: Database) -> None:
    async def work() -> int:
        for n in range(8):
            async with transaction() as s:
                assert (await s.execute(text("SELECT :n + 1"), {"n": n})).scalar_one() == n + 1
        async with transaction() as s:
            count = int((await s.execute(PREPARED)).scalar_one())
        await session.dispose_async()
        return count

    assert asyncio.run(work()) == 1


def test_an_altered_table_fails_one_transaction_and_not_one_for_each_connection(configured: Database) -> None:
    every = text("SELECT * FROM altered")
    with psycopg.connect(configured.admin_url, autocommit=True) as admin:
        admin.execute("CREATE TABLE altered (one int)")
        admin.execute("GRANT SELECT ON altered TO PUBLIC")
        for _ in range(8):
            # On each of two connections.
            with transaction() as one, transaction() as two:
                one.execute(every)
                two.execute(every)
        admin.execute("ALTER TABLE altered ADD COLUMN two int")
        with pytest.raises(DBAPIError, match="cached plan"), transaction() as one:
            one.execute(every)
        for _ in range(2):
            with transaction() as one, transaction() as two:
                assert list(one.execute(every).keys()) == ["one", "two"]
                assert list(two.execute(every).keys()) == ["one", "two"]


def test_a_connection_that_was_left_in_a_failed_transaction_begins_anew(configured: Database) -> None:
    with transaction() as s:
        connection = s.connection().connection.driver_connection
    assert connection is not None
    connection.pgconn.exec_(b"BEGIN; SELECT 1/0")
    for _ in range(2):
        with transaction() as s:
            assert s.execute(text("SELECT 1")).scalar_one() == 1
