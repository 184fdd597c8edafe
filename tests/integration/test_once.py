"""An effect that stands behind ``once()`` happens once, however often its message is executed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import dramatiq
import psycopg
import pytest
from dramatiq import Message
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import current_message, session
from db.current_message import Execution, current_execution
from db.errors import OnceError
from db.once import once, once_async
from db.open_transaction import innermost
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.nothing_lost import Side, kept, ours, put
from tests.servers import Cluster, Database
from tests.waiting import eventually
from tests.wire import Wire

A: Final = UUID("aaaaaaaa-0000-4000-8000-000000000001")
B: Final = UUID("bbbbbbbb-0000-4000-8000-000000000002")

#: The effect: a row, of which nothing but ``once()`` keeps there from being two.
EFFECT = text(
    "INSERT INTO effects (tenant_id, what)"
    " VALUES (CAST(NULLIF(current_setting('app.current_tenant_id'), '') AS uuid), :what)"
)


@pytest.fixture(scope="module")
def clone(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A migrated database, with a table that counts what happens, for all tests of this module."""
    with cluster.database(template.name) as database:
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("CREATE TABLE effects (tenant_id uuid, what text NOT NULL)")
            admin.execute("GRANT INSERT ON effects TO app_user, app_operator")
        yield database


@pytest.fixture
def database(clone: Database) -> Iterator[Database]:
    """The database without a row, with ``db.session`` configured on it as a deployment would."""
    with psycopg.connect(clone.admin_url, autocommit=True) as admin:
        admin.execute("TRUNCATE effects, worker_once, worker_failed_jobs CASCADE")
    session.configure(clone.worker_url, operator_database_url=clone.operator_url)
    try:
        yield clone
    finally:
        session.dispose()


def effects(database: Database) -> list[tuple[UUID | None, str]]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute("SELECT tenant_id, what FROM effects ORDER BY tenant_id, what").fetchall()


def recorded(database: Database) -> list[tuple[UUID | None, str, str | None]]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute("SELECT tenant_id, key, message_id FROM worker_once ORDER BY tenant_id, key").fetchall()


@contextmanager
def executing(message_id: str, tenant: UUID | None = A) -> Iterator[Execution]:
    """Execute a message as the middleware would."""
    execution = Execution(message_id)
    current_message.bind(execution)
    try:
        with tenant_context(tenant):
            yield execution
    finally:
        current_message.bind(None)


def effect(what: str, key: str | None = None) -> bool:
    """Have an effect once; tell whether it was now."""
    with transaction() as s:
        first = once(key)
        if first:
            s.execute(EFFECT, {"what": what})
    return first


async def effect_async(what: str, key: str | None = None) -> bool:
    async with transaction() as s:
        first = await once_async(key)
        if first:
            await s.execute(EFFECT, {"what": what})
    return first


def in_a_loop(*coroutines: Callable[[], Any]) -> list[Any]:
    """Run coroutine functions at once, in an event loop of their own."""

    async def run() -> list[Any]:
        try:
            return list(await asyncio.gather(*(c() for c in coroutines)))
        finally:
            await session.dispose_async()

    return asyncio.run(run())


# --- The message ----------------------------------------------------------------------------------


def test_the_second_execution_of_a_message_skips_the_effect(database: Database) -> None:
    answers = []
    for message_id in ("m", "m", "other", "m"):
        with executing(message_id):
            answers.append(effect(message_id))
    assert answers == [True, False, True, False]
    assert effects(database) == [(A, "m"), (A, "other")]
    assert recorded(database) == [(A, "message:m", "m"), (A, "message:other", "other")]


def test_what_was_rolled_back_was_not_recorded(database: Database) -> None:
    with executing("m"), pytest.raises(ZeroDivisionError), transaction():
        assert once()
        raise ZeroDivisionError
    assert recorded(database) == []
    # In the same execution and in the next.
    with executing("m"):
        with pytest.raises(ZeroDivisionError), transaction() as s:
            assert once()
            s.execute(EFFECT, {"what": "undone"})
            raise ZeroDivisionError
        assert effect("done")
    with executing("m"):
        assert not effect("again")
    assert effects(database) == [(A, "done")]


