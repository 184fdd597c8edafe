"""``worker failed audit | keys``: what people did, and which keys may go."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis

from db import failed_jobs
from db.failed import Filter, note, resolve, write_event
from db.replays import edits
from db.replays.edits import Arguments, Edit
from db.sealing import Keys, generate
from db.session import operator_transaction
from tests.integration.command_line import CommandLine
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database


def at(database: Database, event: str, when: str) -> None:
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(
            "UPDATE worker_failed_job_events SET happened_at = now() - CAST(%s AS interval) WHERE event = %s",
            [when, event],
        )


@pytest.fixture
def done(database: Database) -> tuple[UUID, UUID]:
    """Things that two people did, one of them to another tenant's job."""
    own, theirs = failed_jobs.record(a_failure()), failed_jobs.record(a_failure(tenant_id=B))
    note(operator_transaction, Filter(ids=(own,)), by="ada", note="looked at\x1b[31m it")
    resolve(operator_transaction, Filter(ids=(theirs,)), by="bob", note="loaded again")
    with operator_transaction() as session:
        write_event(session, "queue_paused", by="bob", reason="their API is down", after={"queue": "llm"})
    at(database, "noted", "3 days")
    at(database, "resolved", "2 hours")
    return own, theirs


def test_who_did_what_to_which_row_when_and_why(done: tuple[UUID, UUID], worker: CommandLine) -> None:
    own, theirs = done
    paused, resolved, noted = worker("failed", "audit").stdout.splitlines()[1:4]
    assert [word in resolved for word in ("2h", "bob", "resolved", str(theirs)[:8], "loaded again")] == [True] * 5
    assert [word in noted for word in ("3d", "ada", "noted", str(own)[:8], "looked at\\x1b[31m it")] == [True] * 5
    assert [word in paused for word in ("bob", "queue_paused", "queue llm", "their API is down")] == [True] * 4
    # Failures are nobody's deeds.
    assert "captured" not in worker("failed", "audit").stdout
    found = worker.json("failed", "audit")
    assert found["next"] is None
    assert [(event["event"], event["changed_by"], event["failed_job_id"]) for event in found["events"]] == [
        ("queue_paused", "bob", None),
        ("resolved", "bob", str(theirs)),
        ("noted", "ada", str(own)),
    ]
    assert found["events"][0]["after"] == {"queue": "llm"}


def test_what_a_tenant_writes_into_the_history_stops_nobody(
    database: Database, done: tuple[UUID, UUID], worker: CommandLine
) -> None:
    for before, after in (("[1]", '"text"'), ('{"queues": 7}', '{"queue": {"a": 1}}'), ('{"queues": [7]}', "null")):
        with psycopg.connect(database.worker_url) as connection:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(A)])
            connection.execute(
                "INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, before, after)"
                " VALUES (%s, %s, 'edited', 'strange', %s, %s)",
                [None if "queue" in before else done[1], A, before, after],
            )
    assert worker("failed", "audit").stdout.count("strange") == 3
    assert "strange" in worker("failed", "show", done[1]).stdout


@pytest.mark.parametrize(
    ("asked", "events"),
    [
        (("--who", "bob"), ["queue_paused", "resolved"]),
        (("--who", "bob", "--who", "ada", "--since", "1h"), ["queue_paused"]),
        (("--since", "1d"), ["queue_paused", "resolved"]),
        (("--until", "1d"), ["noted"]),
        (("--since", "7d", "--until", "1h"), ["resolved", "noted"]),
        (("--event", "noted"), ["noted"]),
        (("--as-tenant", str(A)), ["noted"]),
    ],
)
def test_what_is_asked_for(
    done: tuple[UUID, UUID], worker: CommandLine, asked: tuple[str, ...], events: list[str]
) -> None:
    assert [event["event"] for event in worker.json("failed", "audit", *asked)["events"]] == events


