"""The same through PgBouncer, which gives each transaction whichever server connection is free."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from db import session
from db.deadline import set_deadline
from db.once import once
from db.session import transaction
from db.tenancy import tenant_context
from tests.servers import Database, temporary_folder
from tests.waiting import Edge, eventually

THREADS = 8
TRANSACTIONS = 100
#: Server connections for all of them.
POOL = 2
QUERY_CANCELED = "57014"

#: What a transaction is told, what it sees, and the server connection that it is on.
LOOK = text(
    "SELECT current_setting('app.current_tenant_id'), pg_backend_pid(),"
    " (SELECT array_agg(DISTINCT tenant_id) FROM attribution_events)"
)


@pytest.fixture(autouse=True)
def _no_deadline() -> Iterator[None]:
    set_deadline(None)
    yield
    set_deadline(None)


@pytest.fixture
def pgbouncer(database: Database) -> Iterator[str]:
    """A PgBouncer in transaction pooling in front of the database, with ``db.session`` configured on it: its URL."""
    # Debian keeps it where a user's PATH does not lead.
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        # A test that is skipped where it matters proves nothing.
        assert not os.environ.get("CI"), "pgbouncer is not installed"
        pytest.skip("pgbouncer is not installed")
    worker = urlsplit(database.worker_url)
    port = free_port()
    with temporary_folder() as folder:
        users = folder / "users.txt"
        users.write_text(f'"{worker.username}" "{worker.password}"\n')
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n{database.name} = host={worker.hostname} port={worker.port} dbname={database.name}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL}\nmax_client_conn = 100\n"
        )
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            # Which it refuses to be.
            nobody = pwd.getpwnam("nobody")
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for file in (users, config):
                os.chown(file, nobody.pw_uid, nobody.pw_gid)
        log = (folder / "pgbouncer.log").open("wb")
        with log, subprocess.Popen([program, str(config)], stdout=log, stderr=log, cwd="/", **account) as process:
            try:
                url = urlunsplit(worker._replace(netloc=f"{worker.username}:{worker.password}@127.0.0.1:{port}"))
                wait_until_ready(url, process)
                # Which nothing is through it, whatever is asked for.
                session.configure(url, pool_size=THREADS, max_overflow=0, prepare_threshold=5)
                yield url
            finally:
                session.dispose()
                process.terminate()
                process.wait(10)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    def ready() -> bool:
        assert process.poll() is None, "pgbouncer did not start"
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(url, connect_timeout=5, prepare_threshold=None).close()
            return True
        return False

    eventually(ready)


@pytest.fixture
def tenants(database: Database) -> list[UUID]:
    """Two tenants, each with an event."""
    tenants = [uuid4(), uuid4()]
    with psycopg.connect(database.admin_url) as admin:
        for tenant in tenants:
            admin.execute("INSERT INTO tenants (id, name) VALUES (%s, 'Acme')", [tenant])
            admin.execute(
                "INSERT INTO attribution_events (tenant_id, event_id, event_type, visitor_id, channel, occurred_at)"
                " VALUES (%s, 'first', 'touch', 'visitor', 'email', now())",
                [tenant],
            )
    return tenants


class Seen:
    """Which tenants were on which server connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.tenants: defaultdict[int, set[UUID]] = defaultdict(set)
        self.transactions = 0

    def check(self, tenant: UUID, row: Any) -> None:
        setting, pid, visible = row
        assert setting == str(tenant)
        assert visible == [tenant]
        with self._lock:
            self.tenants[pid].add(tenant)
            self.transactions += 1

    def assert_mixed(self, tenants: list[UUID]) -> None:
        """Else the checks prove nothing."""
        assert len(self.tenants) <= POOL
        assert all(on_it == set(tenants) for on_it in self.tenants.values())


def engine_of(bind: object) -> AsyncEngine:
    assert isinstance(bind, AsyncEngine)
    return bind


def test_each_transaction_has_its_own_tenant(pgbouncer: str, tenants: list[UUID]) -> None:
    seen = Seen()
    together = threading.Barrier(THREADS, timeout=20)

    def work(thread: int) -> None:
        together.wait()
        for i in range(TRANSACTIONS):
            tenant = tenants[(thread + i) % 2]
            with tenant_context(tenant, uuid4()), transaction() as s:
                seen.check(tenant, s.execute(LOOK).one())
                # Still, at the second statement.
                seen.check(tenant, s.execute(LOOK).one())

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, range(THREADS)))
    assert seen.transactions == 2 * THREADS * TRANSACTIONS
    seen.assert_mixed(tenants)

    # And nothing of it is left for whoever says nothing.
    with contextlib.ExitStack() as stack:
        bare = [
            stack.enter_context(psycopg.connect(pgbouncer, prepare_threshold=None)) for _ in range(POOL)
        ]  # each holds a transaction, so that all server connections are looked at
        pids = set()
        for connection in bare:
            row = connection.execute(
                "SELECT pg_backend_pid(), current_setting('app.current_tenant_id', true),"
                " current_setting('app.correlation_id', true), current_setting('app.execution_context', true),"
                " current_setting('lock_timeout'), (SELECT count(*) FROM attribution_events)"
            ).fetchone()
            assert row is not None
            pids.add(row[0])
            assert row[1:] == ("", "", "", "0", 0)
        assert pids == set(seen.tenants)


