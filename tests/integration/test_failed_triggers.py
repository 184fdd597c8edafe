"""Whoever changes a row of worker_failed_jobs, its history, its details and its group's counts go with it."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row

from db import failed_jobs
from db.failures import Failure
from tests.integration.test_failed_jobs import a_failure
from tests.servers import Database
from tests.waiting import eventually

ONE, OTHER = UUID(int=10), UUID(int=11)


def the_same_again(**changes: Any) -> Failure:
    """A failure of another message, of one group."""
    return a_failure(task_id=str(uuid4()), delivery_id=str(uuid4()), **{"fingerprint": "f" * 32, **changes})


def ask(database: Database, query: str) -> list[dict[str, Any]]:
    with psycopg.connect(database.admin_url, row_factory=dict_row) as connection:
        return connection.execute(query.encode()).fetchall()


def do(database: Database, statement: str, *values: object) -> None:
    with psycopg.connect(database.operator_url, autocommit=True) as connection:
        connection.execute(statement.encode(), values)


def groups(database: Database) -> list[tuple[Any, ...]]:
    """Tenant, failures, and rows that are pending, in progress, resolved, abandoned."""
    return [
        tuple(row.values())
        for row in ask(
            database,
            "SELECT tenant_id, failures, pending, in_progress, resolved, abandoned FROM worker_failed_job_groups"
            " ORDER BY tenant_id, fingerprint",
        )
    ]


def events(database: Database, job_id: UUID) -> list[str]:
    return [
        row["event"]
        for row in ask(
            database, f"SELECT event FROM worker_failed_job_events WHERE failed_job_id = '{job_id}' ORDER BY id"
        )
    ]


def test_a_failure_is_captured_with_its_group_and_a_history(database: Database) -> None:
    first = failed_jobs.record(the_same_again(tenant_id=ONE))
    failed_jobs.record(the_same_again(tenant_id=ONE))
    failed_jobs.record(the_same_again(tenant_id=OTHER))
    failed_jobs.record(the_same_again(tenant_id=None))
    assert groups(database) == [(ONE, 2, 2, 0, 0, 0), (OTHER, 1, 1, 0, 0, 0), (None, 1, 1, 0, 0, 0)]
    assert events(database, first) == ["captured"]
    (told,) = ask(database, f"SELECT * FROM worker_failed_job_events WHERE failed_job_id = '{first}'")
    assert (told["changed_by"], told["tenant_id"], told["after"]["status"]) == ("host/1", ONE, "pending")


def test_a_change_by_hand_is_an_event_and_counts(database: Database) -> None:
    job_id = failed_jobs.record(the_same_again(tenant_id=ONE))
    do(
        database,
        "UPDATE worker_failed_jobs SET status = 'resolved', remediation_notes = 'mended' WHERE id = %s",
        job_id,
    )
    assert groups(database) == [(ONE, 1, 0, 0, 1, 0)]
    (event,) = ask(database, "SELECT * FROM worker_failed_job_events WHERE event = 'resolved'")
    assert event["before"] == {"status": "pending", "remediation_notes": None}
    assert event["after"] == {"status": "resolved", "remediation_notes": "mended"}
    assert event["changed_by"] == event["database_user"] == "dramaturg_test_operator"


def test_a_row_that_nobody_described_is_described(database: Database) -> None:
    """As the Celery system inserts it, or a person."""
    insert = (
        "INSERT INTO worker_failed_jobs (id, task_id, task_name, tenant_id, error_type, exception_class, error_message)"
        " VALUES (gen_random_uuid(), %s, 'app.tasks.a', %s, 'unknown', 'ValueError', %s)"
    )
    do(database, insert, "1", ONE, "order 17 of 'acme' is gone\nsecond line")
    do(database, insert, "2", ONE, "order 4711 of 'globex' is gone")
    do(database, insert, "3", ONE, "something else")
    assert groups(database) == [(ONE, 1, 1, 0, 0, 0), (ONE, 2, 2, 0, 0, 0)] or groups(database) == [
        (ONE, 2, 2, 0, 0, 0),
        (ONE, 1, 1, 0, 0, 0),
    ]
    titles = {row["title"] for row in ask(database, "SELECT title FROM worker_failed_job_groups")}
    assert titles == {"order * of * is gone", "something else"}
    assert len(ask(database, "SELECT FROM worker_failed_job_details")) == 3
    assert [row["event"] for row in ask(database, "SELECT event FROM worker_failed_job_events")] == ["captured"] * 3


def test_what_is_deleted_leaves_its_history_alone(database: Database) -> None:
    job_id = failed_jobs.record(the_same_again(tenant_id=ONE))
    failed_jobs.record(the_same_again(tenant_id=ONE))
    do(database, "DELETE FROM worker_failed_jobs WHERE id = %s", job_id)
    assert groups(database) == [(ONE, 2, 1, 0, 0, 0)]
    assert events(database, job_id) == ["captured", "purged"]
    assert len(ask(database, "SELECT FROM worker_failed_job_details")) == 1


def test_a_group_that_was_resolved_and_comes_back_says_so(database: Database) -> None:
    later = datetime(2025, 3, 1, tzinfo=UTC)
    failed_jobs.record(the_same_again(tenant_id=ONE))
    failed_jobs.record(the_same_again(tenant_id=ONE))

    def state() -> tuple[bool, datetime | None, int]:
        (row,) = ask(database, "SELECT resolved_at, regressed_at, regressions FROM worker_failed_job_groups")
        return row["resolved_at"] is not None, row["regressed_at"], row["regressions"]

    do(
        database,
        "UPDATE worker_failed_jobs SET status = 'resolved' WHERE id = (SELECT id FROM worker_failed_jobs LIMIT 1)",
    )
    assert state() == (False, None, 0)
    failed_jobs.record(the_same_again(tenant_id=ONE))
    assert state() == (False, None, 0)
    do(database, "UPDATE worker_failed_jobs SET status = 'resolved' WHERE status = 'pending'")
    assert state() == (True, None, 0)
    failed_jobs.record(the_same_again(tenant_id=ONE, failed_at=later))
    assert state() == (False, later, 1)


def test_a_row_that_is_handed_to_another_tenant_takes_all_along(database: Database) -> None:
    job_id = failed_jobs.record(the_same_again(tenant_id=ONE, original=b"{}"))
    failed_jobs.record(the_same_again(tenant_id=ONE))
    do(database, "UPDATE worker_failed_jobs SET tenant_id = %s, status = 'in_progress' WHERE id = %s", OTHER, job_id)
    assert groups(database) == [(ONE, 2, 1, 0, 0, 0), (OTHER, 1, 0, 1, 0, 0)]
    for table in ("details", "originals", "deliveries"):
        owners = ask(database, f"SELECT tenant_id FROM worker_failed_job_{table} WHERE failed_job_id = '{job_id}'")
        assert owners == [{"tenant_id": OTHER}], table


@pytest.mark.parametrize("status", ["pending", "in_progress", "abandoned"])
def test_a_row_that_fails_with_something_else_changes_its_group(database: Database, status: str) -> None:
    failure = the_same_again(tenant_id=ONE)
    job_id = failed_jobs.record(failure)
    do(database, "UPDATE worker_failed_jobs SET status = %s WHERE id = %s", status, job_id)
    other = a_failure(
        task_id=failure.task_id,
        delivery_id="another",
        tenant_id=ONE,
        fingerprint="0" * 32,
        failed_at=datetime(2025, 3, 1, tzinfo=UTC),
        attempts=[{"at": "then"}],
    )
    assert failed_jobs.record(other) == job_id
    assert groups(database) == [(ONE, 1, 1, 0, 0, 0), (ONE, 1, 0, 0, 0, 0)]
    (details,) = ask(database, "SELECT * FROM worker_failed_job_details")
    assert (details["fingerprint"], details["failures"], details["status"]) == ("0" * 32, 2, "pending")
    assert (details["failed_at"], details["attempts"]) == (other.failed_at, [{"at": "then"}])
    (event,) = ask(database, "SELECT * FROM worker_failed_job_events WHERE event = 'failed_again'")
    assert event["changed_by"] == "host/1"


def test_two_at_once_that_move_a_row_to_other_groups_leave_it_in_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the row, and must look after that at the group that it is in."""
    monkeypatch.setattr(failed_jobs, "WAIT_FOR_ROW", 30_000)
    failure = the_same_again(tenant_id=ONE, fingerprint="0" * 32)
    failed_jobs.record(failure)
    first, second = (replace(failure, delivery_id=each, fingerprint=each * 32) for each in "12")
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    reopen = failed_jobs._reopen
    recorded: list[Future[UUID]] = []
    with ThreadPoolExecutor(1) as pool:

        def with_the_second_waiting(*args: Any) -> None:
            if not recorded:
                recorded.append(pool.submit(failed_jobs.record, second))
                eventually(lambda: ask(database, waiting))
            reopen(*args)

        monkeypatch.setattr(failed_jobs, "_reopen", with_the_second_waiting)
        failed_jobs.record(first)
        recorded[0].result(timeout=30)
    assert groups(database) == [(ONE, 1, 0, 0, 0, 0), (ONE, 1, 0, 0, 0, 0), (ONE, 1, 1, 0, 0, 0)]