def test_a_commit_that_fails_is_rolled_back_too(database: Database) -> None:
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute(
            "ALTER TABLE effects ADD CONSTRAINT alone UNIQUE (what) DEFERRABLE INITIALLY DEFERRED;"
            "INSERT INTO effects (what) VALUES ('m')"
        )
        try:
            with executing("m"):
                with pytest.raises(Exception, match="alone"):
                    effect("m")
                assert recorded(database) == []
                admin.execute("DELETE FROM effects")
                assert effect("m")
        finally:
            admin.execute("ALTER TABLE effects DROP CONSTRAINT alone")
    assert effects(database) == [(A, "m")]


def test_a_savepoint_takes_its_record_with_it(database: Database) -> None:
    with executing("m"), transaction() as s:
        with pytest.raises(ZeroDivisionError), s.begin_nested():
            assert once()
            assert once("k")
            raise ZeroDivisionError
        assert once()
        assert once("k")


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_two_executions_at_once_wait_for_each_other(database: Database, key: str | None, outcome: str) -> None:
    asked, end = threading.Event(), threading.Event()

    def first() -> bool:
        with executing("m"), transaction() as s:
            assert once(key)
            asked.set()
            assert end.wait(30)
            s.execute(EFFECT, {"what": "first"})
            if outcome == "rollback":
                s.rollback()
        return True

    def second() -> bool:
        with executing("m"):
            return effect("second", key)

    def somebody_waits() -> bool:
        with psycopg.connect(database.admin_url) as admin:
            query = "SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND datname = %s"
            return admin.execute(query, [database.name]).fetchone() is not None

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        assert asked.wait(30)
        other = pool.submit(second)
        eventually(somebody_waits)
        assert not other.done()
        end.set()
        assert one.result(30)
        assert other.result(30) is (outcome == "rollback")
    assert effects(database) == [(A, "first" if outcome == "commit" else "second")]


def test_many_executions_at_once_have_one_effect(database: Database) -> None:
    together = threading.Barrier(8)

    def run(_: int) -> bool:
        with executing("m"):
            together.wait(30)
            return effect("m")

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(run, range(8))) == [False] * 7 + [True]
    assert effects(database) == [(A, "m")]


def test_waiting_ends_with_the_lock_timeout(database: Database) -> None:
    session.configure(database.worker_url, lock_timeout_ms=50)
    with executing("m"), transaction():
        assert once()
        with ThreadPoolExecutor(1) as pool, pytest.raises(OperationalError, match="lock timeout"):
            pool.submit(_in_another_execution).result(30)


def _in_another_execution() -> bool:
    with executing("m"):
        return effect("m")


@pytest.mark.parametrize("message_id", ["m" * 155, "m" * 156, "m\x00", "\ud800", "ü" * 155])
def test_whatever_the_message_id(database: Database, message_id: str) -> None:
    for expected in (True, False):
        with executing(message_id):
            assert effect("m") is expected
    with executing(message_id + "2"):
        assert effect("other")


def test_it_costs_one_round_trip(database: Database) -> None:
    with Wire(database.worker_url) as wire:
        session.configure(wire.url)
        turns = []
        for key in ("warm", None, "k", "k"):
            before = wire.turns
            with tenant_context(A), transaction():
                if key is not None:
                    once(key)
            turns.append(wire.turns - before)
        session.dispose()
    _, without, first, second = turns
    assert first == second == without + 1


# --- Keys -----------------------------------------------------------------------------------------


def test_a_key_holds_across_messages_and_outside_of_jobs(database: Database) -> None:
    with executing("m"):
        assert effect("k", "k")
        # A second time is legitimate, in the same execution and transaction, too.
        assert not effect("k", "k")
        with transaction():
            assert once("other")
            assert not once("other")
    with executing("n"):
        assert not effect("k", "k")
    with tenant_context(A):
        assert not effect("k", "k")
        assert effect("outside", "outside")
    assert effects(database) == [(A, "k"), (A, "outside")]
    assert recorded(database) == [(A, "key:k", "m"), (A, "key:other", "m"), (A, "key:outside", None)]


