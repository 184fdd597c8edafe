"""Postgres is away while jobs fail: their failures wait in Redis, and are written once when it is back, by anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
import redis
from dramatiq.errors import ConnectionClosed
from loguru import logger
from psycopg.errors import ProgramLimitExceeded
from sqlalchemy.exc import OperationalError

from db import failed_jobs, session
from db.failure_writer import FailureWriter, HandedIn, PostgresAway
from db.failures import Ending, Failure
from db.sealing import Keys, generate
from middleware.failure_endings import FailureEndings
from middleware.heartbeat import Heartbeat
from middleware.lua_scripts import Scripts
from middleware.spool import Spool
from middleware.spool_drainer import SpoolDrainer
from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, put
from tests.integration.test_failed_jobs import a_failure, rows
from tests.servers import Database
from tests.waiting import eventually
from worker.broker import make_broker
from worker.settings import Settings

SPOOL = "dramatiq:__dramaturg__.spool"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.05)
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.05)
    monkeypatch.setattr("middleware.lossless_broker.BEAT", 0.1)
    monkeypatch.setattr("middleware.spool_drainer.AGAIN_AFTER", 0.05)
    monkeypatch.setattr("db.failure_writer.AGAIN_AFTER", 0.2)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def postgres(database: Database) -> Iterator[CutWire]:
    """The way to Postgres, which can be cut."""
    with CutWire(database.worker_url) as wire:
        session.configure(wire.url, operator_database_url=database.operator_url, connect_timeout=2)
        yield wire
        session.dispose()


def production(url: str, **settings: str) -> Side:
    """The broker of production, with the table of production."""
    environ = {"REDIS_URL": url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", **settings}
    return Side(make_broker(Settings.load(environ)), [])


@pytest.fixture
def make() -> Iterator[Callable[..., Side]]:
    made: list[Side] = []

    def one(url: str, **settings: str) -> Side:
        made.append(production(url, **settings))
        return made[-1]

    yield one
    for side in made:
        side.close()


def fail(n: int) -> None:
    raise ValueError(f"number {n}")


def recorded(database: Database) -> list[str]:
    return sorted(row["error_message"] for row in rows(database))


def test_jobs_go_on_and_failures_are_written_once_postgres_is_back(
    make: Callable[..., Side], redis_url: str, client: redis.Redis, postgres: CutWire, database: Database
) -> None:
    one = make(redis_url)
    ran: list[int] = []
    bad, good = one.actor(fail), one.actor(ran.append)
    postgres.down()
    sent = {one.send(bad, n).message_id for n in range(20)}
    put(client, "no-message", b"\x00{")
    one.send(good, 1)
    with one.working():
        eventually(lambda: kept(client) == 0)
        assert ran == [1]
        assert client.hlen(SPOOL) == 21
        assert rows(database) == []
        postgres.up()
        eventually(lambda: client.exists(SPOOL) == 0)
    found = rows(database)
    assert len(found) == 21
    assert sent < {row["task_id"] for row in found}
    assert recorded(database)[-20:] == sorted(f"number {n}" for n in range(20))
    assert {row["tenant_id"] for row in found if row["task_id"] in sent} == {TENANT}
    with psycopg.connect(database.admin_url) as admin:
        originals = [row[0] for row in admin.execute("SELECT original FROM worker_failed_job_originals")]
    assert len(originals) == 21
    assert b"\x00{" in originals
    assert client.exists(f"{SPOOL}.since", f"{SPOOL}.drainer") == 0


def test_with_keys_neither_the_spool_nor_the_table_holds_an_original_as_it_was(
    make: Callable[..., Side], redis_url: str, client: redis.Redis, postgres: CutWire, database: Database
) -> None:
    old, new = generate(), generate()
    one = make(redis_url, FAILED_JOB_KEYS=f"{new},{old}")
    # What people are shown is redacted; what was fetched is not.
    bad = one.actor(lambda password: fail(1), max_retries=0)
    postgres.down()
    with one.working():
        one.send(bad, "correct horse battery staple")
        eventually(lambda: client.hlen(SPOOL) == 1)
        entry: Any = client.hvals(SPOOL)[0]
        spooled = Failure.from_json(entry)
        postgres.up()
        eventually(lambda: client.exists(SPOOL) == 0)
    assert spooled.original is not None
    assert b"horse" not in entry
    assert b"horse" not in spooled.original
    assert spooled.task_args == ["[redacted]"]
    assert (spooled.title, [a["message"] for a in spooled.attempts or []]) == ("number *", ["number 1"])
    assert spooled.original_key == Keys.from_setting(new).current
    with psycopg.connect(database.admin_url) as admin:
        ((kept_original,),) = admin.execute("SELECT original FROM worker_failed_job_originals").fetchall()
    # However the table says which key it was.
    assert kept_original.endswith(spooled.original)
    opened = Keys.from_setting(f"{old},{new}").open(spooled.original, spooled.original_key)
    assert json.loads(opened)["args"] == ["correct horse battery staple"]


def test_the_spool_outlives_the_process(
    make: Callable[..., Side], redis_url: str, client: redis.Redis, postgres: CutWire, database: Database
) -> None:
    first = make(redis_url)
    bad = first.actor(fail)
    postgres.down()
    with first.working():
        first.send(bad, 7)
        eventually(lambda: client.hlen(SPOOL) == 1)
    postgres.up()
    # Another process, which knows no such actor.
    with make(redis_url).working():
        eventually(lambda: client.exists(SPOOL) == 0)
    assert recorded(database) == ["number 7"]


def test_a_postgres_that_does_not_answer_holds_a_failure_for_a_second(
    make: Callable[..., Side], redis_url: str, client: redis.Redis, database: Database
) -> None:
    locked = psycopg.connect(database.admin_url)
    # Its statements wait, as those on a server that does not answer do.
    locked.execute("LOCK TABLE worker_failed_jobs IN ACCESS EXCLUSIVE MODE")
    one = make(redis_url)
    bad = one.actor(fail)
    with one.working():
        one.send(bad, 1)
        eventually(lambda: client.hlen(SPOOL) == 1)
        locked.rollback()
        eventually(lambda: client.exists(SPOOL) == 0)
    locked.close()
    # The transaction that came late and the drainer both wrote it.
    assert recorded(database) == ["number 1"]


def test_at_the_bound_workers_wait_and_nothing_is_lost(
    make: Callable[..., Side], redis_url: str, client: redis.Redis, postgres: CutWire, database: Database
) -> None:
    one = make(redis_url, SPOOL_LIMIT="3")
    bad = one.actor(fail)
    postgres.down()
    for n in range(10):
        one.send(bad, n)
    with one.working(threads=2):
        # Both threads hold one that finds no room.
        eventually(lambda: client.hlen(SPOOL) == 3)
        assert kept(client) == 7
        postgres.up()
        eventually(lambda: kept(client) == 0)
        eventually(lambda: client.exists(SPOOL) == 0)
    assert recorded(database) == [f"number {n}" for n in range(10)]


@pytest.mark.parametrize("first", ["Redis", "Postgres"])
def test_both_away_and_back_in_either_order(
    make: Callable[..., Side], redis_url: str, client: redis.Redis, postgres: CutWire, database: Database, first: str
) -> None:
    with CutWire(redis_url) as wire:
        one = make(wire.url)
        # While it is in doubt no row is written, and a machine may be slow.
        one.broker._heartbeat._lease = 120_000  # type: ignore[attr-defined]
        started, go_on = threading.Event(), threading.Event()

        def job() -> None:
            started.set()
            go_on.wait(15)
            raise ValueError("both were away")

        one.send(one.actor(job))
        waits = threading.Event()
        finish = one.broker.run  # type: ignore[attr-defined]

        def watched(name: str, *arguments: Any) -> Any:
            try:
                return finish(name, *arguments)
            except ConnectionClosed:
                if name == "finish":
                    waits.set()
                raise

        one.broker.run = watched  # type: ignore[attr-defined]
        with one.working():
            assert started.wait(15)
            wire.down()
            postgres.down()
            go_on.set()
            assert waits.wait(15)
            if first == "Redis":
                wire.up()
                eventually(lambda: client.hlen(SPOOL) == 1)
                postgres.up()
            else:
                postgres.up()
                eventually(lambda: rows(database))
                assert kept(client) == 1
                wire.up()
            eventually(lambda: kept(client) == 0 and client.exists(SPOOL) == 0, seconds=30)
        assert recorded(database) == ["both were away"]
        assert in_acks(client) == 0


def test_a_lease_that_is_lost_while_the_row_is_written_writes_none(
    make: Callable[..., Side],
    redis_url: str,
    client: redis.Redis,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = make(redis_url)
    broker: Any = one.broker
    errors: list[Exception] = [ValueError("of the first copy")]
    write, given_up, runs_again = failed_jobs._of_one_tenant, threading.Event(), threading.Event()

    def frozen(*arguments: Any) -> Any:
        written = write(*arguments)
        if not given_up.is_set():
            # As after a freeze: another gives back what this process held, and this one beats again before it commits.
            other = Heartbeat(Scripts(client, "dramatiq"), "other", lease=8_000, grace=1, interval=3_600)
            other.cover("none")
            client.zadd("dramatiq:__dramaturg__.alive", {broker.broker_id: 1})
            other.beat()
            broker._heartbeat.beat()
            # And it has the message again, as another delivery, which runs.
            assert runs_again.wait(15)
            given_up.set()
        return written

    def job() -> None:
        if errors:
            raise errors.pop()
        runs_again.set()
        # Until that of the first copy has ended.
        eventually(lambda: given_up.is_set() and not endings._open)

    monkeypatch.setattr(failed_jobs, "_of_one_tenant", frozen)
    endings = next(m for m in broker.middleware if isinstance(m, FailureEndings))
    one.send(one.actor(job))
    with one.working():
        assert given_up.wait(15)
        eventually(lambda: kept(client) == 0)
    # The copy that was run instead succeeded.
    assert rows(database) == []
    assert client.exists(SPOOL) == 0


class TestDrain:
    """The drainer, without a worker."""

    def spool(self, client: redis.Redis, broker_id: str = "me") -> Spool:
        return Spool(Scripts(client, "dramatiq"), broker_id)

    def fill(self, client: redis.Redis, failures: Sequence[Ending]) -> None:
        for failure in failures:
            client.hset(SPOOL, f"{QUEUE}:{failure.delivery_id}", json.dumps(failure.as_json()))

    def test_many_of_many_tenants(self, client: redis.Redis, database: Database) -> None:
        failures = [a_failure(tenant_id=replace_tenant) for replace_tenant in (TENANT, None) for _ in range(400)]
        self.fill(client, failures)
        assert SpoolDrainer(failed_jobs.end_all).drain(self.spool(client)) == 800
        assert {row["task_id"] for row in rows(database)} == {f.task_id for f in failures}
        assert client.exists(SPOOL) == 0

    def test_one_at_a_time(self, client: redis.Redis) -> None:
        self.fill(client, [a_failure()])
        assert len(self.spool(client, "a").take(10)) == 1
        assert self.spool(client, "b").take(10) == {}
        self.spool(client, "a").leave()
        assert len(self.spool(client, "b").take(10)) == 1

    def test_twice_is_once(self, client: redis.Redis, database: Database) -> None:
        failure = a_failure()
        failed_jobs.record(failure)
        self.fill(client, [failure])
        assert SpoolDrainer(failed_jobs.end_all).drain(self.spool(client)) == 1
        assert len(rows(database)) == 1

    def test_what_cannot_be_recorded_or_read_stays_and_holds_up_nothing(
        self, client: redis.Redis, database: Database
    ) -> None:
        bad = a_failure(error_message="no")
        self.fill(client, [a_failure(), bad, a_failure()])
        client.hset(SPOOL, "unreadable", b"[]")

        def record_all(failures: Sequence[Ending]) -> None:
            if any(f.task_id == bad.task_id for f in failures):
                raise LookupError("every id it may have is taken")
            failed_jobs.end_all(failures)

        drainer = SpoolDrainer(record_all)
        assert drainer.drain(self.spool(client)) == 2
        assert len(rows(database)) == 2
        assert set(client.hkeys(SPOOL)) == {b"unreadable", f"{QUEUE}:{bad.delivery_id}".encode()}

    def test_the_alarm_says_how_many_wait_and_why(
        self, client: redis.Redis, postgres: CutWire, database: Database, make: Callable[..., Side], redis_url: str
    ) -> None:
        said: list[str] = []
        sink = logger.add(lambda m: said.append(m.record["message"]), level="WARNING")
        self.fill(client, [a_failure(), a_failure()])
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("ALTER TABLE worker_failed_jobs RENAME TO gone")
        try:
            with make(redis_url).working():
                eventually(lambda: any(s.startswith("2 failures wait in the spool in Redis (10000 may)") for s in said))
                with psycopg.connect(database.admin_url) as admin:
                    admin.execute("ALTER TABLE gone RENAME TO worker_failed_jobs")
                eventually(lambda: "2 failures of the spool are recorded; 0 are left" in said)
        finally:
            logger.remove(sink)
        (alarm,) = (s for s in said if "wait in the spool" in s)
        assert 'relation "worker_failed_jobs" does not exist' in alarm

    def test_a_worker_that_stops_ends_its_wait(self, redis_url: str, make: Callable[..., Side]) -> None:
        waiting: list[threading.Thread] = []

        class Endless(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                waiting.append(threading.current_thread())
                return super().wait()

        side = make(redis_url)
        side.broker.spool.in_use = Endless()  # type: ignore[attr-defined]
        with side.working():
            eventually(lambda: waiting)
        assert not waiting[0].is_alive()

    def test_the_command_shows_it_without_postgres(self, client: redis.Redis, redis_url: str) -> None:
        environ = {**os.environ, "REDIS_URL": redis_url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none"}

        def spool(*arguments: str) -> str:
            command = [sys.executable, "-m", "worker", "spool", *arguments]
            return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout

        assert "Nothing waits" in spool()
        self.fill(client, [a_failure(), a_failure(), a_failure(task_name="test.other", error_type="timeout")])
        client.set(f"{SPOOL}.since", 1_735_732_800)
        assert "3 failures wait for Postgres since 2025-01-01T12:00:00+00:00; 10,000 may." in spool()
        assert json.loads(spool("--json")) == {
            "size": 3,
            "since": "2025-01-01T12:00:00+00:00",
            "limit": 10_000,
            "groups": [
                {"task_name": "test.job", "error_type": "validation_error", "failures": 2},
                {"task_name": "test.other", "error_type": "timeout", "failures": 1},
            ],
        }

    def test_a_row_that_somebody_holds_holds_up_its_own_failure_alone(
        self, client: redis.Redis, database: Database
    ) -> None:
        held = a_failure()
        failed_jobs.record(held)
        again = replace(held, delivery_id="again", error_message="again")
        self.fill(client, [again, *(a_failure() for _ in range(20))])
        drainer = SpoolDrainer(failed_jobs.end_all)
        with psycopg.connect(database.admin_url) as operator:
            operator.execute(
                "UPDATE worker_failed_jobs SET remediation_notes = 'looking' WHERE task_id = %s", [held.task_id]
            )
            assert drainer.drain(self.spool(client)) == 20
            assert client.hlen(SPOOL) == 1
            operator.rollback()
        assert drainer.drain(self.spool(client)) == 1
        (row,) = (r for r in rows(database) if r["task_id"] == held.task_id)
        assert row["error_message"] == "again"

    def test_what_is_too_much_for_postgres_holds_up_nothing(self, client: redis.Redis, database: Database) -> None:
        huge = a_failure()
        self.fill(client, [a_failure(), huge, a_failure()])

        def record_all(failures: Sequence[Ending]) -> None:
            if any(f.task_id == huge.task_id for f in failures):
                raise OperationalError("INSERT", None, ProgramLimitExceeded("out of memory"))
            failed_jobs.end_all(failures)

        assert SpoolDrainer(record_all).drain(self.spool(client)) == 2
        assert client.hlen(SPOOL) == 1

    def test_what_another_version_spooled(self, client: redis.Redis, database: Database) -> None:
        failure = a_failure()
        data = {**failure.as_json(), "a field of the future": 1}
        del data["original"]
        client.hset(SPOOL, "x", json.dumps(data))
        assert SpoolDrainer(failed_jobs.end_all).drain(self.spool(client)) == 1
        assert [row["task_id"] for row in rows(database)] == [failure.task_id]

    def test_while_postgres_is_away_nothing_leaves_it(self, client: redis.Redis, postgres: CutWire) -> None:
        self.fill(client, [a_failure()])
        postgres.down()
        with pytest.raises(Exception, match=r"closed|refused|reset"):
            SpoolDrainer(failed_jobs.end_all).drain(self.spool(client))
        assert client.hlen(SPOOL) == 1
        assert client.exists(f"{SPOOL}.drainer") == 0


class TestWriter:
    def test_who_does_not_wait_is_told_of_a_whole_transaction(self) -> None:
        batches: list[int] = []
        told: list[tuple[int, BaseException | None]] = []
        go_on, first = threading.Event(), threading.Event()

        def record_all(failures: Sequence[Ending]) -> None:
            batches.append(len(failures))
            first.set()
            assert go_on.wait(15)

        def tell(handed: Sequence[HandedIn], error: BaseException | None) -> None:
            told.append((len(handed), error))

        writer = FailureWriter(record_all)
        writer.hand_in(HandedIn(a_failure(), tell))
        assert first.wait(15)
        unwanted = HandedIn(a_failure(), tell)
        for handed in [unwanted, *(HandedIn(a_failure(), tell) for _ in range(8))]:
            writer.hand_in(handed)
        # Somebody else takes care of it.
        unwanted.cancelled = True
        go_on.set()
        eventually(lambda: sum(count for count, _ in told) == 9)
        assert batches == [1, 8]
        assert told == [(1, None), (8, None)]

    def test_one_that_cannot_be_written_does_no_harm_to_those_handed_in_with_it(self) -> None:
        bad, gone = a_failure(), OperationalError("INSERT", None, ConnectionError("gone"))
        hold, begun = threading.Event(), threading.Event()
        told: dict[str, BaseException | None] = {}
        tried: list[int] = []

        def record_all(failures: Sequence[Ending]) -> None:
            tried.append(len(failures))
            begun.set()
            assert hold.wait(15)
            if len(tried) == 5:
                raise gone
            if bad in failures:
                raise LookupError("no")

        def tell(handed: Sequence[HandedIn], error: BaseException | None) -> None:
            told.update((one.ending.task_id, error) for one in handed)

        writer = FailureWriter(record_all)
        failures = [a_failure(), a_failure(), bad, a_failure(), a_failure()]
        for n, failure in enumerate(failures):
            writer.hand_in(HandedIn(failure, tell))
            if not n:
                assert begun.wait(15)
        hold.set()
        eventually(lambda: len(told) == 5)
        # One by one after the failure of all; and the last is not tried any more once Postgres is away.
        assert tried == [1, 4, 1, 1, 1]
        assert [type(told[f.task_id]) for f in failures] == [
            *(type(None), type(None), LookupError),
            *(OperationalError, OperationalError),
        ]
        with pytest.raises(PostgresAway, match="gone"):
            writer.hand_in(HandedIn(a_failure(), tell))

    def test_those_who_come_together_share_a_transaction(self) -> None:
        batches: list[int] = []
        go_on, first = threading.Event(), threading.Event()

        def record_all(failures: Sequence[Ending]) -> None:
            batches.append(len(failures))
            first.set()
            assert go_on.wait(15)

        writer = FailureWriter(record_all, wait=15)
        threads = [threading.Thread(target=writer.record, args=(a_failure(),)) for _ in range(9)]
        threads[0].start()
        assert first.wait(15)
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: writer._handed_in.qsize() == 8)
        go_on.set()
        for thread in threads:
            thread.join()
        assert batches == [1, 8]

    def test_one_that_cannot_be_written_does_no_harm_to_the_others(self) -> None:
        bad = a_failure()
        written: list[str] = []
        hold, begun = threading.Event(), threading.Event()

        def record_all(failures: Sequence[Ending]) -> None:
            begun.set()
            assert hold.wait(15)
            if bad in failures:
                raise LookupError("no")
            written.extend(f.task_id for f in failures)

        writer = FailureWriter(record_all, wait=15)
        outcomes: dict[str, str] = {}

        def hand_in(failure: Failure) -> None:
            try:
                writer.record(failure)
            except LookupError as e:
                outcomes[failure.task_id] = str(e)

        failures = [a_failure(), a_failure(), bad, a_failure()]
        threads = [threading.Thread(target=hand_in, args=(f,)) for f in failures]
        threads[0].start()
        assert begun.wait(15)
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: writer._handed_in.qsize() == 3)
        hold.set()
        for thread in threads:
            thread.join()
        assert outcomes == {bad.task_id: "no"}
        assert sorted(written) == sorted(f.task_id for f in failures if f is not bad)
