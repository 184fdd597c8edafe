"""A failed message ends once its row is committed, and its thread goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import dramatiq
import psycopg
import pytest
import redis

from db import failed_jobs
from db.failures import Ending
from db.tenancy import current_tenant
from middleware.dead_letters import DeadLetters
from middleware.failure_endings import FailureEndings
from middleware.shared_starts import SharedStarts
from tests.integration.nothing_lost import TENANT, Side, in_acks, kept
from tests.integration.test_failed_jobs import a_failure, rows
from tests.servers import Database
from tests.waiting import eventually
from worker.broker import make_broker
from worker.settings import Settings


class Gate:
    """Holds up whoever writes failures until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        #: Called once they are written.
        self.written: Callable[[], object] = lambda: None

    def end_all(self, endings: Sequence[Ending], *more: Any) -> None:
        self.reached.set()
        assert self.open.wait(15)
        _end_all(endings, *more)
        self.written()


_end_all = failed_jobs.end_all


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr("db.failed_jobs.end_all", gate.end_all)
    return gate


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def side(redis_url: str, database: Database, gate: Gate) -> Iterator[Side]:
    """The broker of production, whose failures wait at the gate, and for longer than any test."""
    made = Side(
        make_broker(Settings.load({"REDIS_URL": redis_url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/x"})), []
    )
    endings_of(made)._writer.wait = 60
    yield made
    made.close()


def endings_of(side: Side) -> FailureEndings:
    return next(m for m in side.broker.middleware if isinstance(m, FailureEndings))


def test_a_thread_goes_on_while_the_row_is_written(
    side: Side, gate: Gate, client: redis.Redis, database: Database
) -> None:
    ran = threading.Event()

    def bad() -> None:
        raise ValueError("no")

    sent = side.send(side.actor(bad)).message_id
    with side.working(threads=1):
        assert gate.reached.wait(15)
        side.send(side.actor(lambda: ran.set()))
        # The only thread there is.
        assert ran.wait(15)
        eventually(lambda: kept(client) == 1)
        assert in_acks(client) == 1
        # Of the exception nothing is kept until then, and so nothing that the job had at hand.
        (ending,) = endings_of(side)._open
        assert ending.message._exception is None
        gate.open.set()
        eventually(lambda: kept(client) == 0)
        (row,) = rows(database)
    assert (row["task_id"], row["error_message"], row["tenant_id"]) == (sent, "no", TENANT)


def test_of_what_has_a_row_redis_knows_that_it_began(
    side: Side, gate: Gate, client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The journal tells of the first at once, and of the next when it has ended.
    monkeypatch.setattr("middleware.journal.INTERVAL", 15)
    broker: Any = side.broker
    broker._marks.share(SharedStarts())
    known: list[Any] = []
    gate.written = lambda: known.extend(client.hkeys(f"dramatiq:__dramaturg__.started.{broker.broker_id}"))
    gate.open.set()

    def bad() -> None:
        raise ValueError("no")

    ran = threading.Event()
    side.send(side.actor(lambda: ran.set()))
    with side.working(threads=1):
        assert ran.wait(15)
        sent = side.send(side.actor(bad))
        eventually(lambda: known)
        eventually(lambda: rows(database))
    assert f"attribution:{sent.options['redis_message_id']}".encode() in known


def test_a_worker_that_stops_waits_for_rows(
    side: Side, gate: Gate, client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = FailureEndings.after_worker_shutdown

    def after_threads_have_ended(endings: FailureEndings, *arguments: Any) -> None:
        gate.open.set()
        wait(endings, *arguments)

    monkeypatch.setattr("middleware.failure_endings.STOP_WITHIN", 15)
    monkeypatch.setattr(FailureEndings, "after_worker_shutdown", after_threads_have_ended)

    def bad() -> None:
        raise ValueError("no")

    side.send(side.actor(bad))
    with side.working():
        assert gate.reached.wait(15)
    assert len(rows(database)) == 1
    assert kept(client) == 0


def test_a_hook_of_another_is_called_when_the_message_has_ended(
    side: Side, gate: Gate, client: redis.Redis, database: Database
) -> None:
    seen: list[tuple[object, ...]] = []

    class Hook(dramatiq.Middleware):
        def after_nack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            error = str(message._exception)
            seen.append((threading.current_thread().name, current_tenant(), error, len(rows(database)), kept(client)))

    threads: list[str] = []

    def bad() -> None:
        threads.append(threading.current_thread().name)
        raise ValueError("no")

    gate.open.set()
    # Innermost: called first of all.
    side.broker.add_middleware(Hook())
    side.send(side.actor(bad))
    with side.working():
        eventually(lambda: seen)
    assert seen == [(threads[0], TENANT, "no", 1, 0)]


def test_beyond_the_bound_threads_wait(
    side: Side, gate: Gate, client: redis.Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("middleware.failure_endings.AT_MOST", 2)

    def bad(n: int) -> None:
        raise ValueError(f"number {n}")

    actor = side.actor(bad)
    for n in range(6):
        side.send(actor, n)
    ran = threading.Event()
    with side.working(threads=1):
        # The third is that of the thread itself.
        eventually(lambda: len(endings_of(side)._open) == 2 and gate.reached.is_set())
        side.send(side.actor(lambda: ran.set()))
        assert kept(client) == 7
        assert not ran.is_set()
        gate.open.set()
        eventually(lambda: kept(client) == 0)
    assert ran.is_set()
    assert sorted(row["error_message"] for row in rows(database)) == [f"number {n}" for n in range(6)]


def test_what_is_recorded_is_looked_up_by_index_from_the_first_row_on(database: Database) -> None:
    def reads() -> dict[str, tuple[int, int]]:
        with psycopg.connect(database.admin_url) as connection:
            found = connection.execute(
                "SELECT relname, idx_scan, seq_tup_read FROM pg_stat_user_tables"
                " WHERE relname IN ('worker_failed_job_deliveries', 'worker_failed_job_details')"
            ).fetchall()
        return {name: (lookups, read) for name, lookups, read in found}

    before = reads()
    for _ in range(8):
        failed_jobs.record_all([replace(a_failure(), tenant_id=TENANT) for _ in range(100)])
    eventually(lambda: all(lookups - before[name][0] >= 800 for name, (lookups, _) in reads().items()))
    # Not all of what was there before, for each.
    assert all(read - before[name][1] < 800 for name, (_, read) in reads().items())


@pytest.mark.parametrize("name", ["failed", "failures"])
def test_what_cannot_be_handed_in_goes_into_the_spool(
    side: Side, gate: Gate, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start, refused = threading.Thread.start, list[str]()

    def start_but_one(thread: threading.Thread) -> None:
        if thread.name == name and not refused:
            refused.append(name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_but_one)
    # What is in the spool stays there.
    monkeypatch.setattr("middleware.spool_drainer.SpoolDrainer.drain", lambda *_: 0)

    def bad() -> None:
        raise ValueError("no")

    actor = side.actor(bad)
    side.send(actor)
    with side.working(threads=1):
        eventually(lambda: kept(client) == 0)
        assert client.hlen("dramatiq:__dramaturg__.spool") == 1
        # The next one finds all as if nothing had been.
        gate.open.set()
        side.send(actor)
        eventually(lambda: kept(client) == 0)
        assert client.hlen("dramatiq:__dramaturg__.spool") == 1
    assert refused == [name]


def test_an_announcement_that_raises_keeps_no_message(
    side: Side, gate: Gate, client: redis.Redis, database: Database
) -> None:
    def raises(*_: Any) -> Any:
        raise RuntimeError("nobody listens")

    letters: Any = next(m for m in side.broker.middleware if isinstance(m, DeadLetters))
    letters._announce = raises
    gate.open.set()

    def bad() -> None:
        raise ValueError("no")

    side.send(side.actor(bad))
    with side.working(threads=1):
        eventually(lambda: kept(client) == 0)
    assert len(rows(database)) == 1