def test_a_key_is_no_message(database: Database) -> None:
    with executing("m"):
        assert effect("message")
        for key in ("m", "message:m", "key:m"):
            assert effect(key, key)
    with executing("key:m"):
        assert effect("a message of that name")


def test_tenants_do_not_see_one_anothers(database: Database) -> None:
    for expected in (True, False):
        for tenant in (A, B, None):
            with executing("m", tenant):
                assert effect("k", "k") is expected
                assert effect("m") is expected
    assert effects(database) == [(t, w) for t in (A, B, None) for w in ("k", "m")]
    with tenant_context(A), transaction() as s:
        assert set(s.scalars(text("SELECT tenant_id FROM worker_once"))) == {A}


def test_an_operator_transaction_belongs_to_no_tenant(database: Database) -> None:
    for expected in (True, False):
        with executing("m"):
            for key in (None, "k"):
                with operator_transaction() as s:
                    assert once(key) is expected
                    s.execute(EFFECT, {"what": "ever"})
    assert recorded(database) == [(None, "key:k", "m"), (None, "message:m", "m")]
    # The tenant's own is another.
    with executing("m"):
        assert effect("k", "k")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "key must not be empty, but it is ''"),
        (7, "key must be a string, not 7"),
        (b"k", "key must be a string, not b'k'"),
        (UUID(int=0), "key must be a string, not UUID"),
        ("k" * 256, "key must have at most 255 characters, not 256: 'kkk"),
        ("a\x00b", r"key must hold neither NUL nor lone surrogates, .*: 'a\\x00b'"),
        ("\udcff", r"key must hold neither NUL nor lone surrogates, .*: '\\udcff'"),
    ],
)
def test_what_is_no_key_is_refused(database: Database, key: Any, message: str) -> None:
    with executing("m"):
        with pytest.raises(ValueError, match=message), transaction():
            once(key)

        async def ask() -> None:
            with pytest.raises(ValueError, match=message):
                async with transaction():
                    once_async(key)

        in_a_loop(ask)
    assert recorded(database) == []


@pytest.mark.parametrize("key", ["k" * 255, "ü" * 255, "😀" * 255, " ", "%s :key"])
def test_what_is_one(database: Database, key: str) -> None:
    with tenant_context(A):
        assert effect("k", key)
        assert not effect("k", key)
    assert recorded(database) == [(A, f"key:{key}", None)]


# --- What would lose an effect --------------------------------------------------------------------


def test_a_second_effect_without_a_key_is_refused_in_every_execution(database: Database) -> None:
    for expected in (True, False):
        with executing("m"):
            assert effect("first") is expected
            for _ in range(2):
                with pytest.raises(OnceError, match=r"'m' .* give each effect a key"):
                    effect("second")
            assert effect("keyed", "k") is expected
    assert effects(database) == [(A, "first"), (A, "keyed")]


def test_also_in_one_transaction(database: Database) -> None:
    for _ in range(2):
        with executing("m"), pytest.raises(OnceError, match="give each effect a key"), transaction():
            assert once()
            once()
    assert recorded(database) == []


def test_also_in_a_transaction_inside_the_other(database: Database) -> None:
    with executing("m"), transaction():
        assert once()
        with pytest.raises(OnceError, match="give each effect a key"):
            effect("second")
    with executing("n"), transaction():
        assert once("k")
        with pytest.raises(OnceError, match=r"once\('k'\) .* each would wait for the other"):
            effect("second", "k")
        # Another tenant's is another key.
        with tenant_context(B):
            assert effect("other", "k")


