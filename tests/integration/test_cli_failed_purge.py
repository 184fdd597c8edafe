"""``worker failed purge | forget | retention`` and ``worker tenants offboard``: what nothing brings back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import psycopg
import pytest
from dramatiq import Broker

from db import failed_jobs
from db.failed import Filter, get, history, resolve
from db.failed.retention import rules
from db.session import operator_transaction
from tests.integration.command_line import CommandLine
from tests.integration.failed_rows import fingerprint
from tests.integration.test_failed_jobs import A, B, a_failure, rows, set_status
from tests.servers import Database
from worker.broker import make_broker
from worker.settings import Settings


def record(number: int, **changes: Any) -> list[UUID]:
    failures = [a_failure(**{"fingerprint": fingerprint(0), "original": b"{}", **changes}) for _ in range(number)]
    failed_jobs.record_all(failures)
    return [failed_jobs.failed_job_id(f.task_id, f.task_name) for f in failures]


def there(database: Database) -> set[UUID]:
    return {row["id"] for row in rows(database)}


# --- purge ----------------------------------------------------------------------------------------


def test_jobs_are_purged_and_their_history_stays(database: Database, worker: CommandLine) -> None:
    row_id, *others = record(3)
    done = worker("failed", "purge", row_id, "--reason", "test data", "--yes")
    assert done.stdout == "1 job (1 pending) purged.\n"
    assert there(database) == set(others)
    with operator_transaction() as session:
        event = history(session, row_id)[-1]
    assert (event.event, event.changed_by, event.reason) == ("purged", "ada", "test data")
    assert worker.json("failed", "purge", "--queue", "attribution", "--yes")["rows"] == {"pending": 2}
    assert there(database) == set()


@pytest.mark.parametrize("command", ["purge", "forget"])
def test_even_one_is_asked_about(
    database: Database, worker: CommandLine, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (row_id,) = record(1, title="bad *")
    refused = worker("failed", command, row_id, status=1)
    assert "1 job (1 pending)\n  abcd0000  x1  ValueError: bad *" in refused.stderr
    assert "for ever? Say --yes" in refused.stderr
    asked: list[str] = []
    monkeypatch.setattr("worker.cli.failed.confirm.can_be_asked", lambda: True)
    monkeypatch.setattr("worker.cli.failed.confirm.typer.confirm", lambda question, **_: asked.append(question))
    assert worker("failed", command, row_id, status=1).stderr == "worker: nothing was changed\n"
    assert len(asked) == 1
    assert rows(database)[0]["task_args"] == [1, "two"]


@pytest.mark.parametrize("command", ["purge", "forget"])
def test_bare_it_is_refused(database: Database, worker: CommandLine, command: str) -> None:
    record(2)
    for bare in ((), ("--status", "all"), ("--dry-run",)):
        assert "say which jobs" in worker("failed", command, *bare, "--yes", status=1).stderr
    assert len(there(database)) == 2
    assert "no failed job matches" in worker("failed", command, uuid4(), "--yes", status=3).stderr
    assert worker("failed", command, "01234567", "--yes", status=3).stderr.startswith("worker: no failed job's id")


def test_a_dry_run_counts_and_changes_nothing(database: Database, worker: CommandLine) -> None:
    record(2)
    before = rows(database)
    assert worker("failed", "purge", "--queue", "attribution", "--dry-run").stdout == (
        "2 jobs (2 pending) would be purged.\n"
    )
    assert worker("failed", "forget", "--queue", "attribution", "--dry-run").stdout == (
        "2 jobs (2 pending) would be forgotten.\n"
    )
    assert worker("failed", "purge", "--expired", "--dry-run").stdout.startswith("Due: 0 jobs, 0 payloads")
    assert rows(database) == before


def test_what_is_in_progress_is_left_unless_it_is_meant(database: Database, worker: CommandLine) -> None:
    busy, _ = record(2)
    set_status(database, busy, "in_progress")
    done = worker("failed", "purge", "--queue", "attribution", "--yes", status=3)
    assert done.stdout.splitlines() == [
        "1 job (1 pending) purged.",
        "1 job in progress left (--in-progress takes them, too).",
    ]
    assert there(database) == {busy}
    worker("failed", "purge", busy, "--in-progress", "--yes")
    assert there(database) == set()


def test_what_was_called_with_is_forgotten_and_the_job_stays(database: Database, worker: CommandLine) -> None:
    (row_id,) = record(1)
    worker("failed", "forget", row_id, "--yes", "--reason", "asked to")
    with operator_transaction() as session:
        job = get(session, row_id)
        assert job is not None
        assert (job.task_args, job.task_kwargs, job.has_original) == (None, None, False)
        assert history(session, row_id)[-1].event == "forgotten"
    page = worker("failed", "show", row_id).stdout
    assert "and the arguments with it" in page
    assert "Arguments" not in page
    assert worker("failed", "forget", row_id, "--yes", status=3).stdout == "0 jobs forgotten.\n"


@pytest.mark.parametrize("command", ["purge", "forget"])
def test_a_tenants_operator_touches_that_ones_alone(database: Database, worker: CommandLine, command: str) -> None:
    own, theirs = record(1)[0], record(1, tenant_id=B)[0]
    bound: dict[str, Any] = {"OPERATOR_DATABASE_URL": "postgres://nobody:x@127.0.0.1:1/x", "WORKER_TENANT": str(A)}
    assert "no failed job matches" in worker("failed", command, theirs, "--yes", status=3, **bound).stderr
    worker("failed", command, "--queue", "attribution", "--yes", **bound)
    (left,) = (row for row in rows(database) if row["id"] == theirs)
    assert left["task_args"] == [1, "two"]
    assert [row for row in rows(database) if row["id"] == own and row["task_args"]] == []


# --- Retention ------------------------------------------------------------------------------------


def test_rules_are_made_shown_and_applied(database: Database, worker: CommandLine) -> None:
    acme = worker.add_tenant("Acme")
    old, new = record(1, failed_at=datetime(2020, 1, 1, tzinfo=UTC))[0], record(1)[0]
    resolve(operator_transaction, Filter(ids=(old, new)), by="ada", note="done")
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE worker_failed_jobs SET resolved_at = '2020-01-02' WHERE id = %s", [old])
    said = worker("failed", "retention", "set", "resolved", "365").stdout
    assert said == "resolved of all tenants: kept for 365 days.\n"
    assert worker("failed", "retention", "set", "payload", "7", "--tenant", "Acme", "--by", "bob").exit_code == 0
    assert "as before" in worker("failed", "retention", "set", "resolved", "365").stdout
    lines = [line.split() for line in worker("failed", "retention", "list").stdout.splitlines()]
    assert ["pending", "ever", "all", "tenants", "the", "default"] in lines
    assert any(line[:5] == ["resolved", "365", "days", "all", "tenants"] and line[5] == "ada" for line in lines if line)
    assert any(line[:5] == ["payload", "7", "days", "Acme", "bob"] for line in lines if line)
    listed = worker.json("failed", "retention", "list")
    assert {"subject": "payload", "keep_days": 7, "tenant_id": str(acme)}.items() <= listed[-1].items()
    asked = worker("failed", "purge", "--expired", status=1).stderr
    assert "Due: 1 job (1 resolved), 0 payloads, " in asked
    assert "Remove all that, for ever? Say --yes" in asked
    assert there(database) == {old, new}
    done = worker("failed", "purge", "--expired", "--yes").stdout
    assert done.startswith("Removed: 1 job (1 resolved), 0 payloads, ")
    # Nothing is left to ask about.
    assert worker("failed", "purge", "--expired").stdout.startswith("Removed: 0 jobs, ")
    assert there(database) == {new}
    worker("failed", "retention", "unset", "payload", "--tenant", acme)
    assert worker("failed", "retention", "unset", "payload", "--tenant", acme).stdout == "There was no such rule.\n"
    worker("failed", "retention", "set", "resolved", "forever")
    with operator_transaction() as session:
        assert {rule.subject: rule.keep_days for rule in rules(session)}["resolved"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "resolved", "-1"], ""),
        (["set", "resolved", "soon"], "DAYS must be 0 to 36500, or forever, not 'soon'"),
        (["set", "resolved", "40000"], "keep_days must be 0 to 36500, or None for ever, not 40000"),
        (["set", "done", "1"], "subject must be one of pending, in_progress, resolved, abandoned, payload, events"),
        (["set", "resolved", "1", "--tenant", "nobody"], "tenant must be a UUID or the name of one that is there"),
    ],
)
def test_a_rule_that_cannot_be_is_named(worker: CommandLine, arguments: list[str], said: str) -> None:
    assert said in worker("failed", "retention", *arguments, status=1 if said else 2).stderr


def test_expired_takes_no_filters(database: Database, worker: CommandLine) -> None:
    record(1)
    assert "--expired takes no filters" in worker("failed", "purge", "--expired", "--queue", "llm", status=1).stderr


def test_a_tenants_operator_reads_the_rules_that_hold_for_it(worker: CommandLine) -> None:
    worker("failed", "retention", "set", "resolved", "5", "--tenant", A)
    worker("failed", "retention", "set", "resolved", "6", "--tenant", B)
    found = worker.json("failed", "retention", "list", "--as-tenant", A)
    assert {(rule["tenant_id"], rule["keep_days"]) for rule in found if rule["subject"] == "resolved"} == {
        (None, 90),
        (str(A), 5),
    }


# --- Off-boarding ---------------------------------------------------------------------------------


def a_broker(database: Database, redis_url: str) -> Broker:
    return make_broker(Settings.load({**database.environment(), "REDIS_URL": redis_url}))


def test_a_tenant_that_left_is_removed_with_the_counts_first(
    database: Database, worker: CommandLine, redis_url: str
) -> None:
    acme, other = worker.add_tenant("Acme"), worker.add_tenant("other")
    broker = a_broker(database, redis_url)

    @dramatiq.actor(broker=broker, queue_name="llm")
    def work() -> None:
        pass

    for tenant in (acme, acme, other):
        work.send_with_options(tenant_id=tenant)
    work.send_with_options(tenant_id=acme, delay=3_600_000)
    record(2, tenant_id=acme)
    (kept,) = record(1, tenant_id=other)
    on: dict[str, Any] = {"REDIS_URL": redis_url}
    counted = worker("tenants", "offboard", "Acme", "--dry-run", **on).stdout
    assert counted.startswith(f"Of Acme ({acme}): 3 waiting messages (3 in llm), 2 failed jobs, 2 originals, 1 group, ")
    assert "would be removed" in counted
    refused = worker("tenants", "offboard", "Acme", status=1, **on).stderr
    assert "3 waiting messages (3 in llm), 2 failed jobs" in refused
    assert "Say --yes" in refused
    assert len(there(database)) == 3
    done = worker.json("tenants", "offboard", "Acme", "--yes", "--reason", "left", **on)
    assert (done["messages"], done["rows"], done["complete"], done["running"]) == ({"llm": 3}, {"pending": 2}, True, 0)
    assert there(database) == {kept}
    assert broker.do_qsize("llm") == 1  # type: ignore[attr-defined]
    with psycopg.connect(database.admin_url) as connection:
        events = connection.execute(
            "SELECT changed_by, reason, after ->> 'tenant_id' FROM worker_failed_job_events WHERE event = 'offboarded'"
        ).fetchall()
        assert events == [("ada", "left", str(acme))]
    again = worker("tenants", "offboard", acme, "--yes", status=3, **on)
    assert "0 waiting messages, 0 failed jobs" in again.stdout
    broker.close()


def test_off_boarding_needs_redis_or_none_by_design(database: Database, worker: CommandLine) -> None:
    acme = worker.add_tenant("Acme")
    record(1, tenant_id=acme)
    away = worker("tenants", "offboard", "Acme", "--yes", status=2, REDIS_URL="redis://127.0.0.1:1/0")
    assert "Redis cannot be asked" in away.stderr
    assert len(there(database)) == 1
    assert "1 failed job" in worker("tenants", "offboard", "Acme", "--yes").stdout
    assert there(database) == set()


def test_what_expires_may_be_asked_for_by_programs(database: Database, worker: CommandLine) -> None:
    record(1, failed_at=datetime.now(UTC) - timedelta(days=3))
    worker("failed", "retention", "set", "pending", "2")
    due = worker.json("failed", "purge", "--expired", "--dry-run")
    assert (due["rows"], due["dry_run"]) == ({"pending": 1}, True)
    assert len(there(database)) == 1
    done = json.loads(worker("failed", "purge", "--expired", "--yes", "--json").stdout)
    assert (done["rows"], done["dry_run"]) == ({"pending": 1}, False)
    assert there(database) == set()
