"""What is sent inside a transaction is sent if that is committed, once, and not if it is not."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final
from uuid import UUID, uuid4

import dramatiq
import psycopg
import pytest
from dramatiq import Message
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from db import outbox, session
from db.errors import ConfigurationError
from db.failed.originals import sealed_with
from db.open_transaction import OpenTransaction
from db.sealing import generate
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from middleware import relay
from middleware.errors import OptionRefused
from middleware.lossless_broker import LosslessBroker
from middleware.relay import Relay
from middleware.unique import NotUnique, Unique
from tests.cut_wire import CutWire
from tests.integration.command_line import CommandLine
from tests.integration.dying_senders import RELAYS, SENDERS
from tests.integration.nothing_lost import QUEUE, Side, marker_of, ours
from tests.servers import Cluster, Database
from tests.waiting import eventually
from worker.check.outbox import check_outbox
from worker.check.postgres import engine
from worker.queue_admin.audit import PURGED
from worker.testing import TestBroker, stub_broker

__all__ = ["stub_broker"]

A: Final = UUID("aaaaaaaa-0000-4000-8000-000000000001")
B: Final = UUID("bbbbbbbb-0000-4000-8000-000000000002")
C: Final = UUID("cccccccc-0000-4000-8000-000000000003")


@pytest.fixture(scope="module")
def clone(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A migrated database for all tests of this module."""
    with cluster.database(template.name) as database:
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("CREATE TABLE orders (n integer UNIQUE DEFERRABLE INITIALLY DEFERRED)")
            admin.execute("GRANT INSERT, SELECT ON orders TO app_user, app_operator")
        yield database


@pytest.fixture
def database(clone: Database) -> Iterator[Database]:
    """The database without a row, with ``db.session`` configured on it as a deployment would."""
    with psycopg.connect(clone.admin_url, autocommit=True) as admin:
        admin.execute("TRUNCATE orders, worker_outbox, worker_failed_jobs CASCADE")
    session.configure(clone.worker_url, operator_database_url=clone.operator_url)
    try:
        yield clone
    finally:
        session.dispose()


@pytest.fixture
def here(database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]) -> Side:
    """A broker of ours, whose outbox is in the database."""
    return side(ours, redis_url)


def relay_of(side: Side) -> Relay:
    assert isinstance(side.broker, LosslessBroker)
    assert side.broker.outbox is not None
    return side.broker.outbox.relay


def rows(database: Database) -> list[Any]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute("SELECT tenant_id, queue, actor, message_id FROM worker_outbox ORDER BY id").fetchall()


def orders(database: Database) -> list[int]:
    with psycopg.connect(database.admin_url) as admin:
        return [row[0] for row in admin.execute("SELECT n FROM orders ORDER BY n")]


def queued(side: Side, queue: str = QUEUE) -> list[Message[Any]]:
    """Return what is on a queue, in its order."""
    ids: list[bytes] = side.client.lrange(f"dramatiq:{queue}", 0, -1)  # type: ignore[assignment]
    found: list[bytes] = [side.client.hget(f"dramatiq:{queue}.msgs", one) for one in ids]  # type: ignore[misc]
    return [Message.decode(data) for data in found]


def arguments(side: Side) -> list[Any]:
    return [message.args[0] for message in queued(side)]


def insert(n: int) -> Any:
    return text(f"INSERT INTO orders VALUES ({n:d})")


