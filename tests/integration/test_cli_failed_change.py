"""``worker failed resolve | abandon | reopen | note``: who may do what to which, after being asked."""

from __future__ import annotations

import getpass
import json
import socket
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from db import failed_jobs
from db.failed import history
from db.session import operator_transaction
from tests.integration.command_line import CommandLine
from tests.integration.failed_rows import START, fingerprint
from tests.integration.test_failed_jobs import A, B, a_failure, rows, set_status
from tests.servers import Database

WORDS = {
    "resolve": ("--note", "done"),
    "abandon": ("--reason", "no"),
    "reopen": ("--reason", "again"),
    "note": ("--note", "look"),
}


def record(number: int, **changes: Any) -> list[UUID]:
    failures = [a_failure(**{"fingerprint": fingerprint(0), **changes}) for _ in range(number)]
    failed_jobs.record_all(failures)
    return [failed_jobs.failed_job_id(f.task_id, f.task_name) for f in failures]


def statuses(database: Database) -> dict[UUID, str]:
    return {row["id"]: row["status"] for row in rows(database)}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What somebody at a terminal was asked; they answer yes."""
    asked: list[str] = []

    def confirm(question: str, **_: object) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr("worker.cli.failed.confirm.can_be_asked", lambda: True)
    monkeypatch.setattr("worker.cli.failed.confirm.typer.confirm", confirm)
    return asked


def test_each_by_id(database: Database, worker: CommandLine) -> None:
    (row_id,) = record(1)
    short = str(row_id)[:8]
    for command, past, status in (
        ("abandon", "abandoned", "abandoned"),
        ("reopen", "re-opened", "pending"),
        ("note", "noted", "pending"),
        ("resolve", "resolved", "resolved"),
    ):
        done = worker("failed", command, short, *WORDS[command])
        assert done.stdout == f"1 job {past}.\n"
        assert statuses(database) == {row_id: status}
    assert rows(database)[0]["remediation_notes"] == "no\nagain\nlook\ndone"


def test_who_it_was(worker: CommandLine) -> None:
    (row_id,) = record(1)
    worker("failed", "note", row_id, "--note", "one")
    worker("failed", "note", row_id, "--note", "two", "--by", "bob@ops")
    worker("failed", "note", row_id, "--note", "three", WORKER_OPERATOR="")
    with operator_transaction() as session:
        who = [event.changed_by for event in history(session, row_id)[1:]]
    assert who == ["ada", "bob@ops", f"{getpass.getuser()}@{socket.gethostname()}"]


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize("bare", [(), ("--status", "all")])
def test_bare_it_is_refused(database: Database, worker: CommandLine, command: str, bare: tuple[str, ...]) -> None:
    record(2)
    before = rows(database)
    done = worker("failed", command, *bare, *WORDS[command], "--yes", status=1)
    assert "say which jobs" in done.stderr
    assert rows(database) == before


@pytest.mark.parametrize("command", ["resolve", "abandon", "note"])
@pytest.mark.parametrize("words", [(), ("",), ("  ",)])
def test_without_words_it_is_refused(
    database: Database, worker: CommandLine, command: str, words: tuple[str, ...]
) -> None:
    (row_id,) = record(1)
    option = WORDS[command][0]
    done = worker("failed", command, row_id, *((option, words[0]) if words else ()), status=1)
    assert f"{option} must say" in done.stderr
    assert statuses(database) == {row_id: "pending"}


def test_many_are_asked_about_with_what_they_are(database: Database, worker: CommandLine, answers: list[str]) -> None:
    record(3, queue="llm", title="bad *", exception_class="shop.errors.Bad")
    record(2, queue="llm", fingerprint=fingerprint(1), title="worse *", tenant_id=B)
    done_already, *_ = record(1, queue="llm")
    set_status(database, done_already, "resolved")
    record(1, queue="other")
    done = worker("failed", "resolve", "--queue", "llm", "--note", "done")
    assert answers == ["Resolve 5 jobs?"]
    assert "5 jobs (5 pending)" in done.stdout
    assert "abcd0000  x3  Bad: bad *" in done.stdout
    assert "abcd1000  x2  ValueError: worse *" in done.stdout
    assert done.stdout.endswith("5 jobs resolved.\n")
    assert sorted(statuses(database).values()) == ["pending"] + 6 * ["resolved"]


def test_one_needs_no_question_and_neither_do_ids(worker: CommandLine, answers: list[str]) -> None:
    ids = record(3)
    record(1, queue="llm")
    worker("failed", "abandon", "--queue", "llm", "--reason", "no")
    worker("failed", "abandon", *ids, "--reason", "no")
    assert answers == []


def test_no_is_no(database: Database, worker: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    record(2)
    monkeypatch.setattr("worker.cli.failed.confirm.can_be_asked", lambda: True)
    monkeypatch.setattr("worker.cli.failed.confirm.typer.confirm", lambda *_, **__: False)
    done = worker("failed", "resolve", "--queue", "attribution", "--note", "n", status=1)
    assert done.stderr == "worker: nothing was changed\n"
    assert set(statuses(database).values()) == {"pending"}


def test_where_nobody_can_be_asked_it_is_refused_without_yes(database: Database, worker: CommandLine) -> None:
    record(2)
    refused = worker("failed", "resolve", "--queue", "attribution", "--note", "n", status=1)
    assert "2 jobs (2 pending)" in refused.stderr
    assert "Say --yes" in refused.stderr
    assert set(statuses(database).values()) == {"pending"}
    assert worker("failed", "resolve", "--queue", "attribution", "--note", "n", "--yes").stdout == "2 jobs resolved.\n"


def test_what_fails_after_the_question_was_not_asked_about(
    database: Database, worker: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_about = record(2)

    def confirm(*_: object, **__: object) -> bool:
        # While somebody thinks about it; this one's clock is behind, that one's ahead.
        record(1, failed_at=START + timedelta(days=300))
        return True

    monkeypatch.setattr("worker.cli.failed.confirm.can_be_asked", lambda: True)
    monkeypatch.setattr("worker.cli.failed.confirm.typer.confirm", confirm)
    assert worker("failed", "resolve", "--queue", "attribution", "--note", "n").stdout.endswith("2 jobs resolved.\n")
    resolved = {row_id for row_id, status in statuses(database).items() if status == "resolved"}
    assert resolved == set(asked_about)


def test_what_is_refused_is_named_with_what_is_allowed(database: Database, worker: CommandLine) -> None:
    resolved, abandoned, pending = record(3)
    set_status(database, resolved, "resolved")
    set_status(database, abandoned, "abandoned")
    unknown = uuid4()
    done = worker("failed", "abandon", resolved, abandoned, pending, unknown, "--reason", "no", status=3)
    assert done.stdout.splitlines() == [
        "1 job abandoned.",
        f"{resolved} is resolved, which is final",
        f"{abandoned} is abandoned already",
        f"{unknown} is not there",
    ]
    done = worker("failed", "resolve", abandoned, "--note", "n", status=3)
    assert done.stdout == f"{abandoned} is abandoned, and can become pending, in_progress only\n"


def test_nothing_to_do_says_what_there_is(database: Database, worker: CommandLine) -> None:
    for row_id in record(2):
        set_status(database, row_id, "resolved")
    done = worker("failed", "resolve", "--queue", "attribution", "--note", "n", "--yes", status=3)
    assert "nothing to resolve: it matches 2 jobs (2 resolved)" in done.stderr
    done = worker("failed", "resolve", "--queue", "llm", "--note", "n", "--yes", status=3)
    assert done.stderr == "worker: nothing to resolve: no failed job matches\n"
    # A status from which it cannot be is not every status.
    done = worker("failed", "abandon", "--status", "resolved", "--reason", "no", "--yes", status=3)
    assert "nothing to abandon" in done.stderr
    assert worker("failed", "note", "01234567", "--note", "n", status=3).stderr.startswith("worker: no failed job's id")


def test_what_became_of_it_for_programs(database: Database, worker: CommandLine) -> None:
    row_id, other = record(2)
    set_status(database, other, "resolved")
    done = worker("failed", "resolve", row_id, other, "--note", "n", "--json", status=3)
    assert json.loads(done.stdout) == {
        "changed": 1,
        "ids": [str(row_id)],
        "refused": {str(other): "is resolved already"},
        "left": 0,
    }


def test_what_somebody_holds_is_left_and_said(database: Database, worker: CommandLine) -> None:
    held, _ = record(2)
    with psycopg.connect(database.operator_url) as connection:
        connection.execute("SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE", [held])
        done = worker("failed", "resolve", "--queue", "attribution", "--note", "n", "--yes", status=3)
    assert done.stdout.splitlines() == ["1 job resolved.", "1 job left: somebody else held them; say it again."]
    assert statuses(database)[held] == "pending"


@pytest.mark.parametrize("command", WORDS)
def test_a_tenants_operator_touches_that_ones_alone(database: Database, worker: CommandLine, command: str) -> None:
    own, theirs, nobodys = (record(1, tenant_id=tenant)[0] for tenant in (A, B, None))
    if command == "reopen":
        for each in (own, theirs, nobodys):
            set_status(database, each, "abandoned")
    before = {row["id"]: row for row in rows(database)}
    bound: dict[str, Any] = {"OPERATOR_DATABASE_URL": "postgres://nobody:x@127.0.0.1:1/x", "WORKER_TENANT": str(A)}
    done = worker("failed", command, theirs, nobodys, *WORDS[command], status=3, **bound)
    assert f"{theirs} is not there" in done.stdout
    worker("failed", command, "--tenant", B, *WORDS[command], "--yes", status=3, **bound)
    worker("failed", command, "--queue", "attribution", *WORDS[command], "--yes", **bound)
    after = {row["id"]: row for row in rows(database)}
    assert {row_id for row_id in after if after[row_id] != before[row_id]} == {own}
    with operator_transaction() as session:
        event = history(session, own)[-1]
    assert (event.changed_by, event.tenant_id) == ("ada", A)


def test_a_deployment_that_is_wrong(worker: CommandLine) -> None:
    done = worker("failed", "list", status=2, OPERATOR_DATABASE_URL="postgres://u:hunter2@127.0.0.1:1/x")
    assert "Postgres cannot be reached" in done.stderr
    assert "hunter2" not in done.output
    assert worker("failed", "list", status=2, DATABASE_URL="").stderr.startswith("worker: DATABASE_URL: required")


def test_a_database_that_is_behind_is_told_by_what_mends_it(empty_database: Database) -> None:
    done = CommandLine(empty_database)("failed", "list", status=2)
    assert done.stderr == (
        'worker: Postgres refused: relation "worker_failed_jobs" does not exist; the database may be behind:'
        " worker migrate\n"
    )


def test_what_a_trigger_refuses_is_one_line(database: Database, worker: CommandLine) -> None:
    (job,) = record(1)
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("ALTER TABLE worker_failed_job_events ADD CHECK (event = 'captured')")
    done = worker("failed", "resolve", job, "--note", "n", status=2)
    assert done.stderr.startswith("worker: Postgres refused: new row for relation")
    assert len(done.stderr.splitlines()) == 1
