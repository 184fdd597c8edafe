"""What is kept, for how long, and what is left of what is not, on real Postgres."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from sqlalchemy import text

from db import failed_jobs
from db.errors import RowLocked
from db.failed import Filter, InvalidFilter, abandon, get_group, resolve, write_event
from db.failed import batches as batches_module
from db.failed.expiry import expire
from db.failed.offboarding import offboard
from db.failed.removal import forget, purge
from db.failed.retention import DEFAULTS, Rule, rules, rules_for, set_rule, unset_rule
from db.failures import Attempt, Failure
from db.once import once
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.test_failed_jobs import A, B, a_failure, rows, set_status
from tests.servers import Database
from tests.waiting import eventually

NOW = datetime.now(UTC)
#: In what a job was called with, and nowhere else.
MARKER = "4b1d-marker-77"


def later(days: float) -> datetime:
    return NOW + timedelta(days=days)


def recorded(**changes: Any) -> UUID:
    """Record a failure that happened just now, with all that one may have."""
    changes = {"failed_at": NOW, "fingerprint": "f" * 32, "original": b'{"args": []}', **changes}
    return failed_jobs.record(a_failure(**changes))


def resolved(**changes: Any) -> UUID:
    row_id = recorded(**changes)
    resolve(operator_transaction, Filter(ids=(row_id,)), by="eve", note="done")
    return row_id


def abandoned(**changes: Any) -> UUID:
    row_id = recorded(**changes)
    abandon(operator_transaction, Filter(ids=(row_id,)), by="eve", reason="hopeless")
    return row_id


def ids(database: Database) -> set[UUID]:
    return {row["id"] for row in rows(database)}


def expired(days: float, **how: Any) -> Any:
    """Apply the rules so many days from now."""
    return expire(operator_transaction, now=later(days), by="nightly", **how)


def rule(subject: str, keep_days: int | None, tenant_id: UUID | None = None) -> None:
    with operator_transaction() as session:
        set_rule(session, subject, keep_days, by="eve", tenant_id=tenant_id)


def all_of(database: Database, table: str, where: str = "true", *values: Any) -> list[dict[str, Any]]:
    with psycopg.connect(database.admin_url, row_factory=dict_row) as admin:
        return admin.execute(f"SELECT * FROM {table} WHERE {where} ORDER BY 1".encode(), values).fetchall()


def events(database: Database, event: str) -> list[dict[str, Any]]:
    return all_of(database, "worker_failed_job_events", "event = %s", event)


def found_in(database: Database, what: str) -> set[str]:
    """The tables in whose rows ``what`` stands, as text, or as the bytes of a text."""
    with psycopg.connect(database.admin_url) as admin:
        names = [
            name
            for (name,) in admin.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        ]
        assert "worker_failed_job_originals" in names
        return {
            name
            for name in names
            if admin.execute(
                sql.SQL("SELECT FROM {} t WHERE t::text LIKE %s OR t::text LIKE %s LIMIT 1").format(
                    sql.Identifier(name)
                ),
                [f"%{what}%", f"%{what.encode().hex()}%"],
            ).fetchone()
            is not None
        }


def assert_counts_are_right(database: Database) -> None:
    """Each group counts the rows that it has, by status."""
    with psycopg.connect(database.admin_url) as admin:
        wrong = admin.execute(
            """
            SELECT own.tenant_id, own.fingerprint, own.pending, own.in_progress, own.resolved, own.abandoned, counted.*
            FROM worker_failed_job_groups own CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE job.status = 'pending') AS pending,
                    count(*) FILTER (WHERE job.status = 'in_progress') AS in_progress,
                    count(*) FILTER (WHERE job.status = 'resolved') AS resolved,
                    count(*) FILTER (WHERE job.status = 'abandoned') AS abandoned
                FROM worker_failed_job_details details JOIN worker_failed_jobs job ON job.id = details.failed_job_id
                WHERE details.fingerprint = own.fingerprint AND details.tenant_id IS NOT DISTINCT FROM own.tenant_id
            ) counted
            WHERE (own.pending, own.in_progress, own.resolved, own.abandoned)
                <> (counted.pending, counted.in_progress, counted.resolved, counted.abandoned)
            """
        ).fetchall()
        orphans = admin.execute(
            "SELECT failed_job_id FROM worker_failed_job_details EXCEPT SELECT id FROM worker_failed_jobs"
        ).fetchall()
    assert wrong == []
    assert orphans == []


@contextmanager
def holding(database: Database, statement: str, *values: Any) -> Iterator[psycopg.Connection]:
    """A person in psql who has locked something and does not end the transaction."""
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(statement.encode(), values)
        yield connection
        connection.rollback()


class TestRules:
    def test_defaults(self, database: Database) -> None:
        with operator_transaction() as session:
            assert rules(session) == [Rule(subject, days, None, "default") for subject, days in DEFAULTS.items()]
        assert DEFAULTS == {
            "pending": None,
            "in_progress": None,
            "resolved": 90,
            "abandoned": 180,
            "payload": None,
            "events": 400,
            "answers": 400,
        }

    def test_of_a_tenant_before_that_for_all_before_the_default(self, database: Database) -> None:
        rule("resolved", 30)
        rule("resolved", 10, A)
        rule("payload", None, A)
        with operator_transaction() as session:
            said = [(r.subject, r.keep_days, r.tenant_id, r.source) for r in rules(session) if r.source != "default"]
            of_a = {r.subject: (r.keep_days, r.source) for r in rules_for(session, A)}
            of_b = {r.subject: (r.keep_days, r.source) for r in rules_for(session, B)}
        assert said == [("resolved", 30, None, "all"), ("resolved", 10, A, "tenant"), ("payload", None, A, "tenant")]
        assert of_a["resolved"] == (10, "tenant")
        assert of_a["payload"] == (None, "tenant")
        assert of_a["events"] == of_b["events"] == (400, "default")
        assert of_b["resolved"] == (30, "all")

    def test_each_change_is_an_event(self, database: Database) -> None:
        with operator_transaction() as session:
            assert set_rule(session, "payload", 30, by="eve", tenant_id=A)
            assert not set_rule(session, "payload", 30, by="mallory", tenant_id=str(A))
            assert set_rule(session, "payload", None, by="adam", tenant_id=A)
            assert unset_rule(session, "payload", by="eve", tenant_id=A)
            assert not unset_rule(session, "payload", by="eve", tenant_id=A)
        days = {"subject": "payload", "keep_days": 30}
        for_ever = {"subject": "payload", "keep_days": None}
        assert [
            (e["changed_by"], e["tenant_id"], e["failed_job_id"], e["before"], e["after"])
            for e in events(database, "retention_changed")
        ] == [("eve", A, None, None, days), ("adam", A, None, days, for_ever), ("eve", A, None, for_ever, None)]
        assert all_of(database, "worker_failed_job_retention") == []

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"subject": "failed"}, "subject must be one of pending, .*, events, answers, not 'failed'"),
            ({"keep_days": -1}, "keep_days must be 0 to 36500, or None for ever, not -1"),
            ({"keep_days": 36_501}, "keep_days .* not 36501"),
            ({"keep_days": 1.5}, "keep_days .* not 1.5"),
            ({"keep_days": True}, "keep_days .* not True"),
            ({"by": " "}, "by must not be empty"),
            ({"tenant_id": "acme"}, "tenant_id must be a UUID, not 'acme'"),
        ],
    )
    def test_what_cannot_be_is_named(self, database: Database, changes: dict[str, Any], message: str) -> None:
        given: dict[str, Any] = {"subject": "resolved", "keep_days": 1, "by": "eve", **changes}
        with pytest.raises(ValueError, match=message), operator_transaction() as session:
            set_rule(session, given.pop("subject"), given.pop("keep_days"), **given)

    def test_a_tenant_reads_its_own_and_makes_none(self, database: Database) -> None:
        rule("resolved", 30, A)
        rule("resolved", 40, B)
        rule("payload", 50)
        with tenant_context(A), transaction() as session:
            assert {(r.subject, r.keep_days) for r in rules(session) if r.source != "default"} == {
                ("resolved", 30),
                ("payload", 50),
            }
            with pytest.raises(PermissionError, match="only an operator may make a rule of retention"):
                set_rule(session, "resolved", None, by="a", tenant_id=A)
            with pytest.raises(PermissionError):
                unset_rule(session, "resolved", by="a", tenant_id=A)


class TestExpire:
    def test_by_default_nothing_goes_that_nobody_has_dealt_with(self, database: Database) -> None:
        long_ago = NOW - timedelta(days=5_000)
        kept = {recorded(failed_at=long_ago), recorded(failed_at=long_ago, fingerprint=None, tenant_id=None)}
        replayed = recorded(failed_at=long_ago)
        set_status(database, replayed, "in_progress")
        done = expired(10_000)
        assert (done.rows, done.payloads, done.groups, done.held) == ({}, 0, 0, 0)
        assert ids(database) == kept | {replayed}
        assert len(all_of(database, "worker_failed_job_originals")) == 3
        assert all(row["task_args"] == [1, "two"] for row in rows(database))

    def test_resolved_rows_go_after_they_were_resolved(self, database: Database) -> None:
        row_id = resolved(failed_at=NOW - timedelta(days=300))
        assert expired(89.9).rows == {}
        done = expired(90.1)
        assert done.rows == {"resolved": 1}
        assert rows(database) == []
        for table in ("originals", "deliveries", "details"):
            assert all_of(database, f"worker_failed_job_{table}") == []
        (event,) = events(database, "purged")
        assert (event["failed_job_id"], event["changed_by"]) == (row_id, "nightly")
        assert event["reason"] == "retention: resolved for 90 days"
        assert_counts_are_right(database)

    def test_resolved_rows_that_do_not_say_when_go_after_they_failed(self, database: Database) -> None:
        recorded(failed_at=NOW - timedelta(days=80))
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("UPDATE worker_failed_jobs SET status = 'resolved'")
        assert expired(9).rows == {}
        assert expired(11).rows == {"resolved": 1}

    def test_abandoned_rows_go_after_they_were_abandoned(self, database: Database) -> None:
        abandoned(failed_at=NOW - timedelta(days=3_000))
        assert expired(179).rows == {}
        assert expired(181).rows == {"abandoned": 1}

    def test_abandoned_rows_without_history_go_after_they_failed(self, database: Database) -> None:
        abandoned(failed_at=NOW - timedelta(days=100))
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("DELETE FROM worker_failed_job_events")
        assert expired(79).rows == {}
        assert expired(81).rows == {"abandoned": 1}

    def test_since_when_a_row_is_abandoned_outlives_its_history(self, database: Database) -> None:
        rule("abandoned", 800)
        row_id = abandoned(failed_at=NOW - timedelta(days=500))
        assert expired(450).events > 0
        (left,) = all_of(database, "worker_failed_job_events", "failed_job_id = %s", row_id)
        assert left["event"] == "abandoned"
        assert expired(799).rows == {}
        assert expired(801).rows == {"abandoned": 1}

    def test_a_tenants_rule_wins_and_that_for_all_over_the_default(self, database: Database) -> None:
        of_a, of_b = resolved(tenant_id=A), resolved(tenant_id=B)
        of_nobody = resolved(tenant_id=None)
        rule("resolved", 10)
        rule("resolved", 30, A)
        assert expired(11).rows == {"resolved": 2}
        assert ids(database) == {of_a}
        assert expired(29).rows == {}
        rule("resolved", None, A)
        assert expired(399).rows == {}
        with operator_transaction() as session:
            unset_rule(session, "resolved", tenant_id=A, by="eve")
        assert expired(11).rows == {"resolved": 1}
        assert {e["failed_job_id"] for e in events(database, "purged")} == {of_a, of_b, of_nobody}

    def test_a_rule_of_days_beyond_all_time_is_no_error(self, database: Database) -> None:
        resolved()
        with psycopg.connect(database.admin_url) as admin:
            admin.execute(
                "INSERT INTO worker_failed_job_retention (subject, keep_days, changed_by)"
                " VALUES ('resolved', 2147483647, 'psql')"
            )
        assert expired(1_000).rows == {}

    def test_a_rule_that_changes_meanwhile_holds_from_the_next_batch(self, database: Database) -> None:
        for _ in range(30):
            resolved()
        asked = 0

        def change_our_mind() -> bool:
            nonlocal asked
            asked += 1
            # Asked once before it looks for rows, and then before each batch.
            if asked == 4:
                rule("resolved", None)
            return False

        done = expired(100, batch=10, should_stop=change_our_mind)
        assert done.rows == {"resolved": 20}
        assert len(rows(database)) == 10

    def test_any_status_can_have_an_end(self, database: Database) -> None:
        statuses = ("pending", "in_progress", "resolved", "abandoned")
        for status in statuses:
            set_status(database, recorded(), status)
            rule(status, 5)
        assert expired(4.9).rows == {}
        assert expired(5.1).rows == dict.fromkeys(statuses, 1)

    def test_payloads_are_forgotten_and_rows_stay(self, database: Database) -> None:
        rule("payload", 30)
        rule("payload", None, B)
        mine, theirs = recorded(), recorded(tenant_id=B)
        assert expired(29).payloads == 0
        assert expired(31).payloads == 1
        assert expired(31).payloads == 0
        assert {row["id"]: row["task_args"] for row in rows(database)} == {mine: None, theirs: [1, "two"]}
        assert [row["failed_job_id"] for row in all_of(database, "worker_failed_job_originals")] == [theirs]
        (event,) = events(database, "forgotten")
        assert (event["failed_job_id"], event["reason"]) == (mine, "retention: payload for 30 days")

    def test_history_goes_by_rules_of_its_own(self, database: Database) -> None:
        recorded(tenant_id=A)
        recorded(tenant_id=B)
        rule("events", 10, A)
        assert expired(399).events == 2
        assert {e["tenant_id"] for e in all_of(database, "worker_failed_job_events")} == {B}
        assert expired(401).events == 1
        assert len(rows(database)) == 2

    def test_a_group_is_remembered_until_nothing_of_its_like_is_kept(self, database: Database) -> None:
        failure = a_failure(failed_at=NOW, fingerprint="1" * 32)
        row_id = failed_jobs.record(failure)
        resolve(operator_transaction, Filter(ids=(row_id,)), by="eve", note="done")
        open_one = recorded(fingerprint="2" * 32)
        assert expired(399).rows == {"resolved": 1}
        assert len(all_of(database, "worker_failed_job_groups")) == 2
        # It comes back, and says so.
        failed_jobs.record(replace(failure, task_id="another", delivery_id="another", failed_at=later(399)))
        with operator_transaction() as session:
            known = get_group(session, "1" * 32)
            assert known is not None
            assert known.regressions == 1
        (again,) = ids(database) - {open_one}
        resolve(operator_transaction, Filter(ids=(again,)), by="eve", note="done")
        assert expired(399 + 399).groups == 0
        done = expired(399 + 401)
        assert done.groups == 1
        assert [g["fingerprint"] for g in all_of(database, "worker_failed_job_groups")] == ["2" * 32]

    def test_a_group_is_remembered_for_ever_where_its_history_is(self, database: Database) -> None:
        resolved(tenant_id=A)
        resolved(tenant_id=B)
        rule("events", None, A)
        assert expired(9_000).groups == 1
        assert [g["tenant_id"] for g in all_of(database, "worker_failed_job_groups")] == [A]

    def test_dry_run_counts_and_changes_nothing(self, database: Database) -> None:
        rule("payload", 30, B)
        resolved()
        abandoned()
        recorded(tenant_id=B)
        before = [all_of(database, f"worker_failed_job{name}") for name in ("s", "_events", "_originals", "_groups")]
        done = expired(100, dry_run=True)
        assert (done.rows, done.payloads, done.events, done.groups) == ({"resolved": 1}, 1, 0, 0)
        done = expired(500, dry_run=True)
        assert (done.rows, done.payloads) == ({"resolved": 1, "abandoned": 1}, 1)
        # All but the one that says since when a row is abandoned, and the rule, made of late.
        assert done.events == len(all_of(database, "worker_failed_job_events")) - 1
        after = [all_of(database, f"worker_failed_job{name}") for name in ("s", "_events", "_originals", "_groups")]
        assert after == before

    def test_it_stops_between_batches(self, database: Database) -> None:
        for _ in range(25):
            resolved()
        asked: list[int] = []

        def enough() -> bool:
            asked.append(len(rows(database)))
            return len(rows(database)) <= 15

        done = expired(100, batch=10, should_stop=enough)
        assert done.stopped
        assert done.rows == {"resolved": 10}
        assert len(rows(database)) == 15
        assert not expired(100).stopped
        assert rows(database) == []

    def test_a_naive_time_is_refused(self, database: Database) -> None:
        with pytest.raises(ValueError, match="now must have a time zone"):
            expire(operator_transaction, now=datetime(2030, 1, 1), by="nightly")  # noqa: DTZ001 - is what is tested
        with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
            expired(1, batch=0)
        with pytest.raises(ValueError, match="by must not be empty"):
            expire(operator_transaction, now=NOW, by="")


class TestPurge:
    def test_what_matches_goes_and_an_event_says_who_and_why(self, database: Database) -> None:
        gone = recorded(queue="llm")
        kept = recorded()
        swept = purge(operator_transaction, Filter(queue=("llm",)), by="eve", reason="test data")
        assert (swept.rows, swept.originals, swept.deliveries, swept.held) == ({"pending": 1}, 1, 1, 0)
        assert ids(database) == {kept}
        (event,) = events(database, "purged")
        assert (event["failed_job_id"], event["changed_by"], event["reason"]) == (gone, "eve", "test data")
        assert_counts_are_right(database)

    def test_what_is_being_replayed_stays_unless_it_is_named(self, database: Database) -> None:
        row_id = recorded()
        recorded()
        set_status(database, row_id, "in_progress")
        where = Filter(tenant_id=(A,))
        for dry_run in (True, False):
            swept = purge(operator_transaction, where, by="eve", reason=None, dry_run=dry_run)
            assert (swept.rows, swept.spared) == ({"pending": 1}, 1)
        assert ids(database) == {row_id}
        swept = purge(operator_transaction, where, by="eve", reason=None, in_progress=True)
        assert (swept.rows, swept.spared) == ({"in_progress": 1}, 0)
        assert rows(database) == []

    def test_everything_is_not_said_by_saying_nothing(self, database: Database) -> None:
        with pytest.raises(InvalidFilter):
            purge(operator_transaction, Filter(), by="eve", reason=None)

    def test_more_than_is_looked_at_at_once(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batches_module, "_FOUND_AT_ONCE", 7)
        failed_jobs.record_all([a_failure(fingerprint=f"{n % 3:032}") for n in range(100)])
        kept = recorded(queue="llm")
        told: list[int] = []
        where = Filter(queue=("attribution",))
        swept = purge(operator_transaction, where, by="eve", reason=None, batch=3, progress=told.append)
        assert swept.rows == {"pending": 100}
        assert told[-1] == 100
        assert max(b - a for a, b in zip([0, *told], told, strict=False)) == 3
        assert ids(database) == {kept}

    def test_a_message_that_is_delivered_again_makes_a_row_again(self, database: Database) -> None:
        failure = a_failure()
        row_id = failed_jobs.record(failure)
        purge(operator_transaction, Filter(ids=(row_id,)), by="eve", reason=None)
        with tenant_context(A):
            assert not failed_jobs.is_recorded(failure.delivery_id)
        assert failed_jobs.record(failure) == row_id
        assert ids(database) == {row_id}

    def test_a_row_that_somebody_holds_is_left_and_counted(self, database: Database) -> None:
        held, _ = recorded(), recorded()
        where = Filter(tenant_id=(A,))
        with holding(database, "SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE", held):
            swept = purge(operator_transaction, where, by="eve", reason=None)
        assert (swept.rows, swept.held) == ({"pending": 1}, 1)
        assert ids(database) == {held}
        assert purge(operator_transaction, where, by="eve", reason=None).held == 0
        assert rows(database) == []

    def test_while_it_waits_for_a_group_it_holds_nothing(self, database: Database) -> None:
        groups = ["1" * 32, "2" * 32]
        for fingerprint in groups:
            recorded(fingerprint=fingerprint)
        lock = "SELECT FROM worker_failed_job_groups WHERE fingerprint = %s FOR UPDATE NOWAIT"
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with ThreadPoolExecutor(1) as pool, psycopg.connect(database.admin_url, autocommit=True) as admin:
            with holding(database, lock, groups[1]):
                purging = pool.submit(purge, operator_transaction, Filter(tenant_id=(A,)), by="eve", reason=None)
                eventually(lambda: admin.execute(waiting).fetchone() == (1,))
                (left,) = all_of(database, "worker_failed_jobs")
                admin.execute(lock, [groups[0]])
                admin.execute("SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE NOWAIT", [left["id"]])
            assert purging.result(timeout=30).rows == {"pending": 2}
        assert rows(database) == []
        assert_counts_are_right(database)

    def test_a_group_that_is_held_for_long_holds_up_no_other(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batches_module, "_WAIT_FOR_GROUP", 50)
        for n in range(6):
            recorded(fingerprint=f"{n % 2:032}")
        with holding(database, "SELECT FROM worker_failed_job_groups WHERE fingerprint = %s FOR UPDATE", f"{1:032}"):
            swept = purge(operator_transaction, Filter(tenant_id=(A,)), by="eve", reason=None, batch=2)
        assert (swept.count, swept.held) == (3, 3)
        assert_counts_are_right(database)


class TestForget:
    def test_nothing_of_the_arguments_is_left(self, database: Database) -> None:
        attempt = Attempt(NOW, "host/1", "ValueError", "an attempt that is kept").as_json()
        failure = a_failure(
            failed_at=NOW,
            fingerprint="f" * 32,
            task_args=[MARKER],
            task_kwargs={MARKER: {"deep": [MARKER]}},
            original=json.dumps({"args": [MARKER]}).encode(),
            attempts=[attempt],
        )
        row_id = failed_jobs.record(failure)
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("""UPDATE worker_failed_jobs SET task_args = task_args || '"edited"'""")
        failed_jobs.record(replace(failure, delivery_id="again", task_args=[MARKER, 2], failed_at=later(0.01)))
        assert found_in(database, MARKER) == {"worker_failed_jobs", "worker_failed_job_originals"}

        swept = forget(operator_transaction, Filter(ids=(row_id,)), by="eve", reason="asked to")

        assert (swept.rows, swept.originals, swept.held) == ({"pending": 1}, 1, 0)
        assert found_in(database, MARKER) == set()
        (row,) = rows(database)
        assert (row["task_args"], row["task_kwargs"]) == (None, None)
        assert (row["error_message"], row["traceback"], row["status"]) == ("bad input", "Traceback ...", "pending")
        (details,) = all_of(database, "worker_failed_job_details")
        assert details["attempts"] == [attempt]
        assert details["forgotten_at"] is not None
        (event,) = events(database, "forgotten")
        assert (event["failed_job_id"], event["tenant_id"], event["changed_by"]) == (row_id, A, "eve")
        assert event["reason"] == "asked to"
        assert_counts_are_right(database)

    def test_nor_when_the_row_is_purged_after(self, database: Database) -> None:
        row_id = recorded(task_args=[MARKER], original=MARKER.encode())
        purge(operator_transaction, Filter(ids=(row_id,)), by="eve", reason=None)
        assert found_in(database, MARKER) == set()

    def test_twice_is_once(self, database: Database) -> None:
        row_id = recorded()
        for expected in (1, 0):
            swept = forget(operator_transaction, Filter(ids=(row_id,)), by="eve", reason=None, dry_run=True)
            assert swept.count == expected
            assert forget(operator_transaction, Filter(ids=(row_id,)), by="eve", reason=None).count == expected
        assert len(events(database, "forgotten")) == 1

    def test_what_has_an_original_alone(self, database: Database) -> None:
        row_id = recorded(task_args=None, task_kwargs=None, original=MARKER.encode())
        assert forget(operator_transaction, Filter(ids=(row_id,)), by="eve", reason="asked to").count == 1
        assert found_in(database, MARKER) == set()
        (event,) = events(database, "forgotten")
        assert (event["failed_job_id"], event["reason"], event["after"]) == (row_id, "asked to", None)

    def test_what_a_replay_brings_back_can_be_forgotten_again(self, database: Database) -> None:
        failure = a_failure(task_args=[MARKER], original=MARKER.encode())
        where = Filter(ids=(failed_jobs.record(failure),))
        forget(operator_transaction, where, by="eve", reason=None)
        failed_jobs.record(replace(failure, delivery_id="replayed"))
        assert found_in(database, MARKER) == {"worker_failed_jobs", "worker_failed_job_originals"}
        assert forget(operator_transaction, where, by="eve", reason=None).count == 1
        assert found_in(database, MARKER) == set()

    def test_in_batches_that_stop(self, database: Database) -> None:
        failed_jobs.record_all([a_failure(original=b"x") for _ in range(10)])
        stops = iter([False, False, True])
        where = Filter(tenant_id=(A,))
        swept = forget(operator_transaction, where, by="eve", reason=None, batch=3, should_stop=lambda: next(stops))
        assert (swept.count, swept.originals, swept.stopped) == (6, 6, True)
        assert forget(operator_transaction, where, by="eve", reason=None, batch=3).count == 4


def fill_tenant(tenant_id: UUID, *, once_key: str = "receipt:1") -> None:
    """Give a tenant something in every table."""
    for n in range(5):
        recorded(tenant_id=tenant_id, fingerprint=f"{n % 2:032}")
    resolved(tenant_id=tenant_id)
    abandoned(tenant_id=tenant_id)
    rule("resolved", 30, tenant_id)
    with tenant_context(tenant_id), transaction():
        assert once(once_key)
    with operator_transaction() as session:
        for statement in (
            """
            INSERT INTO worker_llm_answers (
                tenant_id, window_start, window_end, model, model_version, fingerprint, language_model, answer,
                input_tokens, output_tokens, cost_microcents, call_id
            ) VALUES (:tenant, '2025-01-01', '2025-02-01', 'linear', '1', 'f', 'm', 'x', 1, 1, 1, gen_random_uuid())
            """,
            "INSERT INTO worker_llm_budgets (tenant_id, monthly_cents, changed_by) VALUES (:tenant, 5, 'ann')",
            """
            INSERT INTO worker_llm_spending (tenant_id, month)
            VALUES (:tenant, '2025-01-01'), (:tenant, '2025-02-01')
            """,
            """
            INSERT INTO worker_llm_reservations (tenant_id, call_id, month, microcents, reserved_until)
            VALUES (:tenant, gen_random_uuid(), '2025-02-01', 1, now())
            """,
            """
            INSERT INTO attribution_channel_days
            SELECT :tenant, '2025-01-01', 'linear', '1', channel, 5, gen_random_uuid()
            FROM unnest(ARRAY['email', 'search']) channel
            """,
            """
            INSERT INTO attribution_runs (id, tenant_id, day, correlation_id, expected)
            VALUES (gen_random_uuid(), :tenant, '2025-01-01', gen_random_uuid(), 1)
            """,
            """
            INSERT INTO attribution_run_children (id, run_id, tenant_id, model)
            SELECT gen_random_uuid(), id, :tenant, 'linear' FROM attribution_runs WHERE tenant_id = :tenant
            """,
        ):
            session.execute(text(statement), {"tenant": tenant_id})


def everything_but(database: Database, tenant_id: UUID) -> dict[str, list[dict[str, Any]]]:
    """All rows of our tables that are not a tenant's."""
    names = ("s", "_originals", "_deliveries", "_details", "_groups", "_events", "_retention")
    llm = ("answers", "budgets", "spending", "reservations")
    tables = [*(f"worker_failed_job{name}" for name in names), "worker_once", *(f"worker_llm_{name}" for name in llm)]
    tables += [f"attribution_{name}" for name in ("channel_days", "runs", "run_children")]
    return {table: all_of(database, table, "tenant_id IS DISTINCT FROM %s", tenant_id) for table in tables}