class TestCommit:
    def test_it_is_on_its_queue_once_the_block_is_left_and_not_before(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction() as db:
            db.execute(insert(1))
            sent = [actor.send(n) for n in range(3)]
            assert queued(here) == []
            assert rows(database) == []
        assert [message.message_id for message in queued(here)] == [message.message_id for message in sent]
        assert {message.options["tenant_id"] for message in queued(here)} == {str(A)}
        assert orders(database) == [1]

    def test_its_rows_are_removed_soon(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction():
            actor.send(1)
        eventually(lambda: rows(database) == [])

    def test_a_transaction_that_is_rolled_back_sends_nothing(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with pytest.raises(RuntimeError, match="no"), tenant_context(A), transaction() as db:
            db.execute(insert(1))
            actor.send(1)
            raise RuntimeError("no")
        with tenant_context(A), transaction():
            actor.send(2)
        assert arguments(here) == [2]
        assert orders(database) == []

    def test_a_commit_that_fails_sends_nothing(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with pytest.raises(Exception, match="duplicate key"), tenant_context(A), transaction() as db:
            db.execute(insert(1))
            db.execute(insert(1))
            actor.send(1)
        assert queued(here) == []
        assert rows(database) == []

    def test_a_transaction_that_an_error_has_aborted_raises_where_it_was_to_send(self, here: Side) -> None:
        """Postgres answers COMMIT with ROLLBACK, and no driver takes that for an error."""
        actor = here.actor(lambda _: None)
        with pytest.raises(Exception, match="current transaction is aborted"), tenant_context(A), transaction() as db:
            with pytest.raises(Exception, match="nothing_at_all"):
                db.connection().exec_driver_sql("SELECT nothing_at_all")
            actor.send(1)
        assert queued(here) == []

    def test_outside_of_one_it_is_sent_at_once_and_makes_no_row(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A):
            with transaction():
                pass
            actor.send(1)
        assert arguments(here) == [1]
        assert rows(database) == []

    def test_now_steps_round_it_and_is_no_business_of_the_receivers(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with pytest.raises(RuntimeError), tenant_context(A), transaction():
            actor.send_with_options(args=(1,), now=True)
            actor.send_with_options(args=(2,), now=False)
            raise RuntimeError
        (message,) = queued(here)
        assert message.args == (1,)
        assert "now" not in message.options

    def test_now_is_true_or_false(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), pytest.raises(OptionRefused, match="option 'now' must be true or false, not 'yes'"):
            actor.send_with_options(args=(1,), now="yes")

    def test_what_send_refuses_it_refuses_at_once(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction(), pytest.raises(OptionRefused, match="max_retries"):
            actor.send_with_options(args=(1,), max_retries="3")

    def test_it_can_be_switched_off(
        self, database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
    ) -> None:
        here = side(lambda url: ours(url, OUTBOX="no"), redis_url)
        actor = here.actor(lambda _: None)
        with pytest.raises(RuntimeError), tenant_context(A), transaction():
            actor.send(1)
            raise RuntimeError
        assert arguments(here) == [1]

    def test_a_delayed_message_keeps_the_time_at_which_it_is_due(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction():
            sent = actor.send_with_options(args=(1,), delay=60_000)
        (message,) = queued(here, f"{QUEUE}.DQ")
        assert message.options["eta"] == sent.options["eta"]
        assert queued(here) == []

    def test_pipelines_and_groups_begin_with_the_transaction(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction():
            dramatiq.pipeline([actor.message(1), actor.message(2)], broker=here.broker).run()
            group = dramatiq.group([actor.message(3), actor.message(4)], broker=here.broker)
            group.add_completion_callback(actor.message(5))
            group.run()
            assert queued(here) == []
        assert arguments(here) == [1, 3, 4]

    def test_a_thousand_are_one_statement(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction():
            for n in range(1_000):
                actor.send(n)
        assert arguments(here) == list(range(1_000))
        eventually(lambda: rows(database) == [])

    def test_many_at_once_leave_with_it_too(self, here: Side, database: Database) -> None:
        assert isinstance(here.broker, LosslessBroker)
        actor = here.actor(lambda _: None)
        messages = [actor.message(n) for n in range(3)]
        messages.insert(1, actor.message_with_options(args=("now",), now=True))
        with pytest.raises(RuntimeError), tenant_context(A), transaction() as db:
            sent = here.broker.enqueue_many(messages)
            assert arguments(here) == ["now"]
            db.commit()
            assert arguments(here) == ["now", 0, 1, 2]
            here.broker.enqueue_many(messages[2:])
            raise RuntimeError
        assert [message.args for message in sent] == [(0,), ("now",), (1,), (2,)]
        assert arguments(here) == ["now", 0, 1, 2]

    def test_of_unique_jobs_one_is_sent_once_it_is_committed(
        self, here: Side, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody is kept away by one that is rolled back, and one that has run is not relayed again."""
        monkeypatch.setattr(relay, "REMOVE_AFTER", 1.0)
        ran: list[int] = []
        actor = here.actor(ran.append, unique=Unique(by=()))
        with pytest.raises(RuntimeError), tenant_context(A), transaction():
            actor.send(1)
            raise RuntimeError
        with tenant_context(A), transaction() as db:
            actor.send(2)
            actor.send(3)
            with tenant_context(B):
                actor.send(4)
            db.commit()
            kept = outbox.waiting(db, grace=0, limit=10, bytes_=1_000_000)
        assert len(kept) == 2  # that it sees
        assert arguments(here) == [2, 4]
        with tenant_context(A), pytest.raises(NotUnique):
            actor.send(5)
        with here.working():
            eventually(lambda: sorted(ran) == [2, 4] and rows(database) == [])
        # As if its rows had not been removed.
        late = Relay(here.broker.run)  # type: ignore[attr-defined]
        late.get_ready()
        assert late._put(late.not_after(), [relay._Read(one, one.message) for one in kept]) == [1] * len(kept)
        assert late._put(late.not_after() - 2 * relay.TOO_LATE, [relay._Read(one, one.message) for one in kept]) == []
        assert queued(here) == []
        with tenant_context(A), transaction():
            actor.send(6)
        assert arguments(here) == [6]


class TestWhichTransaction:
    def test_what_is_sent_since_a_savepoint_goes_with_it(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)

        def give_up() -> None:
            raise RuntimeError

        with tenant_context(A), transaction() as db:
            actor.send("first")
            with db.begin_nested():
                actor.send("kept")
                with pytest.raises(RuntimeError), db.begin_nested():
                    actor.send("dropped")
                    with db.begin_nested():
                        actor.send("released, and dropped with what is around it")
                    give_up()
                actor.send("kept, too")
            # Below the session.
            savepoint = db.connection().begin_nested()
            actor.send("dropped by the connection")
            with db.connection().begin_nested():
                actor.send("released, and dropped with what is around it")
            savepoint.rollback()
            outer = db.begin_nested()
            actor.send("dropped")
            db.begin_nested()
            actor.send("dropped with an inner one open")
            outer.rollback()
            with pytest.raises(RuntimeError), db.begin_nested():
                actor.send("dropped, with a savepoint that was made after it")
                db.execute(insert(1))
                give_up()
            actor.send("last")
        assert arguments(here) == ["first", "kept", "kept, too", "last"]

    def test_each_commit_in_a_block_sends_what_came_before_it(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with pytest.raises(RuntimeError), tenant_context(A), transaction() as db:
            actor.send(1)
            db.commit()
            assert arguments(here) == [1]
            actor.send(2)
            db.rollback()
            actor.send(3)
            db.commit()
            assert arguments(here) == [1, 3]
            with db.begin():
                actor.send(4)
            assert arguments(here) == [1, 3, 4]
            actor.send(5)
            raise RuntimeError
        assert arguments(here) == [1, 3, 4]

    def test_a_transaction_inside_another_sends_its_own(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with pytest.raises(RuntimeError), tenant_context(A), transaction():
            actor.send("outer")
            with transaction():
                actor.send("inner")
            assert arguments(here) == ["inner"]
            raise RuntimeError
        assert arguments(here) == ["inner"]

    def test_what_is_sent_while_objects_are_flushed_by_the_commit_goes_with_it(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction() as db:
            db.execute(insert(1))
            event.listen(db, "before_commit", lambda _: actor.send("while it commits"))
        assert arguments(here) == ["while it commits"]

    def test_hooks_after_its_end_send_at_once(self, here: Side, database: Database) -> None:
        """There is nothing any more with which it could leave, and nobody who would notice."""
        actor = here.actor(lambda _: None)

        def send_in(db: Session, *hooks: str) -> None:
            for hook in hooks:
                event.listen(db, hook, lambda *_, hook=hook: actor.send(hook))

        async def run() -> None:
            async with transaction() as db:
                send_in(db.sync_session, *committed)
                await db.execute(insert(2))
            await session.dispose_async()

        committed = ["after_commit", "after_transaction_end"]
        with tenant_context(A):
            with transaction() as db:
                send_in(db, "after_rollback")
                db.rollback()
                assert arguments(here) == ["after_rollback"]
                send_in(db, *committed)
                actor.send("with it")
                db.execute(insert(1))
            assert sorted(arguments(here)) == sorted(["after_rollback", *committed, "with it"])
            here.client.flushall()
            asyncio.run(run())
        assert arguments(here) == committed
        assert orders(database) == [1, 2]

    def test_another_thread_sends_at_once(self, here: Side) -> None:
        actor = here.actor(lambda _: None)
        with pytest.raises(RuntimeError), tenant_context(A), transaction():

            def send() -> None:
                with tenant_context(A):
                    actor.send("another's")

            other = threading.Thread(target=send)
            other.start()
            other.join()
            assert arguments(here) == ["another's"]
            ours_too = threading.Thread(target=contextvars.copy_context().run, args=(actor.send, "in our name"))
            ours_too.start()
            ours_too.join()
            raise RuntimeError
        assert arguments(here) == ["another's"]

    def test_once_it_is_left_its_context_sends_at_once(self, here: Side) -> None:
        """As a task does that was begun in the block and outlives it."""
        actor = here.actor(lambda _: None)
        with tenant_context(A), transaction():
            context = contextvars.copy_context()
        context.run(actor.send, 1)
        assert arguments(here) == [1]

    def test_async(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)

        async def run() -> None:
            with tenant_context(A):
                async with transaction() as db:
                    await db.execute(insert(1))
                    actor.send(1)
                    async with db.begin_nested() as savepoint:
                        actor.send("dropped")
                        await savepoint.rollback()
                    await asyncio.to_thread(actor.send, 2)
                    assert queued(here) == []
                assert arguments(here) == [1, 2]
                with pytest.raises(RuntimeError):
                    async with operator_transaction():
                        actor.send("dropped")
                        raise RuntimeError
                async with transaction() as db:
                    actor.send(3)
                    await db.commit()
                    actor.send(4)
            await session.dispose_async()

        asyncio.run(run())
        eventually(lambda: sorted(arguments(here)) == [1, 2, 3, 4])
        eventually(lambda: rows(database) == [])

    def test_a_job_that_left_one_open_does_not_keep_what_the_next_sends(self, here: Side) -> None:
        left: list[OpenTransaction] = []
        child = here.actor(lambda _: None)

        def job(n: int) -> None:
            if n == 1:
                left.append(OpenTransaction(Session(), A))
            else:
                child.send_with_options(args=("sent",), delay=60_000)

        actor = here.actor(job)
        here.send(actor, 1)
        here.send(actor, 2)
        with here.working(threads=1):
            eventually(lambda: here.client.hlen(f"dramatiq:{QUEUE}.DQ.msgs"))
        assert left[0].session is not None


class TestTenants:
    def test_messages_of_several_tenants_leave_with_an_operators_transaction(
        self, here: Side, database: Database
    ) -> None:
        actor = here.actor(lambda _: None)
        everybodys = here.actor(lambda _: None, tenant_scoped=False)
        relay_of(here)._behind = True  # so that the rows are to be seen
        with operator_transaction():
            with tenant_context(A):
                actor.send(1)
            with tenant_context(B):
                actor.send(2)
            everybodys.send(3)
            with tenant_context(A):
                actor.send(4)
            assert rows(database) == []
        eventually(lambda: arguments(here) == [1, 2, 3, 4])

    def test_another_tenants_message_may_leave_with_a_tenants_transaction(self, here: Side, database: Database) -> None:
        """As it may be sent outside; and the transaction is its tenant's again when constraints are checked."""
        with psycopg.connect(database.admin_url) as admin:
            admin.execute(
                """
                CREATE OR REPLACE FUNCTION whose() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN
                    IF current_setting('app.current_tenant_id') <> 'aaaaaaaa-0000-4000-8000-000000000001' THEN
                        RAISE 'another tenant: %', current_setting('app.current_tenant_id');
                    END IF;
                    RETURN NULL;
                END $$
                """
            )
            admin.execute(
                "CREATE CONSTRAINT TRIGGER whose AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW EXECUTE FUNCTION whose()"
            )
        actor = here.actor(lambda _: None)
        everybodys = here.actor(lambda _: None, tenant_scoped=False)
        try:
            with tenant_context(A), transaction() as db:
                db.execute(insert(1))
                with tenant_context(B):
                    actor.send(1)
                everybodys.send(2)
        finally:
            with psycopg.connect(database.admin_url) as admin:
                admin.execute("DROP TRIGGER whose ON orders")
        assert [(message.args[0], message.options.get("tenant_id")) for message in queued(here)] == [
            (1, str(B)),
            (2, None),
        ]

    def test_without_an_operators_credential_a_process_removes_and_relays_its_own(
        self, here: Side, database: Database
    ) -> None:
        session.configure(database.worker_url)
        actor = here.actor(lambda _: None)
        others, of_nobody_here = _leave_behind(database, B), _leave_behind(database, C)
        for tenant in (A, B, A):
            with tenant_context(tenant), transaction():
                actor.send(str(tenant))
        assert len(arguments(here)) == 3
        assert not relay_of(here)._can_see_all()
        # What a sender of the same tenant left that died is taken along; of others nothing is seen.
        eventually(lambda: [row[3] for row in rows(database)] == [of_nobody_here])
        assert arguments(here)[3:] == [others]
        relay_of(here)._behind = True
        with tenant_context(A), transaction():
            actor.send("late")
        eventually(lambda: arguments(here)[4:] == ["late"])
        eventually(lambda: [row[3] for row in rows(database)] == [of_nobody_here])


def _leave_behind(database: Database, tenant: UUID, **columns: Any) -> str:
    """Leave a row behind, as a process does that dies right after the commit; return its message id."""
    redis_id, message_id = str(uuid4()), str(uuid4())
    message: Message[Any] = Message(
        queue_name=QUEUE,
        actor_name="test.nobody",
        args=(message_id,),
        kwargs={},
        options={"redis_message_id": redis_id, "tenant_id": str(tenant)},
        message_id=message_id,
    )
    values = {
        "tenant_id": tenant,
        "queue": QUEUE,
        "redis_id": redis_id,
        "message_id": message_id,
        "actor": "test.nobody",
        "message": message.encode(),
        **columns,
    }
    with psycopg.connect(database.admin_url) as admin:
        names, places = ", ".join(values), ", ".join(["%s"] * len(values))
        admin.execute(f"INSERT INTO worker_outbox ({names}) VALUES ({places})", list(values.values()))
    return message_id


class TestDeaths:
    def test_whoever_dies_wherever_what_is_committed_is_run_once(
        self, here: Side, database: Database, redis_url: str
    ) -> None:
        command = [sys.executable, "-m", "tests.integration.dying_senders"]
        environment = {**os.environ, **database.environment(), "REDIS_URL": redis_url}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout.strip() == str([-9] * (len(SENDERS) + len(RELAYS))), done.stderr
        # Those that died before COMMIT have sent nothing.
        committed = orders(database)
        assert committed == list(range(3, len(SENDERS) + 1))
        ran: list[int] = []
        actor = here.actor(ran.append, actor_name="test.dying")
        wanted = {10 * n + m for n in committed for m in range(3)}
        # One more, which none of those relays has got.
        ran_too: list[str] = []
        here.actor(ran_too.append, actor_name="test.nobody")
        left = _leave_behind(database, A)
        with here.working(threads=1):
            # Their rows are relayed by a worker, or removed where Redis has the messages.
            eventually(lambda: set(ran) == wanted and ran_too == [left] and rows(database) == [])
            here.send(actor, 0)
            eventually(lambda: 0 in ran)
        assert len(ran) == len(wanted) + 1
        # Each in its order.
        assert all(ran.index(n) < ran.index(n + 1) for n in wanted if n + 1 in wanted)

    def test_a_message_that_has_run_is_not_relayed_again(self, here: Side, database: Database) -> None:
        """By a relay that had read its row before others relayed, ran and removed it."""
        ran: list[str] = []
        here.actor(ran.append, actor_name="test.nobody")
        sent = [_leave_behind(database, A) for _ in range(2)]
        slow = Relay(here.broker.run)  # type: ignore[attr-defined]
        slow.get_ready()
        with operator_transaction() as db:
            read = outbox.waiting(db, grace=0, limit=10, bytes_=1_000_000)
        assert [one.message_id for one in read] == sent
        with here.working():
            eventually(lambda: sorted(ran) == sorted(sent) and rows(database) == [])
        said = slow._put(slow.not_after(), [relay._Read(one, one.message) for one in read])
        assert said == [1, 1]
        # Nor later, when Redis has forgotten that: by then it is too late.
        ttl: list[int] = [here.client.ttl(f"dramatiq:__dramaturg__.replay.{one.redis_id}") for one in read]
        assert all(relay.TOO_LATE / 1_000 < each <= relay.REMEMBER_REMOVED for each in ttl)
        for one in read:
            here.client.delete(f"dramatiq:__dramaturg__.replay.{one.redis_id}")
        assert slow._put(slow.not_after() - 2 * relay.TOO_LATE, [relay._Read(one, one.message) for one in read]) == []
        assert queued(here) == []

    def test_relays_at_the_same_time_put_each_once_and_in_order(
        self, here: Side, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "AT_ONCE", 7)
        ids = [_leave_behind(database, A) for _ in range(40)]
        relays = [Relay(here.broker.run) for _ in range(4)]  # type: ignore[attr-defined]

        def run(one: Relay) -> None:
            # Without turns, as if each had lost its own.
            one.get_ready()
            one._relay(operator_transaction, grace=0, may_go_on=one._ask_time)

        threads = [threading.Thread(target=run, args=(one,)) for one in relays]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert arguments(here) == ids
        assert rows(database) == []

    def test_one_relays_at_a_time(self, here: Side, database: Database) -> None:
        _leave_behind(database, A)
        first, second = (Relay(here.broker.run) for _ in range(2))  # type: ignore[attr-defined]
        assert first._turn()
        assert not second.relay_all(grace=0)
        assert queued(here) == []
        assert first.relay_all(grace=0)
        assert len(queued(here)) == 1
        assert second.relay_all(grace=0)
        # Of their own accord they look once in a while, whoever it is.
        assert first.relay_all(grace=0, quiet=60_000)
        assert not second.relay_all(grace=0, quiet=60_000)


class TestOutages:
    def test_while_redis_is_away_it_waits_and_then_goes_in_order(
        self, database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
    ) -> None:
        with CutWire(redis_url) as wire:
            here = side(ours, wire.url)
            actor = here.actor(lambda _: None)
            with tenant_context(A), transaction():
                actor.send(0)
            wire.down()
            for n in range(1, 4):
                with tenant_context(A), transaction():
                    actor.send(n)
            assert [row[0] for row in rows(database)][-3:] == [A] * 3
            wire.up()
            eventually(lambda: arguments(here) == [0, 1, 2, 3])
            eventually(lambda: rows(database) == [])
            # And goes at once again.
            eventually(lambda: not relay_of(here)._behind)
            with tenant_context(A), transaction():
                actor.send(4)
            assert arguments(here) == [0, 1, 2, 3, 4]

    def test_a_process_that_begins_while_redis_is_away_can_send(
        self, database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
    ) -> None:
        with CutWire(redis_url) as wire:
            wire.down()
            here = side(ours, wire.url)
            actor = here.actor(lambda _: None)
            with tenant_context(A), transaction():
                actor.send(1)
            wire.up()
            eventually(lambda: arguments(here) == [1])

    @pytest.mark.parametrize("fate", ["answer", "command"])
    def test_what_is_lost_on_the_way_to_redis_and_back(
        self, fate: str, database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
    ) -> None:
        with CutWire(redis_url) as wire:
            here = side(lambda url: ours(url, REDIS_TIMEOUT="0.3"), wire.url)
            ran: list[int] = []
            actor = here.actor(ran.append)
            with tenant_context(A), transaction():
                actor.send(0)
            (wire.lose_answer_to if fate == "answer" else wire.lose)(marker_of(here, "relay"))
            with tenant_context(A), transaction():
                actor.send(1)
            assert wire.lost.wait(10)
            with here.working():
                eventually(lambda: sorted(ran) == [0, 1] and rows(database) == [])

    def test_a_commit_whose_answer_is_lost_is_sent_all_the_same(self, here: Side, database: Database) -> None:
        ran: list[int] = []
        actor = here.actor(ran.append)
        with CutWire(database.worker_url) as wire:
            session.configure(wire.url, operator_database_url=database.operator_url)
            with pytest.raises(Exception, match="connection"), tenant_context(A), transaction() as db:
                db.execute(insert(1))
                actor.send(1)
                wire.lose_answer_to(b"COMMIT")
            assert orders(database) == [1]
            with here.working():
                eventually(lambda: ran == [1] and rows(database) == [])
            session.dispose()

    def test_rows_are_removed_once_postgres_is_back(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with CutWire(database.operator_url) as wire:
            session.configure(database.worker_url, operator_database_url=wire.url)
            wire.down()
            with tenant_context(A), transaction():
                actor.send(1)
            assert arguments(here) == [1]
            eventually(lambda: relay_of(here)._said)
            assert len(rows(database)) == 1
            wire.up()
            eventually(lambda: rows(database) == [])
            session.dispose()


class TestWhatCannotBeRelayed:
    def test_it_becomes_a_failed_job_and_keeps_nothing_else_from_being_relayed(
        self, database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
    ) -> None:
        here = side(lambda url: ours(url, FAILED_JOB_KEYS=generate()), redis_url)
        no_key = _leave_behind(database, A, message=b"dramaturg-sealed:0123456789abcdef:gAAAA")
        no_queue = _leave_behind(database, A, queue="nobodys")
        too_old = _leave_behind(database, B, written_at="2020-01-01T00:00Z")
        good = _leave_behind(database, A)
        with operator_transaction() as db:
            # Its key is needed still.
            assert sealed_with(db) == {"0123456789abcdef": 1, None: 3}
        relay_of(here).relay_all(grace=0)
        assert arguments(here) == [good]
        # Other processes may know the key and the queue.
        assert {row[3] for row in rows(database)} == {no_key, no_queue}
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("UPDATE worker_outbox SET written_at = now() - interval '1 hour'")
        relay_of(here).relay_all(grace=0)
        assert rows(database) == []
        assert arguments(here) == [good]
        with psycopg.connect(database.admin_url) as admin:
            failed = {
                row[0]: row[1:]
                for row in admin.execute(
                    "SELECT task_id, tenant_id, task_name, queue, error_type, exception_class, error_message"
                    " FROM worker_failed_jobs"
                )
            }
            kept = admin.execute("SELECT count(*) FROM worker_failed_job_originals").fetchone()
        assert failed.keys() == {no_key, no_queue, too_old}
        assert failed[no_key][:5] == (A, "test.nobody", QUEUE, "configuration_error", "db.errors.KeyMissing")
        assert "FAILED_JOB_KEYS does not hold the key '0123456789abcdef'" in failed[no_key][5]
        assert failed[no_queue][3:5] == ("configuration_error", "middleware.relay.UnknownQueue")
        assert failed[too_old][:1] + failed[too_old][3:4] == (B, "expired")
        assert kept == (3,)

    def test_what_is_no_message_is_found_out_where_it_is_fetched(self, here: Side, database: Database) -> None:
        _leave_behind(database, A, message=b"not JSON")
        with here.working():
            eventually(lambda: here.failures)
        (failure,) = here.failures
        assert failure.error_type == "undecodable"
        assert failure.original == b"not JSON"

    def test_one_that_cannot_be_recorded_either_waits(self, here: Side, database: Database) -> None:
        def fail(_: object) -> None:
            raise OSError

        _leave_behind(database, A, queue="nobodys", written_at="2020-01-01T00:00Z")
        good = _leave_behind(database, A)
        Relay(here.broker.run, record=fail).relay_all(grace=0)  # type: ignore[attr-defined]
        assert arguments(here) == [good]
        assert len(rows(database)) == 1
        # It was withdrawn before, so nobody relays it any more: what remains is to say so.
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("UPDATE worker_outbox SET queue = %s, written_at = now()", [QUEUE])
        relay_of(here).relay_all(grace=0)
        assert arguments(here) == [good]
        assert rows(database) == []
        with psycopg.connect(database.admin_url) as admin:
            assert admin.execute("SELECT exception_class FROM worker_failed_jobs").fetchall() == [
                ("middleware.relay.Withdrawn",)
            ]

    def test_a_message_of_any_size_is_relayed(self, here: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay, "BYTES_AT_ONCE", 1_000)
        actor = here.actor(lambda _: None)
        sent = ["x" * size for size in (10, 990, 3_000, 10, 10)]
        for behind in (False, True):
            relay_of(here)._behind = behind
            with tenant_context(A), transaction():
                for one in sent:
                    actor.send(one)
            eventually(lambda: arguments(here) == sent)
            here.client.delete(f"dramatiq:{QUEUE}")

    def test_messages_are_sealed_where_there_are_keys(
        self, database: Database, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
    ) -> None:
        here = side(lambda url: ours(url, FAILED_JOB_KEYS=generate()), redis_url)
        actor = here.actor(lambda _: None)
        seen: list[bytes] = []
        with tenant_context(A), transaction() as db:
            actor.send("s3cret")
            db.commit()
            seen = [bytes(one) for one in db.execute(text("SELECT message FROM worker_outbox")).scalars()]
        assert arguments(here) == ["s3cret"]
        assert len(seen) == 1
        assert seen[0].startswith(b"dramaturg-sealed:")
        assert b"s3cret" not in seen[0]
        relay_of(here)._behind = True
        with tenant_context(A), transaction():
            actor.send("from the table")
        eventually(lambda: arguments(here) == ["s3cret", "from the table"])

    def test_without_the_table_it_says_so_and_commits_nothing(self, here: Side, database: Database) -> None:
        actor = here.actor(lambda _: None)
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("ALTER TABLE worker_outbox RENAME TO elsewhere")
        try:
            with (
                pytest.raises(ConfigurationError, match="run `worker migrate`, or set OUTBOX=no"),
                tenant_context(A),
                transaction() as db,
            ):
                db.execute(insert(1))
                actor.send(1)
        finally:
            with psycopg.connect(database.admin_url) as admin:
                admin.execute("ALTER TABLE elsewhere RENAME TO worker_outbox")
        assert orders(database) == []
        assert queued(here) == []


class TestOperators:
    def test_what_waits_is_shown_and_can_be_purged_for_good(
        self, here: Side, database: Database, redis_url: str, worker: CommandLine
    ) -> None:
        on: dict[str, Any] = {"REDIS_URL": redis_url}
        _leave_behind(database, A)
        _leave_behind(database, A, queue=f"{QUEUE}.DQ")
        others = _leave_behind(database, B)
        with operator_transaction() as db:
            read = outbox.waiting(db, grace=0, limit=1, bytes_=1)
        listed = {one["name"]: one["outbox"] for one in worker.json("queues", "list", **on)}
        assert (listed[QUEUE], listed["llm"]) == (3, 0)
        assert f"{QUEUE}: 3 messages in the outbox, not in Redis yet, for " in worker("queues", "list", **on).stdout
        refused = worker("queues", "purge", QUEUE, "--tenant", str(A), status=1, **on).stderr
        assert f"2 messages of tenant {A} that wait for queue {QUEUE} in the outbox" in refused
        assert len(rows(database)) == 3
        done = worker.json("queues", "purge", QUEUE, "--actor", "nobody", "--tenant", str(A), "--yes", **on)
        assert done["outbox"] == 2
        assert [row[3] for row in rows(database)] == [others]
        # Somebody had read one of them and was about to relay it.
        late = Relay(here.broker.run)  # type: ignore[attr-defined]
        late.get_ready()
        assert late._put(late.not_after(), [relay._Read(one, one.message) for one in read]) == [0]
        assert queued(here) == []
        assert "1 waiting message (1 in attribution)" in worker("tenants", "offboard", str(B), "--dry-run", **on).stdout
        done = worker.json("tenants", "offboard", str(B), "--yes", **on)
        assert done["messages"] == {QUEUE: 1}
        assert rows(database) == []
        with psycopg.connect(database.admin_url) as admin:
            events = admin.execute(
                "SELECT tenant_id, before -> 'outbox' FROM worker_failed_job_events WHERE event = %s ORDER BY id",
                [PURGED],
            ).fetchall()
        # That of a tenant that is off-boarded goes with it.
        assert events == [(A, {QUEUE: 2})]

    def test_a_deployment_is_checked_for_it(self, here: Side, database: Database) -> None:
        def findings(url: str) -> list[tuple[str, str]]:
            with engine(url).connect() as connection:
                return [(one.status, one.found) for one in check_outbox({"DATABASE_URL": connection})]

        _leave_behind(database, A)
        assert findings(database.operator_url) == [("ok", "1 messages wait in the outbox")]
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("UPDATE worker_outbox SET written_at = now() - interval '1 hour'")
        ((status, found),) = findings(database.operator_url)
        assert status == "error"
        assert found.startswith("1 messages wait in the outbox, the oldest for 3,60")
        assert findings(database.worker_url) == []
        assert findings(database.owner_url)[0][0] == "error"


def test_in_a_stub_it_leaves_with_the_transaction_too(database: Database, stub_broker: TestBroker) -> None:
    """Which needs no table: for the tests of applications."""
    actor = dramatiq.actor(broker=stub_broker, queue_name=QUEUE, actor_name="test.stub")(lambda _: None)
    queue = stub_broker.queues[QUEUE]
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("ALTER TABLE worker_outbox RENAME TO elsewhere")
    try:
        with pytest.raises(RuntimeError), tenant_context(A), transaction() as db:
            actor.send(1)
            db.commit()
            assert queue.qsize() == 1
            actor.send(2)
            actor.send_with_options(args=(3,), now=True)
            assert queue.qsize() == 2
            raise RuntimeError
    finally:
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("ALTER TABLE elsewhere RENAME TO worker_outbox")
    sent = [Message.decode(queue.get_nowait()) for _ in range(queue.qsize())]
    assert [message.args[0] for message in sent] == [1, 3]
    assert "now" not in sent[1].options
