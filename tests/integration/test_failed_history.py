"""The history of failed jobs: who did what, when, why, and what was there before."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from db import failed_jobs
from db.failed import Event, Filter, abandon, audit, history, note, reopen, resolve, write_event
from db.failed.events import say
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.test_failed_jobs import A, B, a_failure, set_status
from tests.servers import OPERATOR, WORKER, Database


def of(row_id: UUID, **more: Any) -> list[Event]:
    with operator_transaction() as session:
        return history(session, row_id, **more)


def last(row_id: UUID) -> Event:
    return of(row_id)[-1]


def by_hand(database: Database, statement: str, *values: object) -> None:
    with psycopg.connect(database.operator_url, autocommit=True) as connection:
        connection.execute(statement.encode(), values)


def test_a_failure_begins_its_history(database: Database) -> None:
    failure = a_failure()
    row_id = failed_jobs.record(failure)
    (event,) = of(row_id)
    assert (event.failed_job_id, event.tenant_id, event.event) == (row_id, A, "captured")
    assert (event.changed_by, event.database_user, event.reason) == ("host/1", WORKER, None)
    assert (event.before, event.happened_at) == (None, failure.failed_at)
    assert event.after is not None
    assert event.after["status"] == "pending"
    # Recorded again, it is no other event.
    failed_jobs.record(failure)
    assert len(of(row_id)) == 1


def test_each_move_says_who_why_and_what_was_before(database: Database) -> None:
    row_id = failed_jobs.record(a_failure())
    where = Filter(ids=(row_id,))
    abandon(operator_transaction, where, by="ada", reason="not worth it")
    abandoned = last(row_id)
    assert (abandoned.event, abandoned.changed_by, abandoned.reason) == ("abandoned", "ada", "not worth it")
    assert abandoned.database_user == OPERATOR
    assert abandoned.before == {"status": "pending", "remediation_notes": None}
    assert abandoned.after == {"status": "abandoned", "remediation_notes": "not worth it"}
    assert abs(abandoned.happened_at - datetime.now(UTC)) < timedelta(minutes=1)

    reopen(operator_transaction, where, by="bob")
    reopened = last(row_id)
    assert (reopened.event, reopened.changed_by, reopened.reason) == ("reopened", "bob", None)
    assert (reopened.before, reopened.after) == ({"status": "abandoned"}, {"status": "pending"})

    note(operator_transaction, where, by="cy", note="look")
    noted = last(row_id)
    assert (noted.event, noted.changed_by, noted.reason) == ("noted", "cy", "look")
    assert noted.before == {"remediation_notes": "not worth it"}
    assert noted.after == {"remediation_notes": "not worth it\nlook"}

    set_status(database, row_id, "in_progress")
    reopen(operator_transaction, where, by="dee", reason="it hangs")
    assert [event.event for event in of(row_id)[-2:]] == ["claimed", "released"]

    with tenant_context(A):
        resolve(transaction, where, by="eve of a", note="done")
    resolved = last(row_id)
    assert (resolved.event, resolved.changed_by, resolved.database_user) == ("resolved", "eve of a", WORKER)
    assert resolved.after is not None
    assert set(resolved.after) == {"status", "remediation_notes", "resolved_at"}
    ids = [event.id for event in of(row_id)]
    assert ids == sorted(ids)


def test_what_is_refused_or_rolled_back_has_no_event(database: Database) -> None:
    row_id = failed_jobs.record(a_failure())
    set_status(database, row_id, "resolved")
    before = of(row_id)
    resolve(operator_transaction, Filter(ids=(row_id,)), by="ada", note="again")
    with pytest.raises(RuntimeError), operator_transaction() as session:
        session.execute(text("UPDATE worker_failed_jobs SET worker = 'other'"))
        raise RuntimeError
    assert of(row_id) == before


def test_a_failure_of_the_same_message_is_told(database: Database) -> None:
    failure = a_failure()
    row_id = failed_jobs.record(failure)
    later = failure.failed_at + timedelta(hours=1)
    failed_jobs.record(replace(failure, delivery_id="2", error_message="otherwise", failed_at=later, worker="host/2"))
    again = last(row_id)
    assert (again.event, again.changed_by) == ("failed_again", "host/2")
    assert again.before is not None
    assert again.after is not None
    assert (again.before["error_message"], again.after["error_message"]) == ("bad input", "otherwise")


def test_what_is_done_by_hand_is_whom_postgres_knows(database: Database) -> None:
    row_id = failed_jobs.record(a_failure())
    by_hand(database, "UPDATE worker_failed_jobs SET status = 'in_progress' WHERE id = %s", row_id)
    claimed = last(row_id)
    assert (claimed.event, claimed.changed_by, claimed.reason) == ("claimed", OPERATOR, None)
    by_hand(database, "UPDATE worker_failed_jobs SET queue = 'other', task_args = '[9]' WHERE id = %s", row_id)
    edited = last(row_id)
    # Arguments may have to be forgotten, and the history is not.
    assert (edited.event, edited.before, edited.after) == ("edited", {"queue": "attribution"}, {"queue": "other"})
    by_hand(database, "UPDATE worker_failed_jobs SET queue = 'other' WHERE id = %s", row_id)
    assert last(row_id) == edited


def test_a_history_outlives_its_row(database: Database) -> None:
    row_id = failed_jobs.record(a_failure())
    with operator_transaction() as session:
        say(session, by="ada", reason="asked to")
        session.execute(text("DELETE FROM worker_failed_jobs"))
    captured, purged = of(row_id)
    assert (captured.event, purged.event, purged.changed_by, purged.reason) == ("captured", "purged", "ada", "asked to")
    assert purged.before is not None
    assert (purged.before["task_name"], purged.before["status"]) == ("test.job", "pending")
    assert not {"task_args", "task_kwargs", "traceback", "error_message"} & set(purged.before)
    assert purged.after is None


def test_who_and_why_end_with_their_transaction(database: Database) -> None:
    row_id = failed_jobs.record(a_failure())
    with operator_transaction() as session:
        say(session, by="ada", reason="because", event="edited by ada")
        session.execute(text("UPDATE worker_failed_jobs SET worker = 'a'"))
    assert (last(row_id).event, last(row_id).changed_by) == ("edited by ada", "ada")
    with operator_transaction() as session:
        session.execute(text("UPDATE worker_failed_jobs SET worker = 'b'"))
    assert (last(row_id).event, last(row_id).changed_by, last(row_id).reason) == ("edited", OPERATOR, None)


def test_a_tenant_reads_its_own_history_and_changes_none(database: Database) -> None:
    own, theirs = failed_jobs.record(a_failure()), failed_jobs.record(a_failure(tenant_id=B))
    with tenant_context(A), transaction() as session:
        assert [event.event for event in history(session, own)] == ["captured"]
        assert history(session, theirs) == []
        note(transaction, Filter(ids=(own,)), by="a", note="n")
        assert {event.tenant_id for event in audit(session)} == {A}
    for statement in (
        "UPDATE worker_failed_job_events SET changed_by = 'nobody'",
        "DELETE FROM worker_failed_job_events",
    ):
        with pytest.raises(DBAPIError, match="permission denied"), tenant_context(A), transaction() as session:
            session.execute(text(statement))
    with pytest.raises(DBAPIError, match="row-level security"), tenant_context(A), transaction() as session:
        write_event(session, "edited", by="a", tenant_id=B)


def test_of_a_long_history_the_newest(database: Database) -> None:
    row_id = failed_jobs.record(a_failure())
    for n in range(5):
        note(operator_transaction, Filter(ids=(row_id,)), by="ada", note=f"note {n}")
    assert [event.reason for event in of(row_id, limit=3)] == ["note 2", "note 3", "note 4"]
    assert of(uuid4()) == []


def test_what_people_did_newest_first_page_by_page(database: Database) -> None:
    ids = [failed_jobs.record(a_failure()) for _ in range(3)]
    for n, row_id in enumerate(ids):
        note(operator_transaction, Filter(ids=(row_id,)), by="ada", note=f"note {n}")
    with operator_transaction() as session:
        write_event(session, "queue_paused", by="bob", reason="maintenance", after={"queue": "llm"})
        first = audit(session, limit=2)
        assert [(event.event, event.reason) for event in first] == [
            ("queue_paused", "maintenance"),
            ("noted", "note 2"),
        ]
        assert (first[0].failed_job_id, first[0].tenant_id, first[0].before) == (None, None, None)
        assert first[0].after == {"queue": "llm"}
        rest = audit(session, before=first[-1].id)
        assert [event.reason for event in rest] == ["note 1", "note 0"]
        with pytest.raises(ValueError, match="by must not be empty"):
            write_event(session, "queue_paused", by=" ")