def test_also_in_two_threads_of_one_job(database: Database) -> None:
    together = threading.Barrier(2)

    def ask() -> bool:
        with transaction():
            together.wait(30)
            return once()

    with executing("m"), ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(contextvars.copy_context().run, ask) for _ in range(2)]
        raised = [type(job.exception(30)) for job in jobs]
    assert sorted(raised, key=str) == sorted([OnceError, type(None)], key=str)


# --- Where it may be called -----------------------------------------------------------------------


def test_outside_of_a_transaction_it_is_refused(database: Database) -> None:
    with executing("m"):
        for ask in (once, once_async):
            for key in (None, "k"):
                with pytest.raises(OnceError, match=rf"{ask.__name__}\(\) was called outside of a transaction"):
                    ask(key)
        with transaction():
            pass
        with pytest.raises(OnceError, match="outside of a transaction"):
            once()


def test_without_a_key_outside_of_a_job_it_is_refused(database: Database) -> None:
    with tenant_context(A), transaction():
        with pytest.raises(OnceError, match="needs a key here"):
            once()
        assert once("k")
    # As a message whose id is empty: it is not the only one.
    with executing(""), transaction(), pytest.raises(OnceError, match="needs a key here"):
        once()


def test_the_wrong_one_is_refused(database: Database) -> None:
    with executing("m"), transaction(), pytest.raises(OnceError, match=r"needs `once\(\)`"):
        once_async()

    async def ask() -> None:
        with executing("m"):
            async with transaction():
                with pytest.raises(OnceError, match=r"needs `await once_async\(\)`"):
                    once()
                # The innermost counts.
                with transaction():
                    assert once()

    in_a_loop(ask)


def test_an_answer_that_was_not_awaited_is_refused(database: Database) -> None:
    async def ask() -> None:
        with executing("m"):
            async with transaction():
                with pytest.raises(OnceError, match=r"was not awaited: say `if await once_async\(\):`"):
                    assert once_async()
                late = once_async()
            with pytest.raises(OnceError, match="after its transaction had ended"):
                await late

    in_a_loop(ask)
    assert recorded(database) == []


def test_the_innermost_transaction_records(database: Database) -> None:
    with tenant_context(A), pytest.raises(ZeroDivisionError), transaction():
        assert once("outer")
        with transaction():
            assert once("inner")
        assert once("outer again")
        raise ZeroDivisionError
    assert recorded(database) == [(A, "key:inner", None)]


def test_a_transaction_may_be_left_in_another_context(database: Database) -> None:
    """As the generators of fixtures are, and what a framework runs in steps."""

    def steps() -> Iterator[Session]:
        with transaction() as s:
            yield s

    with tenant_context(A):
        entered = steps()
        next(entered)
        assert once("k")
        contextvars.copy_context().run(next, entered, None)
        assert innermost() is None
        with pytest.raises(OnceError, match="outside of a transaction"):
            once("k")
        assert recorded(database) == [(A, "key:k", None)]
        # And out of order.
        one, other = steps(), steps()
        next(one)
        next(other)
        next(one, None)
        assert once("l")
        next(other, None)
        assert innermost() is None
    assert recorded(database) == [(A, "key:k", None), (A, "key:l", None)]