def test_page_by_page_and_what_is_wrong(done: tuple[UUID, UUID], worker: CommandLine) -> None:
    found = worker.json("failed", "audit", "--limit", 2)
    rest = worker.json("failed", "audit", "--limit", 2, "--after", found["next"])
    assert [event["event"] for event in rest["events"]] == ["noted"]
    assert rest["next"] is None
    said = worker("failed", "audit", "--who", "bob", "--limit", 1).stdout
    assert (
        f"worker failed audit --who bob --limit 1 --after {worker.json('failed', 'audit')['events'][0]['id']}" in said
    )
    assert worker("failed", "audit", "--who", "eve").stdout == "Nobody did anything of that kind.\n"
    assert "since must be a time such as" in worker("failed", "audit", "--since", "never", status=1).stderr
    assert "must be before until" in worker("failed", "audit", "--since", "1h", "--until", "2h", status=1).stderr
    assert "limit must be 1 to 1000" in worker("failed", "audit", "--limit", 0, status=1).stderr


def test_which_key_sealed_what_and_which_may_go(database: Database, worker: CommandLine, redis_url: str) -> None:
    values = [generate() for _ in range(4)]
    current, old, unused, gone = (Keys.from_setting(value) for value in values)
    for keys, number in ((current, 2), (old, 1), (gone, 1)):
        for _ in range(number):
            sealed, key_id = keys.seal(b"original")
            failed_jobs.record(a_failure(original=sealed, original_key=key_id))
    row_id = failed_jobs.record(a_failure(original=b"in clear"))
    with operator_transaction() as session:
        # What somebody edited is encrypted, too.
        edits.keep(session, row_id, Edit(Arguments([], {}), Arguments([1], {})), old)
    strange = failed_jobs.record(a_failure(original=b"x"))
    with psycopg.connect(database.admin_url) as connection:
        # A tenant may write what it likes.
        connection.execute(
            "UPDATE worker_failed_job_originals SET original = %s WHERE failed_job_id = %s",
            [b"dramaturg-sealed:\xff\x00\x1b[31m", strange],
        )
    sealed, key_id = unused.seal(b"original")
    spooled = a_failure(original=sealed, original_key=key_id).as_json()
    with redis.Redis.from_url(redis_url) as client:
        client.hset("dramatiq:__dramaturg__.spool", "attribution:1", json.dumps(spooled))
        client.hset("dramatiq:__dramaturg__.spool", "attribution:2", "unreadable")
    environment: dict[str, Any] = {"FAILED_JOB_KEYS": ",".join(values[:3]), "REDIS_URL": redis_url}
    found = {key["key"]: key for key in worker.json("failed", "keys", **environment)}
    assert found[current.current] == {
        "key": current.current, "kept": 2, "spooled": 0, "configured": True, "encrypts": True,
    }  # fmt: skip
    assert [found[k.current]["kept"] for k in (old, unused, gone)] == [2, 0, 1]
    assert [found[k.current]["spooled"] for k in (old, unused, gone)] == [0, 1, 0]
    assert [found[k.current]["configured"] for k in (old, unused, gone)] == [True, True, False]
    assert found[None] == {"key": None, "kept": 1, "spooled": 0, "configured": None, "encrypts": False}
    said = worker("failed", "keys", **environment).stdout
    lines = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "encrypts" in lines[current.current]
    assert "needed" in lines[old.current]
    assert "needed" in lines[unused.current]
    assert "MISSING" in lines[gone.current]
    assert "\x1b" not in said
    assert not any(value in said for value in values)
    with redis.Redis.from_url(redis_url) as client:
        client.delete("dramatiq:__dramaturg__.spool")
    assert f"{unused.current} may go" in " ".join(worker("failed", "keys", **environment).stdout.split())
    # Where Redis cannot be asked, none may.
    away = worker("failed", "keys", **{**environment, "REDIS_URL": "redis://127.0.0.1:1/0"})
    assert "may go" not in away.stdout
    assert "Redis cannot be asked" in away.stderr


def test_without_keys_nothing_is_encrypted(worker: CommandLine) -> None:
    failed_jobs.record(a_failure(original=b"in clear"))
    assert worker.json("failed", "keys") == [
        {"key": None, "kept": 1, "spooled": None, "configured": None, "encrypts": True}
    ]
    assert "FAILED_JOB_KEYS is not set" in worker("failed", "keys").stdout
