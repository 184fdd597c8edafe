"""Failures on their way into worker_failed_jobs, on real Postgres and Redis."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import dramatiq
import psycopg
import pytest
from dramatiq import Broker, Worker
from psycopg.rows import dict_row
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from db import failed_jobs
from db.errors import KeyMissing
from db.failed.originals import get_original, sealed_with
from db.failures import Failure
from db.sealing import Keys, generate
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.servers import Database
from tests.waiting import eventually
from worker.broker import make_broker
from worker.settings import Settings

A, B = UUID(int=0xA), UUID(int=0xB)


def a_failure(**changes: Any) -> Failure:
    message_id = str(uuid4())
    failure = Failure(
        delivery_id=str(uuid4()),
        task_id=message_id,
        task_name="test.job",
        queue="attribution",
        worker="host/1",
        task_args=[1, "two"],
        task_kwargs={"three": 3},
        tenant_id=A,
        error_type="validation_error",
        exception_class="ValueError",
        error_message="bad input",
        traceback="Traceback ...",
        retry_count=2,
        last_retry_at=datetime(2025, 1, 1, 11, tzinfo=UTC),
        correlation_id=uuid4(),
        failed_at=datetime(2025, 1, 1, 12, tzinfo=UTC),
    )
    return replace(failure, **changes)


def rows(database: Database) -> list[dict[str, Any]]:
    """All rows, as a superuser sees them, oldest first."""
    with psycopg.connect(database.admin_url, row_factory=dict_row) as connection:
        return connection.execute("SELECT * FROM worker_failed_jobs ORDER BY failed_at, id").fetchall()


def set_status(database: Database, row_id: UUID, status: str) -> None:
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE worker_failed_jobs SET status = %s WHERE id = %s", [status, row_id])


class TestWhichRow:
    def test_every_column_is_written(self, database: Database) -> None:
        failure = a_failure(note="found elsewhere")
        row_id = failed_jobs.record(failure)
        assert row_id == uuid5(NAMESPACE_URL, f"{failure.task_id}:test.job")
        elsewhere = {"delivery_id", "original", "original_key", "fingerprint", "title", "place", "attempts"}
        elsewhere |= {"replayed_row", "replay_item", "note"}
        expected = {name: getattr(failure, name) for name in Failure.__slots__ if name not in elsewhere}
        expected |= {"id": row_id, "status": "pending", "remediation_notes": "found elsewhere", "resolved_at": None}
        assert rows(database) == [expected]

    def test_the_original_is_kept_for_operators_alone(self, database: Database) -> None:
        original = bytes(range(256))
        row_id = failed_jobs.record(a_failure(original=original))
        with operator_transaction() as session:
            kept = session.execute(text("SELECT failed_job_id, tenant_id, original FROM worker_failed_job_originals"))
            assert kept.all() == [(row_id, A, original)]
        with tenant_context(A), pytest.raises(ProgrammingError, match="permission denied"), transaction() as session:
            session.execute(text("SELECT original FROM worker_failed_job_originals"))

    def test_a_row_that_had_no_original_gets_that_of_the_next_failure(self, database: Database) -> None:
        failure = a_failure()
        failed_jobs.record(failure)
        failed_jobs.record(replace(failure, delivery_id="again", original=b"{}"))
        with operator_transaction() as session:
            kept = session.execute(text("SELECT original FROM worker_failed_job_originals")).scalars().all()
        assert kept == [b"{}"]

    def test_many_at_once(self, database: Database) -> None:
        one = a_failure()
        failures = [
            *(a_failure(tenant_id=tenant) for tenant in (B, None, A, B, A)),
            one,
            replace(one, delivery_id="the same message failed again", error_message="the last"),
            replace(one, tenant_id=B, delivery_id="theirs"),
        ]
        for _ in range(2):
            failed_jobs.record_all(failures)
            found = [(str(row["tenant_id"]), row["task_id"]) for row in rows(database)]
            distinct = {(str(f.tenant_id), f.task_id) for f in failures}
            assert sorted(found) == sorted(distinct)
            (row,) = (r for r in rows(database) if (r["task_id"], r["tenant_id"]) == (one.task_id, A))
            assert row["error_message"] == "the last"

    def test_many_at_once_of_which_postgres_will_never_take_one(self, database: Database) -> None:
        bad = a_failure(tenant_id=B, error_message="nul \x00")
        failed_jobs.record_all([a_failure(), bad, a_failure(tenant_id=None)])
        (row,) = (r for r in rows(database) if r["tenant_id"] == B)
        assert row["error_message"] == "(not recordable; see the worker's log)"
        assert len(rows(database)) == 3

    def test_many_at_once_are_all_or_none(self, database: Database) -> None:
        with pytest.raises(ProgrammingError, match="worker_failed_job_deliveries"):
            with psycopg.connect(database.admin_url) as admin:
                admin.execute("REVOKE INSERT ON worker_failed_job_deliveries FROM app_user")
            failed_jobs.record_all([a_failure(), a_failure(tenant_id=B)])
        assert rows(database) == []

    def test_twice_is_once(self, database: Database) -> None:
        failure = a_failure()
        first = failed_jobs.record(failure)
        set_status(database, first, "in_progress")
        assert failed_jobs.record(replace(failure, error_message="told again")) == first
        (row,) = rows(database)
        assert (row["status"], row["error_message"]) == ("in_progress", "bad input")

    def test_a_redelivery_of_a_resolved_failure_adds_nothing(self, database: Database) -> None:
        failure = a_failure()
        first = failed_jobs.record(failure)
        set_status(database, first, "resolved")
        assert failed_jobs.record(failure) == first
        assert [r["status"] for r in rows(database)] == ["resolved"]

    @pytest.mark.parametrize("status", ["pending", "in_progress", "abandoned"])
    def test_another_delivery_returns_an_open_row_to_pending(self, database: Database, status: str) -> None:
        failure = a_failure()
        first = failed_jobs.record(failure)
        set_status(database, first, status)
        again = replace(failure, delivery_id="second", error_message="worse", retry_count=5)
        assert failed_jobs.record(again) == first
        (row,) = rows(database)
        assert (row["status"], row["error_message"], row["retry_count"]) == ("pending", "worse", 5)
        # And this delivery, told again, is known, too.
        set_status(database, first, "abandoned")
        failed_jobs.record(again)
        assert rows(database)[0]["status"] == "abandoned"

    def test_another_delivery_beside_a_resolved_row_is_a_new_row(self, database: Database) -> None:
        failure = a_failure()
        first = failed_jobs.record(failure)
        set_status(database, first, "resolved")
        again = replace(failure, delivery_id="second", failed_at=datetime(2025, 1, 2, tzinfo=UTC))
        second = failed_jobs.record(again)
        assert second == uuid5(NAMESPACE_URL, f"{failure.task_id}:test.job:second")
        assert failed_jobs.record(again) == second
        assert [(r["id"], r["status"]) for r in rows(database)] == [(first, "resolved"), (second, "pending")]

    def test_another_tenants_row_under_that_id_does_not_swallow_it(self, database: Database) -> None:
        failure = a_failure()
        theirs = failed_jobs.record(replace(failure, tenant_id=B, delivery_id="theirs"))
        mine = failed_jobs.record(failure)
        assert mine == uuid5(NAMESPACE_URL, f"{failure.task_id}:test.job:{A}")
        assert failed_jobs.record(failure) == mine
        assert {r["id"]: r["tenant_id"] for r in rows(database)} == {theirs: B, mine: A}

    def test_a_failure_without_tenant_is_seen_without_one_only(self, database: Database) -> None:
        row_id = failed_jobs.record(a_failure(tenant_id=None))

        def seen() -> list[UUID]:
            with transaction() as session:
                return [r.id for r in session.execute(psql("SELECT id FROM worker_failed_jobs"))]

        with tenant_context(None):
            assert seen() == [row_id]
        with tenant_context(A):
            assert seen() == []
        with operator_transaction() as session:
            assert session.execute(psql("SELECT count(*) FROM worker_failed_jobs")).scalar() == 1


def psql(text: str) -> Any:
    from sqlalchemy import text as sql

    return sql(text)


@contextmanager
def running(broker: Broker, threads: int) -> Iterator[Worker]:
    worker = Worker(broker, worker_timeout=100, worker_threads=threads)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop()
        broker.close()
        broker.client.close()  # type: ignore[attr-defined]


@pytest.fixture
def broker(database: Database, redis_url: str) -> Broker:
    """The broker of production on the test's servers."""
    settings = Settings.load({**database.environment(), "REDIS_URL": redis_url, "WORKER_NAME": "night-shift"})
    return make_broker(settings)


