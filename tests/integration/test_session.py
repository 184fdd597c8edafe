"""``db.session``: what Postgres knows inside a transaction, what it costs, and how it ends."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from db import session
from db.deadline import set_deadline
from db.errors import ConfigurationError, InvalidTenant, TenantRequired
from db.models import FailedJob
from db.open_transaction import forget, innermost
from db.session import Scope, begin_statement, operator_transaction, transaction
from db.statement_watchdog import StatementWatchdog
from db.tenancy import current_tenancy, tenant_context
from tests.servers import Cluster, Database
from tests.waiting import Edge, eventually
from tests.wire import Wire

QUERY_CANCELED = "57014"
LOCK_NOT_AVAILABLE = "55P03"

SETTINGS = text(
    "SELECT current_setting('app.current_tenant_id', true), current_setting('app.correlation_id', true),"
    " current_setting('app.execution_context', true), pg_backend_pid()"
)


def nothing(settings: tuple[Any, ...]) -> bool:
    """Tell whether the settings are those of a bare connection: each NULL until first set in a transaction, then ''."""
    return not any(settings[:3])


@pytest.fixture(autouse=True)
def _no_deadline() -> Iterator[None]:
    set_deadline(None)
    yield
    set_deadline(None)


@pytest.fixture(autouse=True)
def _as_in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread, in which tests run, is not told from those that run jobs."""
    monkeypatch.setattr("db.round_trips._main_thread", None)