def test_a_row_that_fails_again_in_the_same_way_stays_in_its_group(database: Database) -> None:
    failure = the_same_again(tenant_id=ONE)
    job_id = failed_jobs.record(failure)
    do(database, "UPDATE worker_failed_jobs SET status = 'in_progress' WHERE id = %s", job_id)
    assert groups(database) == [(ONE, 1, 0, 1, 0, 0)]
    again = a_failure(task_id=failure.task_id, delivery_id="another", tenant_id=ONE, fingerprint="f" * 32)
    assert failed_jobs.record(again) == job_id
    assert groups(database) == [(ONE, 2, 1, 0, 0, 0)]


def test_counts_are_counted_again_after_down_and_up(database: Database) -> None:
    """What the Celery system does to rows between counts as well."""
    from worker import migrate

    gone = failed_jobs.record(the_same_again(tenant_id=ONE))
    failed_jobs.record(the_same_again(tenant_id=ONE))
    migrate.downgrade(database.owner_url)
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("DELETE FROM worker_failed_jobs WHERE id = %s", [gone])
        connection.execute("UPDATE worker_failed_jobs SET status = 'abandoned'")
    migrate.upgrade(database.owner_url)
    assert groups(database) == [(ONE, 2, 0, 0, 0, 1)]
    assert ask(database, "SELECT status FROM worker_failed_job_details") == [{"status": "abandoned"}]
