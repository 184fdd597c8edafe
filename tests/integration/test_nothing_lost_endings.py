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
from dramatiq.errors import ConnectionClosed

from db import failed_jobs
from db.failures import Ending
from db.tenancy import current_tenant
from middleware.dead_letters import DeadLetters
from middleware.failure_endings import FailureEndings
from middleware.lossless_broker import tell_end
from middleware.shared_starts import SharedStarts
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept
from tests.integration.test_failed_jobs import a_failure, rows
from tests.servers import Database
from tests.waiting import eventually
from worker.broker import make_broker
from worker.settings import Settings

OWN = "dramatiq:__dramaturg__."


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


def ours_again(client: redis.Redis, actor: dramatiq.Actor[..., Any]) -> Side:
    """Another process' broker, which knows ``actor``, too."""
    url = "redis://127.0.0.1:{port}/{db}".format(**client.connection_pool.connection_kwargs)
    made = Side(make_broker(Settings.load({"REDIS_URL": url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/x"})), [])
    made.actor(actor.fn, actor_name=actor.actor_name)
    return made


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


def test_of_what_has_a_row_redis_knows_that_it_has_run(
    side: Side, gate: Gate, client: redis.Redis, database: Database
) -> None:
    broker: Any = side.broker
    # As if Redis had been away a moment ago.
    broker._marks._not_before = float("inf")
    known: list[Any] = []
    gate.written = lambda: known.extend(client.smembers(f"{OWN}begun_before"))
    gate.open.set()

    def bad() -> None:
        raise ValueError("no")

    sent = side.send(side.actor(bad))
    with side.working(threads=1):
        eventually(lambda: kept(client) == 0)
        assert len(rows(database)) == 1
    assert known == [f"{QUEUE}:{sent.options['redis_message_id']}".encode()]
    assert not client.exists(f"{OWN}begun_before")


@pytest.mark.parametrize("keeper", [True, False])
@pytest.mark.parametrize("committed", [True, False])
def test_a_worker_that_is_lost_with_failures_leaves_no_suspects(
    side: Side,
    gate: Gate,
    client: redis.Redis,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    keeper: bool,
    committed: bool,
) -> None:
    lost: Any = side.broker
    starts = SharedStarts()
    starts.name(lost.broker_id)
    if keeper:
        lost._marks.share(starts)
    go_on, ran = threading.Event(), list[int]()

    def end(*_: Any) -> None:
        raise ConnectionClosed("away")

    lost.journal._end = end
    monkeypatch.setattr("middleware.failure_endings.STOP_WITHIN", 0.1)
    monkeypatch.setattr("middleware.lossless_broker.FLUSH_WITHIN", 0.1)
    if committed:
        gate.open.set()
    noted = f"{OWN}started.{lost.broker_id}"

    def bad(n: int) -> None:
        ran.append(n)
        assert go_on.wait(15)
        raise ValueError("no")

    actor = side.actor(bad)
    for n in range(2):
        side.send(actor, n)
    other = ours_again(client, actor)
    with side.working():
        # Long enough for Redis to know of them.
        eventually(lambda: client.hlen(noted) == 2)
        go_on.set()
        eventually(lambda: len(rows(database)) == 2 if committed else len(endings_of(side)._open) == 2)
        eventually(lambda: not client.exists(noted))
    # As if it had been killed there: it neither ends them nor beats any more.
    lost._heartbeat._stop.set()
    lost._heartbeat._left, lost._heartbeat._beaten_at = True, float("-inf")
    assert in_acks(client) == 2
    # What its keeper tells, and then another worker finds.
    tell_end(lost.run, starts, '{"status": -9, "peak": 1}')
    client.zadd(f"{OWN}alive", {lost.broker_id: 1})
    with other.working():
        eventually(lambda: committed or len(ran) == 4)
        assert not client.exists(f"{OWN}crashes", f"{OWN}suspects.{QUEUE}")
        gate.open.set()
        eventually(lambda: kept(client) == 0)
    other.close()
    assert len(rows(database)) == 2
    assert sorted(ran) == ([0, 1] if committed else [0, 0, 1, 1])


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