@pytest.fixture(scope="module")
def clone(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A migrated database for all tests of this module; a new one for each would cost most of their time."""
    with cluster.database(template.name) as database:
        yield database


@pytest.fixture
def database(clone: Database) -> Iterator[Database]:
    """A migrated database without a row, with ``db.session`` configured on it as a deployment would."""
    with psycopg.connect(clone.admin_url, autocommit=True) as admin:
        admin.execute("TRUNCATE worker_failed_jobs CASCADE")
    session.configure(clone.worker_url, operator_database_url=clone.operator_url)
    try:
        yield clone
    finally:
        session.dispose()


@pytest.fixture
def one_connection(database: Database) -> Database:
    """The database, through pools of one connection: whoever comes next gets what the last one left."""
    configure(database)
    return database


def configure(database: Database, **more: Any) -> None:
    session.configure(
        database.worker_url,
        operator_database_url=database.operator_url,
        **{"pool_size": 1, "max_overflow": 0, "pool_timeout": 10, **more},
    )


def failed_job(tenant_id: UUID | None, **more: Any) -> FailedJob:
    values = {
        "id": uuid4(),
        "task_id": str(uuid4()),
        "task_name": "worker.llm.summarise",
        "tenant_id": tenant_id,
        "error_type": "unknown",
        "exception_class": "ValueError",
        "error_message": "no",
    }
    return FailedJob(**{**values, **more})


def names() -> list[str]:
    """The task names that the current binding can see."""
    with transaction() as s:
        return list(s.scalars(select(FailedJob.task_name).order_by(FailedJob.task_name)))


def undone(work: Callable[[Session], object]) -> Session:
    """Do ``work`` in a transaction that ends with an error; return what was its session."""

    def fail(s: Session) -> None:
        work(s)
        s.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), transaction() as s:
        fail(s)
    return s


def backend_pid() -> int:
    with transaction() as s:
        return int(s.scalar(text("SELECT pg_backend_pid()")) or 0)


def bare(s: Session) -> tuple[Any, ...]:
    """The settings and the backend of a pooled connection, outside of any transaction of ours."""
    engine: Any = s.get_bind()
    connection = engine.raw_connection()
    try:
        row = connection.driver_connection.execute(SETTINGS.text).fetchone()
    finally:
        connection.close()
    assert isinstance(row, tuple)
    return row


async def bare_async(engine: AsyncEngine) -> tuple[Any, ...]:
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        row = await (await driver.execute(SETTINGS.text)).fetchone()
    assert isinstance(row, tuple)
    return row


def engine_of(s: AsyncSession) -> AsyncEngine:
    assert isinstance(s.bind, AsyncEngine)
    return s.bind


def sqlstate(error: DBAPIError) -> str | None:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig.sqlstate


def running(database: Database, what: str) -> list[Any]:
    """The backends that run a statement like ``what``."""
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute(
            "SELECT pid, query FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
            " AND datname = current_database() AND query LIKE %s",
            [f"%{what}%"],
        ).fetchall()


def terminate(database: Database, pids: set[int]) -> None:
    """Kill backends and wait until they are gone."""
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        for pid in pids:
            # With a timeout it waits for the backend to be gone.
            killed = admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid]).fetchone()
            assert killed == (True,)


# --- What Postgres knows --------------------------------------------------------------------------


def test_postgres_knows_the_tenant_inside_and_nothing_afterwards(one_connection: Database) -> None:
    tenant, correlation = uuid4(), uuid4()
    with tenant_context(tenant, correlation):
        with transaction() as s:
            inside = tuple(s.execute(SETTINGS).one())
        after = bare(s)
    assert inside[:3] == (str(tenant), str(correlation), "worker")
    assert nothing(after)
    assert after[3] == inside[3], "not the same connection, so nothing was shown"


def test_postgres_knows_the_tenant_inside_and_nothing_afterwards_async(one_connection: Database) -> None:
    tenant, correlation = uuid4(), uuid4()

    async def run() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        with tenant_context(tenant, correlation):
            async with transaction() as s:
                assert isinstance(s, AsyncSession)
                inside = tuple((await s.execute(SETTINGS)).one())
        after = await bare_async(engine_of(s))
        await engine_of(s).dispose()
        return inside, after

    inside, after = asyncio.run(run())
    assert inside[:3] == (str(tenant), str(correlation), "worker")
    assert nothing(after)
    assert after[3] == inside[3], "not the same connection, so nothing was shown"


def test_nothing_is_left_after_a_rollback_either(one_connection: Database) -> None:
    with tenant_context(uuid4(), uuid4()):
        s = undone(lambda s: s.execute(SETTINGS))
    assert nothing(bare(s))


def test_nothing_is_left_after_a_statement_failed(one_connection: Database) -> None:
    with tenant_context(uuid4(), uuid4()), pytest.raises(DBAPIError), transaction() as s:
        s.execute(text("SELECT 1/0"))
    assert nothing(bare(s))


def test_a_commit_in_the_middle_keeps_the_binding(one_connection: Database) -> None:
    tenant = uuid4()
    with tenant_context(tenant), transaction() as s:
        s.add(failed_job(tenant))
        s.commit()
        assert s.execute(SETTINGS).one()[0] == str(tenant)
        assert s.scalar(text("SELECT count(*) FROM worker_failed_jobs")) == 1


def test_a_savepoint_keeps_the_binding(one_connection: Database) -> None:
    tenant = uuid4()
    with tenant_context(tenant), transaction() as s:
        s.add(failed_job(tenant, task_name="kept"))
        savepoint = s.begin_nested()
        s.add(failed_job(tenant, task_name="undone"))
        s.flush()
        savepoint.rollback()
        assert s.execute(SETTINGS).one()[0] == str(tenant)
    with tenant_context(tenant):
        assert names() == ["kept"]


@pytest.mark.parametrize("prepare_threshold", [0, -1])
def test_preparing_at_first_sight_is_refused(prepare_threshold: int) -> None:
    with pytest.raises(ValueError, match=f"prepare_threshold must be None or at least 1, not {prepare_threshold}"):
        session.configure("postgres://h/x", prepare_threshold=prepare_threshold)


@pytest.mark.parametrize("prepare_threshold", [1, 5])
def test_prepared_statements_do_not_remember_a_tenant(database: Database, prepare_threshold: int) -> None:
    configure(database, prepare_threshold=prepare_threshold)
    tenants = [uuid4(), uuid4()]
    for tenant in tenants:
        with tenant_context(tenant), transaction() as s:
            s.add(failed_job(tenant, task_name=str(tenant)))
    # Postgres may take a generic plan from the sixth execution on.
    for _ in range(8):
        for tenant in tenants:
            with tenant_context(tenant):
                assert names() == [str(tenant)]


def test_what_listens_to_the_engine_hears_of_each_statement(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    def instrumented(*args: Any, **options: Any) -> Engine:
        # As OpenTelemetry's instrumentation does.
        engine = create_engine(*args, **options)
        event.listen(engine, "before_cursor_execute", lambda *of: heard.append(of[2]))
        return engine

    monkeypatch.setattr(session, "create_engine", instrumented)
    configure(database)
    with tenant_context(uuid4()), transaction() as s:
        s.execute(text("SELECT 'a tenant'"))
    with operator_transaction() as s:
        s.execute(text("SELECT 'an operator'"))
    assert "SELECT 'a tenant'" in heard
    assert "SELECT 'an operator'" in heard


def test_commits(one_connection: Database) -> None:
    tenant = uuid4()
    with tenant_context(tenant):
        with transaction() as s:
            s.add(failed_job(tenant, task_name="kept"))
        assert names() == ["kept"]


def test_rolls_back_when_the_block_raises(one_connection: Database) -> None:
    tenant = uuid4()
    with tenant_context(tenant):
        undone(lambda s: s.add(failed_job(tenant)))
        assert names() == []


def test_commits_and_rolls_back_async(one_connection: Database) -> None:
    tenant = uuid4()

    async def undone() -> None:
        async with transaction() as s:
            s.add(failed_job(tenant, task_name="undone"))
            await s.flush()
            raise ZeroDivisionError

    async def run() -> None:
        with tenant_context(tenant):
            async with transaction() as s:
                s.add(failed_job(tenant, task_name="kept"))
            with pytest.raises(ZeroDivisionError):
                await undone()
        await engine_of(s).dispose()

    asyncio.run(run())
    with tenant_context(tenant):
        assert names() == ["kept"]


def test_a_cancelled_task_gives_its_connection_back_clean(one_connection: Database) -> None:
    async def sleep(started: asyncio.Event) -> None:
        with tenant_context(uuid4()):
            async with transaction() as s:
                started.set()
                await s.execute(text("SELECT pg_sleep(30)"))

    async def run() -> tuple[Any, ...]:
        started = asyncio.Event()
        task = asyncio.create_task(sleep(started))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The pool has one connection: were it not back, this would wait for it in vain.
        with tenant_context(None):
            async with transaction() as s:
                await s.execute(SETTINGS)
        after = await bare_async(engine_of(s))
        await engine_of(s).dispose()
        return after

    assert nothing(asyncio.run(run()))
    eventually(lambda: not running(one_connection, "pg_sleep(30)"))


def test_objects_can_be_read_after_the_transaction(one_connection: Database) -> None:
    tenant = uuid4()
    with tenant_context(tenant), transaction() as s:
        job = failed_job(tenant, task_name="kept")
        s.add(job)
    # Expired, this would need a transaction and raise.
    assert job.task_name == "kept"


# --- Who may open one -----------------------------------------------------------------------------


def test_needs_a_tenant(one_connection: Database) -> None:
    assert current_tenancy() is None
    with pytest.raises(TenantRequired, match="tenant_context"), transaction():
        pass

    async def run() -> None:
        async with transaction():
            pass

    with pytest.raises(TenantRequired, match="tenant_context"):
        asyncio.run(run())


def test_no_tenant_sees_rows_without_one_only(one_connection: Database) -> None:
    tenant = uuid4()
    for owner in (tenant, None):
        with tenant_context(owner), transaction() as s:
            s.add(failed_job(owner, task_name=f"of {owner}"))
    with tenant_context(None):
        assert names() == ["of None"]
    # A tenant, in turn, does not see the rows of nobody, and afterwards nobody still sees its own alone.
    with tenant_context(tenant):
        assert names() == [f"of {tenant}"]
    with tenant_context(None):
        assert names() == ["of None"]


@pytest.mark.parametrize("next_tenant", [None, uuid4()], ids=["nobody", "another"])
def test_what_a_job_set_for_its_session_does_not_reach_the_next(
    one_connection: Database, next_tenant: UUID | None
) -> None:
    """SET without LOCAL outlives the transaction, and older code may well do it."""
    tenant = uuid4()
    with tenant_context(tenant), transaction() as s:
        s.add(failed_job(tenant))
        s.execute(text(f"SET app.current_tenant_id = '{tenant}'"))
        s.execute(text(f"SET app.correlation_id = '{uuid4()}'"))
    with tenant_context(next_tenant), transaction() as s:
        settings = s.execute(SETTINGS).one()
        assert s.scalar(text("SELECT count(*) FROM worker_failed_jobs")) == 0
    assert tuple(settings[:2]) in {(str(next_tenant or ""), ""), (str(next_tenant or ""), None)}


def test_the_operator_sees_all_tenants(one_connection: Database) -> None:
    tenants = [uuid4(), uuid4(), None]
    for tenant in tenants:
        with tenant_context(tenant), transaction() as s:
            s.add(failed_job(tenant))
    with operator_transaction() as s:
        seen = set(s.scalars(select(FailedJob.tenant_id)))
        settings = s.execute(SETTINGS).one()
    assert seen == set(tenants)
    assert settings[2] == "operator"
    # Also from within a tenant's work, which does not restrict it, and under whose correlation id it runs.
    correlation = uuid4()
    with tenant_context(tenants[0], correlation), operator_transaction() as s:
        assert set(s.scalars(select(FailedJob.tenant_id))) == set(tenants)
        settings = s.execute(SETTINGS).one()
    assert settings[0] in ("", None)
    assert settings[1:3] == (str(correlation), "operator")


def test_the_operator_sees_all_tenants_async(one_connection: Database) -> None:
    tenants = [uuid4(), uuid4()]
    for tenant in tenants:
        with tenant_context(tenant), transaction() as s:
            s.add(failed_job(tenant))

    async def run() -> set[UUID | None]:
        async with operator_transaction() as s:
            seen = set(await s.scalars(select(FailedJob.tenant_id)))
            assert (await s.execute(SETTINGS)).one()[2] == "operator"
        await engine_of(s).dispose()
        return seen

    assert asyncio.run(run()) == set(tenants)


def test_one_credential_for_both_does_not_mix_them(database: Database) -> None:
    session.configure(database.worker_url, pool_size=1, max_overflow=0)
    with tenant_context(uuid4()):
        with operator_transaction() as s:
            assert s.execute(SETTINGS).one()[2] == "operator"
        with transaction() as s:
            assert s.execute(SETTINGS).one()[2] == "worker"


def test_is_for_one_use_at_a_time(one_connection: Database) -> None:
    with tenant_context(uuid4()):
        opened = transaction()
        with opened, pytest.raises(RuntimeError, match="already open"):
            opened.__enter__()
        # The refusal closed nothing and lost nothing: the only connection is back.
        assert backend_pid()


def test_needs_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session._state, "config", None)
    with (
        tenant_context(uuid4()),
        pytest.raises(ConfigurationError, match=r"db\.session is not configured"),
        transaction(),
    ):
        pass


@pytest.mark.parametrize("url", ["mysql://u:geheim@h/d", "geheim", "postgresql://u:geheim@h:port/d", ""])
def test_a_url_that_is_none_of_ours_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        session.configure(url)
    assert "geheim" not in str(caught.value)


# --- What it costs --------------------------------------------------------------------------------


@pytest.fixture
def wire(database: Database) -> Iterator[Wire]:
    """A wire to the database on which ``db.session`` has its only connection."""
    with Wire(database.worker_url) as wire:
        session.configure(wire.url, pool_size=1, max_overflow=0)
        try:
            yield wire
        finally:
            session.dispose()


def turns(wire: Wire, work: Callable[[], object]) -> int:
    before = wire.turns
    work()
    return wire.turns - before


def tenants_select() -> None:
    with tenant_context(uuid4(), uuid4()), transaction() as s:
        s.execute(text("SELECT :n + 1"), {"n": 1})


def bare_select(connection: psycopg.Connection[Any]) -> None:
    with connection.transaction():
        connection.execute("SELECT %s + 1", [1])


def test_a_tenant_costs_no_round_trip(wire: Wire) -> None:
    with psycopg.connect(wire.url, prepare_threshold=None) as connection:
        bare_trips = turns(wire, lambda: bare_select(connection))
    tenants_select()  # connects
    assert bare_trips == 3
    assert turns(wire, tenants_select) == bare_trips


def test_nor_does_a_deadline(wire: Wire) -> None:
    tenants_select()
    set_deadline(60)
    assert turns(wire, tenants_select) == 3


def test_nor_does_a_rollback(wire: Wire) -> None:
    def roll_back() -> None:
        with tenant_context(uuid4()):
            undone(lambda s: s.execute(text("SELECT 1")))

    roll_back()
    assert turns(wire, roll_back) == 3


def test_nor_does_asyncio(wire: Wire) -> None:
    async def run() -> int:
        async def work() -> AsyncSession:
            with tenant_context(uuid4(), uuid4()):
                async with transaction() as s:
                    await s.execute(text("SELECT :n + 1"), {"n": 1})
            return s

        s = await work()
        before = wire.turns
        await work()
        trips = wire.turns - before
        await engine_of(s).dispose()
        return trips

    assert asyncio.run(run()) == 3


# --- When time is up ------------------------------------------------------------------------------


@pytest.fixture
def no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave it to Postgres alone, which has the deadline as ``statement_timeout``."""
    monkeypatch.setattr(session._watchdog, "watch", lambda *_: None)


def test_postgres_ends_a_statement_at_the_deadline(one_connection: Database, no_watchdog: None) -> None:
    set_deadline(0.5)
    began = time.monotonic()
    with tenant_context(uuid4()), pytest.raises(OperationalError) as caught, transaction() as s:
        s.execute(text("SELECT pg_sleep(30)"))
    assert sqlstate(caught.value) == QUERY_CANCELED
    assert 0.4 < time.monotonic() - began < 5
    assert running(one_connection, "pg_sleep(30)") == []


def test_postgres_ends_a_statement_at_the_deadline_async(one_connection: Database, no_watchdog: None) -> None:
    async def run() -> float:
        set_deadline(0.5)
        began = time.monotonic()
        with pytest.raises(OperationalError) as caught, tenant_context(uuid4()):
            async with transaction() as s:
                await s.execute(text("SELECT pg_sleep(30)"))
        assert sqlstate(caught.value) == QUERY_CANCELED
        took = time.monotonic() - began
        await engine_of(s).dispose()
        return took

    assert 0.4 < asyncio.run(run()) < 5
    assert running(one_connection, "pg_sleep(30)") == []


def test_a_deadline_that_is_past_leaves_a_millisecond(one_connection: Database, no_watchdog: None) -> None:
    # 0 would mean "no limit".
    set_deadline(-5)
    with tenant_context(uuid4()), pytest.raises(OperationalError) as caught, transaction() as s:
        s.execute(text("SELECT pg_sleep(30)"))
    assert sqlstate(caught.value) == QUERY_CANCELED


def short_statements(s: Session) -> None:
    """Run for 12 seconds, in statements each of which is over long before any ``statement_timeout`` of these tests."""
    for _ in range(120):
        s.execute(text("SELECT pg_sleep(0.1)"))


def test_the_watchdog_ends_a_transaction_of_short_statements(one_connection: Database) -> None:
    set_deadline(0.5)
    began = time.monotonic()
    with tenant_context(uuid4()), pytest.raises(OperationalError) as caught, transaction() as s:
        short_statements(s)
    assert sqlstate(caught.value) == QUERY_CANCELED
    assert 0.4 < time.monotonic() - began < 5


def test_the_watchdog_ends_a_transaction_of_short_statements_async(one_connection: Database) -> None:
    engines: list[AsyncEngine] = []

    async def short_ones() -> None:
        with tenant_context(uuid4()):
            async with transaction() as s:
                engines.append(engine_of(s))
                for _ in range(120):
                    await s.execute(text("SELECT pg_sleep(0.1)"))

    async def run() -> float:
        set_deadline(0.5)
        began = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            await short_ones()
        assert sqlstate(caught.value) == QUERY_CANCELED
        took = time.monotonic() - began
        await engines[0].dispose()
        return took

    assert 0.4 < asyncio.run(run()) < 5


def test_the_watchdog_comes_again_for_code_that_goes_on(one_connection: Database) -> None:
    set_deadline(0.3)
    began = time.monotonic()
    caught = 0
    with tenant_context(uuid4()), transaction() as s:
        while caught < 2 and time.monotonic() - began < 10:
            try:
                # Each savepoint is gone with its failure; the transaction and its deadline are not.
                with s.begin_nested():
                    short_statements(s)
            except OperationalError:
                caught += 1
    assert caught == 2
    assert time.monotonic() - began < 10


def test_the_watchdog_watches_every_connection_by_its_own_deadline(database: Database) -> None:
    configure(database, pool_size=4)

    def job(allowance: float) -> float:
        set_deadline(allowance)
        began = time.monotonic()
        with tenant_context(uuid4()), pytest.raises(OperationalError), transaction() as s:
            short_statements(s)
        return time.monotonic() - began

    allowances = [1.6, 0.4, 1.2, 0.8]
    with ThreadPoolExecutor(4) as threads:
        took = list(threads.map(job, allowances))
    for allowed, used in zip(allowances, took, strict=True):
        assert allowed - 0.1 < used < allowed + 4


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_transaction_that_ended_in_time_is_left_alone(one_connection: Database, ending: str) -> None:
    class Stop(Exception):
        pass

    set_deadline(0.3)
    with tenant_context(uuid4()):
        try:
            with transaction() as s:
                pid = s.scalar(text("SELECT pg_backend_pid()"))
                if ending == "rollback":
                    raise Stop
        except Stop:
            pass
        set_deadline(None)
        # On the same connection, across the deadline of the one before.
        with transaction() as s:
            assert s.scalar(text("SELECT pg_backend_pid() FROM pg_sleep(0.8)")) == pid


def test_whoever_comes_next_is_not_hit_by_the_cancellation_of_the_one_before(one_connection: Database) -> None:
    """Transactions that end at their very deadline, and at once another one on the same connection."""
    endings: list[str | None] = []
    edge = Edge()
    with tenant_context(uuid4()):
        while len(endings) < 60 or (set(endings) != {None, QUERY_CANCELED} and len(endings) < 2_000):
            set_deadline(edge.limit)
            try:
                with transaction() as s:
                    # statement_timeout is not what is tried here.
                    s.execute(text("SET LOCAL statement_timeout = 0"))
                    s.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": edge.duration})
            except OperationalError as e:
                endings.append(sqlstate(e))
                edge.too_long()
            else:
                endings.append(None)
                edge.too_short()
            set_deadline(None)
            with transaction() as s:
                s.execute(text("SELECT pg_sleep(0.01)"))
    # The edge was met, from both sides: otherwise nothing was tried.
    assert set(endings) == {None, QUERY_CANCELED}


class BusyConnection:
    """Stands for a connection whose cancellation takes as long as the test likes."""

    def __init__(self) -> None:
        self.cancelling = threading.Event()
        self.may_end = threading.Event()

    def cancel_safe(self, *, timeout: float) -> None:
        assert timeout > 0
        self.cancelling.set()
        assert self.may_end.wait(20)


def test_unwatching_waits_for_a_cancellation_that_is_under_way() -> None:
    watchdog = StatementWatchdog()
    connection: Any = BusyConnection()
    watchdog.watch(connection, time.monotonic())
    assert connection.cancelling.wait(20)
    leaving = threading.Thread(target=watchdog.unwatch, args=[connection])
    leaving.start()
    # Were it not to wait, it would be back at once.
    leaving.join(0.3)
    assert leaving.is_alive()
    connection.may_end.set()
    leaving.join(20)
    assert not leaving.is_alive()


def test_a_connection_unwatched_at_the_last_moment_is_not_cancelled() -> None:
    watchdog = StatementWatchdog()
    connections: list[Any] = [BusyConnection() for _ in range(2)]
    due = time.monotonic() + 0.1
    for connection in connections:
        watchdog.watch(connection, due)
    # Both are overdue by now, and the watchdog is held up with one of them.
    eventually(lambda: any(c.cancelling.is_set() for c in connections))
    busy, other = sorted(connections, key=lambda c: not c.cancelling.is_set())
    watchdog.unwatch(other)
    third: Any = BusyConnection()
    watchdog.watch(third, due)
    busy.may_end.set()
    # When it has come to the third it is past the other one.
    assert third.cancelling.wait(20)
    assert not other.cancelling.is_set()
    third.may_end.set()
    watchdog.unwatch(busy)
    watchdog.unwatch(third)


def test_a_lock_that_another_transaction_holds_is_not_waited_for_for_ever(database: Database) -> None:
    configure(database, lock_timeout_ms=200)
    tenant = uuid4()
    with tenant_context(tenant), transaction() as s:
        s.add(failed_job(tenant))
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("SELECT * FROM worker_failed_jobs FOR UPDATE")
        began = time.monotonic()
        with tenant_context(tenant), pytest.raises(OperationalError) as caught, transaction() as s:
            s.execute(text("UPDATE worker_failed_jobs SET error_message = 'changed'"))
        assert sqlstate(caught.value) == LOCK_NOT_AVAILABLE
        assert 0.15 < time.monotonic() - began < 5


def test_a_lock_is_not_waited_for_past_the_deadline(one_connection: Database) -> None:
    tenant = uuid4()
    with tenant_context(tenant), transaction() as s:
        s.add(failed_job(tenant))
        assert s.scalar(text("SHOW lock_timeout")) == "30s"
    with psycopg.connect(one_connection.admin_url) as admin:
        admin.execute("SELECT * FROM worker_failed_jobs FOR UPDATE")
        set_deadline(0.5)
        began = time.monotonic()
        with tenant_context(tenant), pytest.raises(OperationalError) as caught, transaction() as s:
            s.execute(text("UPDATE worker_failed_jobs SET error_message = 'changed'"))
        # Both limits are the same here, and whichever is reported ends it.
        assert sqlstate(caught.value) in {LOCK_NOT_AVAILABLE, QUERY_CANCELED}
        assert time.monotonic() - began < 5


# --- Connections ----------------------------------------------------------------------------------


def test_connections_that_died_while_idle_cost_nothing(database: Database) -> None:
    configure(database, pool_size=3)
    together = threading.Barrier(3, timeout=20)

    def job(_: int) -> int:
        with tenant_context(uuid4()), transaction() as s:
            pid = int(s.scalar(text("SELECT pg_backend_pid()")) or 0)
            together.wait()  # so that each has a connection of its own
            return pid

    with ThreadPoolExecutor(3) as threads:
        before = set(threads.map(job, range(3)))
        assert len(before) == 3
        terminate(database, before)
        after = set(threads.map(job, range(3)))
    assert len(after) == 3
    assert not before & after


def test_connections_that_died_while_idle_cost_nothing_async(database: Database) -> None:
    configure(database, pool_size=3)

    async def run() -> tuple[set[int], set[int]]:
        waiting: list[int] = []
        together = asyncio.Event()

        async def job() -> int:
            with tenant_context(uuid4()):
                async with transaction() as s:
                    pid = int(await s.scalar(text("SELECT pg_backend_pid()")) or 0)
                    waiting.append(pid)
                    if len(waiting) == 3:
                        together.set()
                    await asyncio.wait_for(together.wait(), 20)
                    engines.append(engine_of(s))
                    return pid

        engines: list[AsyncEngine] = []
        before = set(await asyncio.gather(job(), job(), job()))
        assert len(before) == 3
        await asyncio.to_thread(terminate, database, before)
        waiting.clear()
        together.clear()
        after = set(await asyncio.gather(job(), job(), job()))
        await engines[0].dispose()
        return before, after

    before, after = asyncio.run(run())
    assert len(after) == 3
    assert not before & after


def test_the_operators_connection_that_died_while_idle_costs_nothing(one_connection: Database) -> None:
    def pid() -> int:
        with operator_transaction() as s:
            return int(s.scalar(text("SELECT pg_backend_pid()")) or 0)

    before = pid()
    terminate(one_connection, {before})
    assert pid() != before


def test_a_connection_that_dies_in_the_middle_is_an_error(one_connection: Database) -> None:
    def die(s: Session) -> None:
        terminate(one_connection, {int(s.scalar(text("SELECT pg_backend_pid()")) or 0)})
        s.execute(text("SELECT 1"))

    with tenant_context(uuid4()):
        with pytest.raises(OperationalError), transaction() as s:
            die(s)
        assert backend_pid()


def test_what_was_left_open_is_not_committed_with_the_next(one_connection: Database) -> None:
    """As an interrupt may leave it, after which SQLAlchemy takes the transaction for ended."""
    tenant = uuid4()
    with tenant_context(tenant):
        with transaction() as s:
            driver: Any = s.connection().connection.driver_connection
        driver.execute(begin_statement("worker", 0))
        driver.execute(
            "INSERT INTO worker_failed_jobs (id, task_id, task_name, tenant_id, error_type, exception_class,"
            " error_message) VALUES (gen_random_uuid(), 'left', 'left', %s, 'unknown', 'E', '')",
            [tenant],
        )
        with transaction() as s:
            s.add(failed_job(tenant, task_name="next"))
        assert names() == ["next"]


def test_what_cannot_be_committed_is_an_error(one_connection: Database) -> None:
    tenant = uuid4()

    def swallow(s: Session) -> None:
        s.add(failed_job(tenant))
        s.flush()
        with suppress(DBAPIError):
            s.execute(text("SELECT 1 / 0"))

    with tenant_context(tenant):
        with pytest.raises(DBAPIError) as raised, transaction() as s:
            swallow(s)
        assert sqlstate(raised.value) == "25P02"
        assert names() == []


def test_what_cannot_be_committed_is_an_error_async(one_connection: Database) -> None:
    async def run() -> None:
        async with transaction() as s:
            with suppress(DBAPIError):
                await s.execute(text("SELECT 1 / 0"))

    async def run_and_close() -> None:
        try:
            await run()
        finally:
            await session.dispose_async()

    with tenant_context(uuid4()), pytest.raises(DBAPIError) as raised:
        asyncio.run(run_and_close())
    assert sqlstate(raised.value) == "25P02"


def test_what_keeps_a_commit_from_happening_leaves_nothing(one_connection: Database) -> None:
    class Unwilling:
        def write(self, *_: Any) -> None:
            raise ZeroDivisionError

        committed = left = write

    tenant = uuid4()
    with tenant_context(tenant):
        with pytest.raises(ZeroDivisionError), transaction() as s:
            driver: Any = s.connection().connection.driver_connection
            s.add(failed_job(tenant))
            opened = innermost()
            assert opened is not None
            assert opened.take_along(Unwilling(), None)
        # Its locks are free at once.
        assert driver.info.transaction_status == TransactionStatus.IDLE
        assert names() == []


def test_a_transaction_that_is_dropped_gives_its_connection_back(one_connection: Database) -> None:
    set_deadline(60)
    with tenant_context(uuid4()):
        dropped: Any = transaction()
        dropped.__enter__()
        forget()
        del dropped
        gc.collect()
        assert backend_pid()


def test_a_connection_keeps_its_scope_from_one_transaction_to_the_next(database: Database) -> None:
    with operator_transaction() as s:
        engine = s.get_bind()
    assert isinstance(engine, Engine)
    with engine.connect() as connection:
        for _ in range(2):
            assert connection.execute(SETTINGS).one()[2] == "operator"
            connection.commit()


def test_a_server_that_is_away_is_an_error_at_once(database: Database) -> None:
    wire = Wire(database.worker_url)
    with wire:
        url = wire.url
    # Nobody listens there any more.
    session.configure(url, connect_timeout=2)
    began = time.monotonic()
    with tenant_context(uuid4()), pytest.raises(OperationalError), transaction():
        pass
    assert time.monotonic() - began < 10


def test_one_event_loop_after_the_other(one_connection: Database) -> None:
    tenant = uuid4()

    async def run() -> tuple[Any, ...]:
        with tenant_context(tenant):
            async with transaction() as s:
                row = tuple((await s.execute(SETTINGS)).one())
        await engine_of(s).dispose()
        return row

    first, second = asyncio.run(run()), asyncio.run(run())
    assert first[0] == second[0] == str(tenant)
    assert first[3] != second[3]


# psycopg complains of connections that nobody closed, which is what happens here.
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
def test_the_connections_of_a_loop_end_with_it(one_connection: Database) -> None:
    async def run() -> int:
        with tenant_context(uuid4()):
            async with transaction() as s:
                return int(await s.scalar(text("SELECT pg_backend_pid()")) or 0)

    pids = {asyncio.run(run()) for _ in range(3)}
    gc.collect()
    with psycopg.connect(one_connection.admin_url, autocommit=True) as admin:
        eventually(
            lambda: (
                admin.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [list(pids)]).fetchone()
                == (0,)
            )
        )