class TestOffboard:
    def test_nothing_of_the_tenant_is_left_and_everything_of_others(self, database: Database) -> None:
        fill_tenant(A)
        fill_tenant(B)
        recorded(tenant_id=None)
        before = everything_but(database, A)
        asked: list[UUID] = []

        def messages(tenant_id: UUID) -> dict[str, int]:
            asked.append(tenant_id)
            return {"attribution": 3, "llm": 1} if len(asked) == 1 else {}

        would = offboard(operator_transaction, A, by="eve", reason="left", messages=messages, dry_run=True)
        assert asked == []
        done = offboard(operator_transaction, str(A), by="eve", reason="left", messages=messages)

        assert asked == [A, A]
        assert done.complete
        assert done.messages == {"attribution": 3, "llm": 1}
        assert done.rows == would.rows == {"pending": 5, "resolved": 1, "abandoned": 1}
        assert (done.originals, done.deliveries, done.groups, done.rules, done.once_keys) == (7, 7, 3, 1, 1)
        assert (would.originals, would.deliveries, would.groups, would.rules, would.once_keys) == (7, 7, 3, 1, 1)
        # A budget, two months, and what is reserved.
        assert (done.answers, done.spending) == (would.answers, would.spending) == (1, 4)
        # Two totals, a run, and its part.
        assert done.attribution == would.attribution == 4
        # Captured, resolved, abandoned, and the rule.
        assert done.events == would.events == 7 + 1 + 1 + 1
        after = everything_but(database, A)
        event = after["worker_failed_job_events"].pop()
        assert after == before
        assert found_in(database, str(A)) == {"worker_failed_job_events"}
        assert all_of(database, "worker_failed_job_events", "tenant_id = %s", A) == []
        assert (event["event"], event["tenant_id"], event["failed_job_id"]) == ("offboarded", None, None)
        assert (event["changed_by"], event["reason"]) == ("eve", "left")
        assert event["after"] == {"tenant_id": str(A), **done.as_json()}

    def test_a_run_for_all_is_one_for_the_others(self, database: Database) -> None:
        run_ids = (UUID(int=1), UUID(int=2))
        with operator_transaction() as session:
            for run_id, finished in zip(run_ids, (None, NOW), strict=True):
                session.execute(
                    text(
                        "INSERT INTO attribution_runs (id, day, correlation_id, expected, finished_at)"
                        " VALUES (:id, '2025-01-01', :id, 4, :finished)"
                    ),
                    {"id": run_id, "finished": finished},
                )
                session.execute(
                    text(
                        "INSERT INTO attribution_run_children (id, run_id, tenant_id, model) SELECT gen_random_uuid(),"
                        " :id, tenant, model FROM unnest(ARRAY[:a, :b]) tenant, unnest(ARRAY['linear', 'x']) model"
                    ),
                    {"id": run_id, "a": A, "b": B},
                )
        assert offboard(operator_transaction, A, by="eve", reason=None).attribution == 4
        # What is under way does not wait for what is gone; what is over stays as it was.
        expected = {row["id"]: row["expected"] for row in all_of(database, "attribution_runs")}
        assert expected == dict(zip(run_ids, (2, 4), strict=True))
        left = all_of(database, "attribution_run_children")
        assert Counter(row["tenant_id"] for row in left) == {B: 4}

    def test_tables_of_the_application_are_left(self, database: Database) -> None:
        with psycopg.connect(database.owner_url) as owner:
            owner.execute("ALTER TABLE attribution_channel_days RENAME COLUMN job_id TO job")
            owner.execute("DROP TABLE attribution_run_children, attribution_runs")
        with psycopg.connect(database.admin_url) as admin:
            admin.execute(
                "INSERT INTO attribution_channel_days VALUES (%s, '2025-01-01', 'linear', '1', 'email', 5, %s)", [A, A]
            )
        assert offboard(operator_transaction, A, by="eve", reason=None).attribution == 0
        assert len(all_of(database, "attribution_channel_days")) == 1

    def test_what_comes_meanwhile_goes_too(self, database: Database) -> None:
        fill_tenant(A)
        late = iter([3, 2, 0, 0])

        def messages(_: UUID) -> dict[str, int]:
            # Jobs that were running fail, after the queues were looked at.
            for _n in range(next(late)):
                recorded(tenant_id=A, fingerprint=f"{7:032}")
            return {}

        done = offboard(operator_transaction, A, by="eve", reason=None, messages=messages)
        assert done.complete
        assert done.rows["pending"] == 10
        assert found_in(database, str(A)) == {"worker_failed_job_events"}
        # And what comes after, the next time.
        recorded(tenant_id=A)
        again = offboard(operator_transaction, A, by="eve", reason=None)
        assert (again.rows, again.complete) == ({"pending": 1}, True)
        assert len(events(database, "offboarded")) == 2

    def test_a_tenant_that_keeps_sending_does_not_keep_it_for_ever(self, database: Database) -> None:
        done = offboard(operator_transaction, A, by="eve", reason=None, messages=lambda _: {"llm": 1})
        assert not done.complete
        assert done.messages["llm"] > 1

    def test_what_is_held_is_said(self, database: Database) -> None:
        row_id = recorded()
        with holding(database, "SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE", row_id):
            done = offboard(operator_transaction, A, by="eve", reason=None)
        assert (done.held, done.complete) == (1, False)
        assert offboard(operator_transaction, A, by="eve", reason=None).complete
        assert rows(database) == []

    def test_a_stop_is_told(self, database: Database) -> None:
        fill_tenant(A)
        stops = iter([False, False])
        done = offboard(operator_transaction, A, by="eve", reason=None, batch=2, should_stop=lambda: next(stops, True))
        assert (done.complete, done.rows.total(), done.events) == (False, 2, 0)
        (event,) = events(database, "offboarded")
        assert event["after"]["complete"] is False
        assert len(rows(database)) == 5

    def test_only_an_operator_may(self, database: Database) -> None:
        row_id = recorded()
        with tenant_context(A), pytest.raises(PermissionError, match="only an operator may off-board a tenant"):
            offboard(transaction, A, by="a", reason=None)
        assert ids(database) == {row_id}


