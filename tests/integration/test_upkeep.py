"""What keeps a deployment tidy by itself, on real Postgres."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import dramatiq
import psycopg
import pytest
from dramatiq.errors import ConnectionClosed
from loguru import logger

from db import failed_jobs
from db.alone import alone
from db.failed.expiry import expire
from db.failed.retention import set_rule
from db.once import once
from db.once_expiry import expire_once
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.nothing_lost import Side, ours
from tests.integration.test_failed_jobs import A, B, a_failure, rows, set_status
from tests.servers import Database
from worker import housekeeping, maintenance
from worker.housekeeping import sample_queues
from worker.maintenance import apply_retention
from worker.testing import TestBroker, stub_broker

__all__ = ["stub_broker"]

NOW = datetime.now(UTC)


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).rstrip("\n")), format="{message}")
    yield lines
    logger.remove(sink)


def an_answer(database: Database, tenant: Any, days: float) -> None:
    with psycopg.connect(database.admin_url) as admin:
        admin.execute(
            """
            INSERT INTO worker_llm_answers (
                tenant_id, window_start, window_end, model, model_version, fingerprint, language_model, answer,
                input_tokens, output_tokens, cost_microcents, call_id, answered_at
            ) VALUES (%s, '2025-01-01', '2025-02-01', 'linear', %s, 'f', 'm', 'x', 1, 1, 1, gen_random_uuid(), %s)
            """,
            [tenant, uuid4().hex, NOW - timedelta(days=days)],
        )


def remember(database: Database, days: float, message_id: str | None = None, key: str | None = None) -> None:
    with psycopg.connect(database.admin_url) as admin:
        recorded = f"key:{key}" if key else f"message:{message_id}"
        admin.execute(
            "INSERT INTO worker_once (tenant_id, key, message_id, recorded_at) VALUES (%s, %s, %s, %s)",
            [A, recorded, message_id, NOW - timedelta(days=days)],
        )


def remembered(database: Database) -> set[str]:
    with psycopg.connect(database.admin_url) as admin:
        return {str(key) for (key,) in admin.execute("SELECT key FROM worker_once").fetchall()}


def answers(database: Database) -> list[Any]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute("SELECT tenant_id FROM worker_llm_answers ORDER BY answered_at").fetchall()


def resolved(database: Database, days: float) -> None:
    row_id = failed_jobs.record(a_failure(failed_at=NOW - timedelta(days=days)))
    with psycopg.connect(database.admin_url) as admin:
        admin.execute(
            "UPDATE worker_failed_jobs SET status = 'resolved', resolved_at = failed_at WHERE id = %s", [row_id]
        )


def test_answers_are_kept_by_rules_of_their_own(database: Database) -> None:
    for tenant, days in ((A, 401), (A, 399), (B, 401), (B, 20)):
        an_answer(database, tenant, days)
    with operator_transaction() as session:
        set_rule(session, "answers", 10, by="ann", tenant_id=B)
    with tenant_context(A):
        assert expire(transaction, now=NOW, by="x").answers == 0
    assert expire(operator_transaction, now=NOW, by="x", dry_run=True).answers == 3
    assert expire(operator_transaction, now=NOW, by="x").answers == 3
    assert answers(database) == [(A,)]


def test_samples_that_keep_failing_are_one_row(
    database: Database, redis_url: str, side: Callable[..., Side], monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    one = side(ours, redis_url)
    monkeypatch.setattr(dramatiq, "get_broker", lambda: one.broker)

    def refuses(*_: Any, **__: Any) -> bool:
        raise ConnectionClosed("a secret")

    monkeypatch.setattr(housekeeping, "keep_sample", refuses)
    with pytest.raises(ConnectionClosed):
        sample_queues.fn()
    row_id = failed_jobs.record(a_failure(task_name=sample_queues.actor_name))
    sample_queues.fn()
    assert "the queues' depths are not kept, as a failed job says already: ConnectionClosed" in said
    # Once somebody has seen to it, it is news again.
    set_status(database, row_id, "resolved")
    with pytest.raises(ConnectionClosed):
        sample_queues.fn()


class TestOnce:
    def test_what_a_replay_may_ask_for_stays(self, database: Database) -> None:
        waits, long_id = a_failure(), a_failure(task_id="0" * 64)
        failed_jobs.record_all([waits, long_id])
        remember(database, 1_000, waits.task_id)
        remember(database, 1_000, waits.task_id, "its key")
        # The id of a message that was too long for a column, and which of the failed jobs is its nobody can tell.
        remember(database, 1_000, "f" * 64)
        remember(database, 1_000, "done")
        remember(database, 1_000, None, "outside of a job")
        remember(database, 80, "new")
        how: dict[str, Any] = {"now": NOW, "message_days": 90, "key_days": 90}
        assert expire_once(operator_transaction, **how) == (2, False)
        assert len(remembered(database)) == 4
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("DELETE FROM worker_failed_jobs")
        assert expire_once(operator_transaction, **how) == (3, False)
        assert remembered(database) == {"message:new"}

    def test_keys_are_for_ever_unless_said_otherwise(self, database: Database) -> None:
        with tenant_context(A), transaction():
            assert once("receipt:1")
        later = NOW + timedelta(days=4_000)
        done = expire_once(operator_transaction, now=later, message_days=90, key_days=None)
        assert (done, remembered(database)) == ((0, False), {"key:receipt:1"})
        assert expire_once(operator_transaction, now=later, message_days=None, key_days=90, batch=1) == (1, False)


class TestApplyRetention:
    def test_all_that_is_due_goes(self, database: Database, said: list[str]) -> None:
        for _ in range(3):
            resolved(database, 100)
        resolved(database, 80)
        an_answer(database, A, 500)
        remember(database, 100, "gone")
        apply_retention.fn(batch=2)
        assert len(rows(database)) == 1
        assert (answers(database), remembered(database)) == ([], set())
        assert any("retention removed 3 jobs, 0 payloads, 0 events, 1 answer, " in line for line in said)
        with psycopg.connect(database.admin_url) as admin:
            by = admin.execute(
                "SELECT DISTINCT changed_by FROM worker_failed_job_events WHERE event = 'purged'"
            ).fetchall()
        assert by == [("worker.maintenance.apply_retention",)]

    def test_one_at_a_time(self, database: Database, said: list[str]) -> None:
        resolved(database, 100)
        with alone(apply_retention.actor_name) as first:
            assert first
            # The other's work is something else's.
            with alone("another name") as other:
                assert other
            apply_retention.fn()
        assert len(rows(database)) == 1
        assert any("another process applies the rules of retention" in line for line in said)
        apply_retention.fn()
        assert rows(database) == []

    def test_what_removes_nothing_does_not_go_on_for_ever(
        self, database: Database, stub_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolved(database, 100)
        monkeypatch.setattr(maintenance, "_half_time", lambda: lambda: True)
        with pytest.raises(maintenance.NothingRemoved, match=r"before a batch of 2 was removed: smaller batches"):
            apply_retention.fn(batch=2)
        assert stub_broker.queues["maintenance.DQ"].qsize() == 0
        assert len(rows(database)) == 1

    def test_the_rest_is_the_next_ones(
        self, database: Database, stub_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for _ in range(5):
            resolved(database, 100)
        asked = iter((False, False))
        # Once before it looks, and once before each batch: one is done.
        with monkeypatch.context() as patch:
            patch.setattr(maintenance, "_half_time", lambda: lambda: next(asked, True))
            apply_retention.fn(batch=2)
        assert len(rows(database)) == 3
        assert stub_broker.queues["maintenance.DQ"].qsize() == 1
        apply_retention.fn(batch=2)
        assert rows(database) == []
        assert stub_broker.queues["maintenance.DQ"].qsize() == 1