def declare(broker: Broker, fn: Callable[..., Any], **options: Any) -> dramatiq.Actor[..., Any]:
    options = {"max_retries": 0, **options}
    return dramatiq.actor(broker=broker, actor_name=f"test.{uuid.uuid4().hex}", queue_name="attribution", **options)(fn)


def drained(broker: Broker) -> bool:
    return bool(broker.do_qsize("attribution") == 0)  # type: ignore[attr-defined]


def test_sixty_four_threads_failing_at_once_lose_nothing(broker: Broker, database: Database) -> None:
    def job(n: int) -> None:
        raise ValueError(f"number {n}")

    actor = declare(broker, job)
    sent = {}
    for n in range(640):
        message = actor.send_with_options(args=(n,), tenant_id=(A, B)[n % 2])
        sent[message.message_id] = (n, (A, B)[n % 2])
    with running(broker, 64):
        eventually(lambda: drained(broker), seconds=60)
    found = {r["task_id"]: (r["task_args"][0], r["tenant_id"]) for r in rows(database)}
    assert found == sent
    assert {r["worker"].partition("/")[0] for r in rows(database)} == {"night-shift"}


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not telling")


def endless() -> None:
    endless()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("a\x00b", {"k\x00": "\ud800"}), ValueError("a\x00b\ud800")),
        ((float("nan"), float("-inf"), 10**4000), ValueError("x")),
        (("y" * 10_000_000,), ValueError("z" * 10_000_000)),
        ((1,), Mute()),
        ((1,), None),
        ((1,), ExceptionGroup("many", [ValueError("\x00")] * 1000)),
        ((1,), type("Long" * 100, (Exception,), {"__module__": "m" * 300})("x")),
    ],
    ids=["nul", "nan", "huge", "mute", "endless", "group", "name"],
)
def test_whatever_it_was_there_is_one_row(
    broker: Broker, database: Database, args: tuple[Any, ...], error: BaseException | None
) -> None:
    def job(*_: Any) -> None:
        if error is None:
            endless()
        else:
            raise error

    sent = declare(broker, job).send_with_options(args=args, tenant_id=A)
    with running(broker, 1):
        eventually(lambda: drained(broker), seconds=30)
    (row,) = rows(database)
    assert row["task_id"] == sent.message_id
    assert row["tenant_id"] == A