class TestBoundToATenant:
    def test_it_touches_no_other_tenants_rows(self, database: Database) -> None:
        for tenant_id in (A, B):
            fill_tenant(tenant_id)
            recorded(tenant_id=tenant_id, queue="llm")
        rule("payload", 50)
        rule("pending", 60)
        before = everything_but(database, A)
        others = Filter(tenant_id=(B,))
        with tenant_context(A):
            assert purge(transaction, others, by="a", reason=None, in_progress=True).count == 0
            assert forget(transaction, others, by="a", reason=None).count == 0
            assert purge(transaction, Filter(queue=("llm",)), by="a", reason="ours").rows == {"pending": 1}
            swept = forget(transaction, Filter(queue=("attribution",), status=("pending",)), by="a", reason="ours")
            assert (swept.rows, swept.originals) == ({"pending": 5}, 5)
            # Of its own rule, 30 days.
            done = expire(transaction, now=later(31), by="a")
            assert (done.rows, done.payloads) == ({"resolved": 1}, 0)
            done = expire(transaction, now=later(51), by="a")
            assert (done.rows, done.payloads, done.events) == ({}, 1, 0)
            done = expire(transaction, now=later(1_000), by="a")
            assert (done.rows, done.groups, done.events) == ({"pending": 5, "abandoned": 1}, 3, 0)
        assert everything_but(database, A) == before
        assert [row for row in rows(database) if row["tenant_id"] == A] == []
        assert all_of(database, "worker_failed_job_originals", "tenant_id = %s", A) == []
        # It cannot remove its history.
        assert len(all_of(database, "worker_failed_job_events", "tenant_id = %s", A)) > 20

    def test_bound_to_none_it_touches_what_is_nobodys(self, database: Database) -> None:
        kept = recorded(tenant_id=A)
        recorded(tenant_id=None)
        with tenant_context(None):
            assert purge(transaction, Filter(queue=("attribution",)), by="o", reason=None).count == 1
        assert ids(database) == {kept}