# Python 3.12 warns of every fork in a process that has threads: the watchdog is one, and so are pytest's.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_share_connections(one_connection: Database) -> None:
    with tenant_context(uuid4()):
        # The watchdog runs, too, which a child does not inherit.
        set_deadline(60)
        mine = backend_pid()
        assert backend_pid() == mine
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                os.write(writing, in_the_child().encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        pid, watched = said.split()
        assert int(pid) != mine
        assert watched == QUERY_CANCELED
        # Neither the child nor its end touched the parent's.
        assert backend_pid() == mine


def in_the_child() -> str:
    """Say which backend a forked child got, and the SQLSTATE with which its watchdog ended a transaction."""
    try:
        set_deadline(None)
        pid = backend_pid()
        set_deadline(0.3)
        try:
            with transaction() as s:
                short_statements(s)
        except OperationalError as e:
            return f"{pid} {sqlstate(e)}"
        else:
            return f"{pid} not-cancelled"
    except BaseException as e:  # noqa: BLE001 - all that the parent would hear of
        return f"0 {type(e).__name__}"


# --- The string that begins a transaction ---------------------------------------------------------

UUID_LITERAL = r"'([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})?'"
BEGIN = re.compile(
    r"BEGIN; SET LOCAL app\.execution_context = '(worker|operator)'"
    rf"; SET LOCAL app\.current_tenant_id = {UUID_LITERAL}"
    rf"; SET LOCAL app\.correlation_id = {UUID_LITERAL}"
    r"(; SET LOCAL statement_timeout = [1-9][0-9]*)?"
    r"; SET LOCAL lock_timeout = [1-9][0-9]*"
)

HEX = "0123456789abcdefABCDEF"
#: What is no UUID, and what looks much like one.
ANYTHING: st.SearchStrategy[object] = st.one_of(
    st.text(),
    st.text(alphabet=HEX + "-_{} \n'\";:urnid", min_size=30, max_size=48),
    st.text(alphabet=HEX + "_ ", min_size=32, max_size=32),
    st.uuids().map(str),
    st.uuids().map(lambda u: f"{{{u}}}"),
    st.tuples(st.uuids(), st.text(min_size=1)).map(lambda parts: f"{parts[0]}{parts[1]}"),
    st.uuids().map(lambda u: f"{u}'; RESET ROLE; --"),
    st.binary(),
    st.integers(),
    st.lists(st.uuids()),
    st.booleans(),
)


@given(tenant=ANYTHING, correlation=ANYTHING | st.none(), scope=st.sampled_from(["worker", "operator"]))
def test_nothing_but_validated_literals_gets_into_the_string(tenant: Any, correlation: Any, scope: Scope) -> None:
    try:
        with tenant_context(tenant, correlation) as bound:
            string = begin_statement(scope, 30_000)
    except InvalidTenant:
        return
    assert BEGIN.fullmatch(string)
    assert (f"app.current_tenant_id = '{UUID(str(tenant))}'" in string) is (scope == "worker")
    assert f"app.correlation_id = '{bound.correlation_id or ''}'" in string


@given(tenant=st.one_of(st.text(alphabet="xyz' ;-", max_size=60), st.binary(), st.integers(), st.floats()))
def test_what_is_no_uuid_is_refused(tenant: Any) -> None:
    with pytest.raises(InvalidTenant, match="tenant_id must be a UUID"), tenant_context(tenant):
        pass
    with pytest.raises(InvalidTenant, match="correlation_id must be a UUID"), tenant_context(uuid4(), tenant):
        pass
    assert current_tenancy() is None


@given(allowance=st.floats(min_value=-1e6, max_value=1e6), lock_timeout=st.integers(min_value=1, max_value=10**6))
def test_the_limits_in_the_string_are_never_switched_off(allowance: float, lock_timeout: int) -> None:
    set_deadline(allowance)
    try:
        with tenant_context(uuid4()):
            string = begin_statement("worker", lock_timeout)
    finally:
        set_deadline(None)
    assert BEGIN.fullmatch(string)
    found = re.search(r"statement_timeout = (\d+); SET LOCAL lock_timeout = (\d+)", string)
    assert found
    statement, lock = map(int, found.groups())
    assert 1 <= statement <= max(1, allowance * 1000)
    assert lock == min(lock_timeout, statement)


def test_async_connections_close_on_their_loop(one_connection: Database) -> None:
    async def job() -> tuple[int, int]:
        with tenant_context(uuid4()):
            async with transaction() as s:
                pid = int((await s.execute(text("SELECT pg_backend_pid()"))).scalar_one())
        await session.dispose_async()
        with tenant_context(uuid4()):
            async with transaction() as s:
                other = int((await s.execute(text("SELECT pg_backend_pid()"))).scalar_one())
        await session.dispose_async()
        return pid, other

    pids = asyncio.run(job())
    assert pids[0] != pids[1]
    with psycopg.connect(one_connection.admin_url, autocommit=True) as admin:
        query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)"
        eventually(lambda: admin.execute(query, [list(pids)]).fetchone() == (0,))


def test_a_server_that_does_not_answer_a_cancellation_stops_nobody(cluster: Cluster) -> None:
    """The cancellation is a connection of its own, which a proxy may accept and then forget."""
    with Wire(cluster.admin_url) as wire:
        connection = psycopg.connect(wire.url)
        wire.mute_new_connections()
        watchdog = StatementWatchdog()
        beats = 0
        with connection, pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("SET statement_timeout = '3s'")
            watchdog.watch(connection, time.monotonic())
            waiting = threading.Thread(target=connection.execute, args=["SELECT 1"])
            waiting.start()
            waiting.join()
            end = time.monotonic() + 1
            while time.monotonic() < end:
                beats += 1
                time.sleep(0.01)
            connection.execute("SELECT pg_sleep(30)")
        watchdog.unwatch(connection)
        connection.close()
    # A thread that held the interpreter's lock would have left few.
    assert beats > 20