def test_details_that_postgres_refuses_do_not_cost_the_row(broker: Broker, database: Database) -> None:
    from middleware.dead_letters import DeadLetters

    class Lets(Exception):
        pass

    (dead_letters,) = (m for m in broker.middleware if isinstance(m, DeadLetters))
    # A redactor that lets a NUL through, as a bug of ours would.
    dead_letters.redact.text = lambda text, limit=None: text  # type: ignore[method-assign]

    def job() -> None:
        raise Lets("a\x00b")

    declare(broker, job).send_with_options(tenant_id=A)
    with running(broker, 1):
        eventually(lambda: drained(broker), seconds=30)
    (row,) = rows(database)
    assert row["error_message"] == "(not recordable; see the worker's log)"
    assert row["exception_class"].endswith("Lets")


def test_a_recorded_delivery_makes_no_row_again_whatever_became_of_its_own(database: Database) -> None:
    failure = a_failure()
    first = failed_jobs.record(failure)
    set_status(database, first, "resolved")
    later = replace(failure, delivery_id="second")
    second = failed_jobs.record(later)
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("DELETE FROM worker_failed_jobs WHERE id = %s", [first])
    assert failed_jobs.record(later) == second
    assert [r["id"] for r in rows(database)] == [second]


class TestOriginals:
    def test_are_kept_sealed_and_opened(self, database: Database) -> None:
        old, new = Keys.from_setting(generate()), Keys.from_setting(generate())
        raw = b'{"args": ["secret"]}'
        sealed, key_id = old.seal(raw)
        in_clear, encrypted = a_failure(original=raw), a_failure(original=sealed, original_key=key_id)
        ids = [failed_jobs.record(in_clear), failed_jobs.record(encrypted)]
        with operator_transaction() as s:
            assert [get_original(s, job_id, old) for job_id in ids] == [raw, raw]
            assert get_original(s, ids[0], None) == raw
            assert sealed_with(s) == {None: 1, key_id: 1}
            for keys in (None, new):
                with pytest.raises(KeyMissing, match=key_id):
                    get_original(s, ids[1], keys)
        with psycopg.connect(database.admin_url) as connection:
            kept = connection.execute(
                "SELECT original FROM worker_failed_job_originals WHERE failed_job_id = %s", [ids[1]]
            ).fetchone()
        assert kept is not None
        assert b"secret" not in kept[0]

    @pytest.mark.parametrize("raw", [b"dramaturg-sealed:0123456789abcdef:x", b"dramaturg-plain:x", b"\x00", b""])
    def test_that_look_like_something_else_come_back_as_they_were(self, database: Database, raw: bytes) -> None:
        job_id = failed_jobs.record(a_failure(original=raw))
        with operator_transaction() as s:
            assert get_original(s, job_id, None) == raw