class TestAtOnce:
    def test_two_who_expire_remove_each_row_once(self, database: Database) -> None:
        failed_jobs.record_all([a_failure(fingerprint=f"{n % 7:032}", original=b"x") for n in range(600)])
        rule("pending", 0)
        start = threading.Barrier(3)

        def run() -> Any:
            start.wait()
            return expired(1, batch=20)

        with ThreadPoolExecutor(3) as pool:
            done = [future.result(timeout=120) for future in [pool.submit(run) for _ in range(3)]]
        assert sum(d.rows["pending"] for d in done) == 600
        assert len(events(database, "purged")) == 600
        assert rows(database) == []
        assert_counts_are_right(database)

    def test_counts_are_right_whoever_writes_and_moves_meanwhile(self, database: Database) -> None:
        rule("pending", 0)
        rule("resolved", 0)
        rule("payload", 0)
        known: list[Failure] = []
        lock = threading.Lock()
        recorded_failures = 0
        writing = threading.Event()
        writing.set()

        def write(seed: int) -> None:
            nonlocal recorded_failures
            for n in range(40):
                batch = [
                    a_failure(
                        tenant_id=(A, B, None)[(seed + n + k) % 3],
                        fingerprint=f"{(seed * n + k) % 5:032}",
                        original=b"x",
                        failed_at=NOW + timedelta(milliseconds=n),
                    )
                    for k in range(6)
                ]
                with lock:
                    # Known messages fail again, of another cause.
                    batch += [
                        replace(f, delivery_id=str(uuid4()), fingerprint=f"{(n + k) % 5:032}")
                        for k, f in enumerate(known[-4:])
                    ]
                    known.extend(batch[:2])
                while True:
                    try:
                        failed_jobs.record_all(batch)
                        break
                    except RowLocked:
                        continue
                with lock:
                    recorded_failures += len(batch)
                if n % 10 == seed:
                    resolve(operator_transaction, Filter(queue=("attribution",)), by="eve", note="done")

        def until_written(work: Callable[[], object]) -> None:
            while writing.is_set():
                work()

        def for_tenant() -> None:
            with tenant_context(A):
                expire(transaction, now=later(1), by="a", batch=25)

        with ThreadPoolExecutor(6) as pool:
            others = [
                pool.submit(until_written, work)
                for work in (lambda: expired(1, batch=25), lambda: expired(1, batch=100), for_tenant)
            ]
            writers = [pool.submit(write, seed) for seed in (1, 2, 3)]
            try:
                for writer in writers:
                    writer.result(timeout=150)
            finally:
                writing.clear()
            for other in others:
                other.result(timeout=60)
        assert_counts_are_right(database)
        groups = all_of(database, "worker_failed_job_groups")
        assert sum(group["failures"] for group in groups) == recorded_failures
        expired(1)
        assert rows(database) == []
        assert all_of(database, "worker_failed_job_originals") == []
        assert_counts_are_right(database)


def test_no_event_of_ours_is_too_long_for_its_column(database: Database) -> None:
    with operator_transaction() as session:
        for event in ("retention_changed", "offboarded", "forgotten"):
            write_event(session, event, by="eve")
            count: Any = session.execute(
                text("SELECT count(*) FROM worker_failed_job_events WHERE event = :event"), {"event": event}
            ).scalar()
            assert count == 1