def test_each_transaction_has_its_own_tenant_async(pgbouncer: str, tenants: list[UUID]) -> None:
    seen = Seen()

    async def work(task: int) -> AsyncEngine:
        for i in range(TRANSACTIONS // 2):
            tenant = tenants[(task + i) % 2]
            with tenant_context(tenant, uuid4()):
                async with transaction() as s:
                    seen.check(tenant, (await s.execute(LOOK)).one())
        return engine_of(s.bind)

    async def run() -> None:
        engines = await asyncio.gather(*map(work, range(THREADS)))
        await engines[0].dispose()

    asyncio.run(run())
    assert seen.transactions == THREADS * TRANSACTIONS // 2
    seen.assert_mixed(tenants)


def test_a_statement_ends_at_the_deadline(pgbouncer: str, tenants: list[UUID], database: Database) -> None:
    set_deadline(0.5)
    began = time.monotonic()
    with tenant_context(tenants[0]), pytest.raises(OperationalError) as caught, transaction() as s:
        s.execute(text("SELECT pg_sleep(30)"))
    assert sqlstate(caught.value) == QUERY_CANCELED
    assert 0.4 < time.monotonic() - began < 5
    assert running(database) == []


def short_statements(s: Session) -> None:
    """Run for 12 seconds, in statements each of which is over long before any ``statement_timeout`` of these tests."""
    for _ in range(120):
        s.execute(text("SELECT pg_sleep(0.1)"))


def test_the_watchdog_reaches_through(pgbouncer: str, tenants: list[UUID], database: Database) -> None:
    set_deadline(0.5)
    began = time.monotonic()
    with tenant_context(tenants[0]), pytest.raises(OperationalError) as caught, transaction() as s:
        short_statements(s)
    assert sqlstate(caught.value) == QUERY_CANCELED
    assert 0.4 < time.monotonic() - began < 5


def test_the_watchdog_reaches_through_async(pgbouncer: str, tenants: list[UUID], database: Database) -> None:
    engines: list[AsyncEngine] = []

    async def long_statement() -> None:
        with tenant_context(tenants[0]):
            async with transaction() as s:
                engines.append(engine_of(s.bind))
                # The limit that Postgres itself would put on it is off.
                await s.execute(text("SET LOCAL statement_timeout = 0"))
                await s.execute(text("SELECT pg_sleep(30)"))

    async def run() -> float:
        set_deadline(0.5)
        began = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            await long_statement()
        took = time.monotonic() - began
        assert sqlstate(caught.value) == QUERY_CANCELED
        await engines[0].dispose()
        return took

    assert 0.4 < asyncio.run(run()) < 5
    eventually(lambda: running(database) == [])


def test_the_watchdog_hits_nobody_else(pgbouncer: str, tenants: list[UUID]) -> None:
    """A cancellation names a client, and must not reach whoever has its server connection by then."""
    end = time.monotonic() + 2

    def overrun() -> list[str | None]:
        endings: list[str | None] = []
        edge = Edge()
        while time.monotonic() < end or (set(endings) != {None, QUERY_CANCELED} and len(endings) < 2_000):
            set_deadline(edge.limit)
            try:
                with tenant_context(tenants[0]), transaction() as s:
                    s.execute(text("SET LOCAL statement_timeout = 0"))
                    s.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": edge.duration})
            except OperationalError as e:
                endings.append(sqlstate(e))
                edge.too_long()
            else:
                endings.append(None)
                edge.too_short()
        return endings

    def innocent() -> int:
        done = 0
        while time.monotonic() < end:
            with tenant_context(tenants[1]), transaction() as s:
                s.execute(text("SELECT pg_sleep(0.005)"))
            done += 1
        return done

    with ThreadPoolExecutor(6) as threads:
        overrunning = [threads.submit(overrun) for _ in range(2)]
        others = [threads.submit(innocent) for _ in range(4)]
        assert all(f.result() for f in others)
        # The edge was met, from both sides: otherwise nothing was tried.
        assert {ending for f in overrunning for ending in f.result()} == {None, QUERY_CANCELED}


def sqlstate(error: OperationalError) -> str | None:
    assert isinstance(error.orig, psycopg.Error)
    return error.orig.sqlstate


def running(database: Database) -> list[Any]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND datname = current_database()"
            " AND query LIKE 'SELECT pg_sleep(30)%'"
        ).fetchall()


def test_effects_happen_once(pgbouncer: str, database: Database) -> None:
    tenants = [uuid4(), uuid4()]

    def ask(n: int) -> tuple[UUID, bool]:
        tenant = tenants[n % 2]
        with tenant_context(tenant), transaction():
            return tenant, once("k")

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(ask, range(THREADS * 10)))
    assert sorted(tenant for tenant, first in answers if first) == sorted(tenants)