def test_each_thread_has_its_own(database: Database) -> None:
    with tenant_context(A), transaction(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(innermost).result(30) is None


# --- Async ----------------------------------------------------------------------------------------


def test_async_executions(database: Database) -> None:
    def job(message_id: str, key: str | None) -> Callable[[], Any]:
        async def run() -> bool:
            with executing(message_id):
                return await effect_async(message_id, key)

        return run

    assert sorted(in_a_loop(*[job("m", None)] * 4)) == [False, False, False, True]
    assert sorted(in_a_loop(job("m", "k"), job("n", "k"))) == [False, True]
    assert len(effects(database)) == 2


def test_async_rollback_then_again_and_a_second_effect(database: Database) -> None:
    async def run() -> None:
        with executing("m"):
            with pytest.raises(ZeroDivisionError):
                async with transaction():
                    assert await once_async()
                    raise ZeroDivisionError
            assert await effect_async("done")
            with pytest.raises(OnceError, match="give each effect a key"):
                await effect_async("second")

    in_a_loop(run)
    assert effects(database) == [(A, "done")]


# --- In workers -----------------------------------------------------------------------------------


@pytest.fixture
def site(database: Database, redis_url: str, side: Callable[..., Side]) -> Iterator[Side]:
    """The broker of production, whose failures go to their table."""
    # What is tried here fails on purpose, and Dramatiq would show every traceback.
    logging.getLogger("dramatiq").setLevel(logging.CRITICAL + 1)
    yield side(lambda url: ours(url, MIN_BACKOFF="10", MAX_BACKOFF="20"), redis_url)
    logging.getLogger("dramatiq").setLevel(logging.NOTSET)


def ended(site: Side) -> Callable[[], bool]:
    return lambda: kept(site.client) == 0


def send(actor: dramatiq.Actor[..., Any], *args: Any, tenant: UUID = A) -> Message[Any]:
    return actor.send_with_options(args=args, tenant_id=str(tenant))


def redeliver(site: Side, sent: Message[Any]) -> None:
    """Put the message back on its queue, byte for byte, as a reaper would that took its worker for dead."""
    put(site.client, sent.options["redis_message_id"], sent.encode())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_redelivered_message_runs_twice_and_its_effect_is_there_once(
    site: Side, database: Database, kind: str
) -> None:
    ran: list[tuple[str, bool]] = []

    def job(what: str) -> None:
        execution = current_execution()
        assert execution is not None
        ran.append((execution.message_id, effect(what)))

    async def job_async(what: str) -> None:
        execution = current_execution()
        assert execution is not None
        try:
            ran.append((execution.message_id, await effect_async(what)))
        finally:
            await session.dispose_async()

    actor = site.actor(job if kind == "sync" else job_async)
    with site.working():
        sent = send(actor, "m")
        eventually(ended(site))
        redeliver(site, sent)
        eventually(lambda: len(ran) == 2 and ended(site)())
    assert ran == [(sent.message_id, True), (sent.message_id, False)]
    assert effects(database) == [(A, "m")]
    assert site.failures == []


def test_a_retry_skips_what_was_committed(site: Side, database: Database) -> None:
    answers: list[bool] = []

    def job() -> None:
        answers.append(effect("m"))
        if len(answers) < 3:
            raise RuntimeError("after the effect")

    actor = site.actor(job, max_retries=5)
    with site.working():
        send(actor)
        eventually(lambda: len(answers) == 3 and ended(site)())
    assert answers == [True, False, False]
    assert effects(database) == [(A, "m")]


def test_two_effects_without_keys_become_a_failure_and_no_silence(site: Side, database: Database) -> None:
    def job() -> None:
        effect("first")
        effect("second")

    actor = site.actor(job, max_retries=2)
    with site.working():
        send(actor)
        eventually(lambda: site.failures and ended(site)())
    (failure,) = site.failures
    assert (failure.exception_class, failure.retry_count) == ("db.errors.OnceError", 2)
    assert effects(database) == [(A, "first")]


def test_jobs_of_two_tenants_on_the_same_threads(site: Side, database: Database) -> None:
    def job(what: str) -> None:
        effect(what, what)
        effect("message")

    actor = site.actor(job)
    with site.working():
        sent = [send(actor, str(n), tenant=tenant) for n in range(5) for tenant in (A, B)]
        eventually(ended(site))
        for message in sent:
            redeliver(site, message)
        eventually(ended(site))
    assert site.failures == []
    expected = [str(n) for n in range(5)] + ["message"] * 5
    assert effects(database) == [(tenant, what) for tenant in (A, B) for what in expected]


def test_no_message_is_bound_outside_of_jobs(site: Side) -> None:
    ran = threading.Event()

    def job() -> None:
        ran.set()
        raise ValueError("no")

    actor = site.actor(job)
    with site.working():
        send(actor)
        eventually(lambda: site.failures and ended(site)())
    assert ran.is_set()
    assert current_execution() is None
