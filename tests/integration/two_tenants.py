"""Two tenants' failed jobs, groups, replays and history, with a mark in every text that only some may see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
import redis
from psycopg import sql

from db import failed_jobs
from db.failed import Filter, abandon, note
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.test_failed_jobs import a_failure
from tests.servers import Database
from worker.queue_admin import pause

MINE, THEIRS = UUID("aaaaaaaa-0000-4000-8000-000000000001"), UUID("bbbbbbbb-0000-4000-8000-000000000002")
#: What is in each text of the other tenant's; a page that let it through would run it.
WORD: Final = "hush7f3a"
MARK: Final = f"<script>alert('{WORD}')</script>"

_TRACEBACK: Final = f"""Traceback (most recent call last):
  File "/app/shop/{MARK}.py", line 3, in {MARK}
    raise {MARK}
shop.errors.{MARK}: {MARK}
"""


@dataclass(frozen=True)
class Things:
    """Of one tenant, or of none: what a path or a filter can name."""

    tenant_id: UUID | None
    jobs: tuple[UUID, ...]
    fingerprints: tuple[str, ...]
    replays: tuple[UUID, ...]
    correlation_id: UUID
    message_id: str
    events: tuple[int, ...]

    def in_paths(self) -> Iterator[str]:
        """Give everything that a part of a path may be."""
        yield from map(str, (*self.jobs, *self.replays))
        yield from self.fingerprints
        yield from (fingerprint[:8] for fingerprint in self.fingerprints)
        yield from map(str, self.events[:2])
        yield str(self.correlation_id)
        if self.tenant_id is not None:
            yield str(self.tenant_id)


def plant(database: Database, redis_url: str) -> tuple[Things, Things, Things]:
    """Make two tenants, and return what is mine, what is theirs, and what is nobody's: theirs is marked, and so is
    nobody's, which operators of all tenants alone may see."""
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO tenants (id, name) VALUES (%s, 'mine'), (%s, %s)", [MINE, THEIRS, f"theirs {MARK}"]
        )
    mine = _of_tenant(database, MINE, "", "a")
    theirs = _of_tenant(database, THEIRS, MARK, "b")
    nobodys = _of_tenant(database, None, MARK, "c")
    with redis.Redis.from_url(redis_url) as client:
        pause(client, "llm", by=f"by {MARK}", reason=f"because {MARK}")
    return mine, theirs, nobodys


def _of_tenant(database: Database, tenant_id: UUID | None, mark: str, letter: str) -> Things:
    correlation_id, message_id = uuid4(), str(uuid4())
    fingerprints = tuple(f"{letter * 4}{n}{letter * 27}" for n in range(2))
    failures = [
        a_failure(
            tenant_id=tenant_id,
            task_id=message_id if n == 0 else str(uuid4()),
            task_name=f"shop.run {mark}",
            worker=f"host {mark}/1",
            task_args=[1, f"argument {mark}"],
            task_kwargs={f"name {mark}": f"value {mark}", "nested": {f"k {mark}": [f"v {mark}"]}},
            error_type=f"kind {mark}"[:100],
            exception_class=f"shop.errors.Wrong{mark}",
            error_message=f"message {mark}\nsecond line {mark}",
            traceback=_TRACEBACK.replace(MARK, mark or "mine"),
            correlation_id=correlation_id,
            failed_at=datetime.now(UTC) - timedelta(minutes=5 + n),
            fingerprint=fingerprints[n % 2],
            title=f"title {mark}",
            place=f"shop.{mark}:run",
            attempts=[
                {
                    "at": "2026-01-01T00:00:00.000+00:00",
                    "worker": f"w {mark}",
                    "exception_class": f"E {mark}",
                    "message": f"m {mark}",
                    "place": f"elsewhere.{mark}:run",
                }
            ],
            original=b'{"args": ["' + mark.encode() + b'"]}',
        )
        for n in range(4)
    ]
    failed_jobs.record_all(failures)
    who = f"person {mark}"
    with psycopg.connect(database.admin_url) as connection:
        jobs = tuple(
            row[0]
            for row in connection.execute(
                "SELECT id FROM worker_failed_jobs WHERE tenant_id IS NOT DISTINCT FROM %s ORDER BY failed_at DESC",
                [tenant_id],
            )
        )
    note(operator_transaction, Filter(ids=jobs), by=who, note=f"note {mark}")
    abandon(operator_transaction, Filter(ids=jobs[3:]), by=who, reason=f"reason {mark}")
    replays = tuple(_replay(tenant_id, Filter(ids=jobs[:1]), state, who, mark) for state in ("running", "paused"))
    with psycopg.connect(database.admin_url) as connection:
        # What became of its jobs.
        for n, state in enumerate(("sent", "failed", "refused")):
            connection.execute(
                """
                INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id, state, why, ended_at)
                VALUES (%s, %s, %s, %s, %s, CASE WHEN %s <> 'sent' THEN now() END)
                """,
                [replays[0], jobs[n], tenant_id, state, f"why {mark}", state],
            )
        events = tuple(
            row[0]
            for row in connection.execute(
                "SELECT id FROM worker_failed_job_events WHERE tenant_id IS NOT DISTINCT FROM %s ORDER BY id DESC",
                [tenant_id],
            )
        )
    return Things(tenant_id, jobs, fingerprints, replays, correlation_id, message_id, events)


def _replay(tenant_id: UUID | None, where: Filter, state: str, who: str, mark: str) -> UUID:
    def make(session: Any) -> UUID:
        settings = ReplaySettings(actor=f"actor {mark}")
        replay_id = runs.create(session, where, settings, by=who, reason=f"reason {mark}")
        if state == "paused":
            runs.pause(session, replay_id, by=who, why=f"why {mark}")
        return replay_id

    if tenant_id is None:
        with operator_transaction() as session:
            return make(session)
    with tenant_context(tenant_id), transaction() as session:
        return make(session)


def everything(database: Database) -> dict[str, str]:
    """Return all rows of every table, as a superuser sees them."""
    with psycopg.connect(database.admin_url) as connection:
        tables = [
            row[0]
            for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        ]
        found = {}
        for table in sorted(tables):
            row = connection.execute(
                sql.SQL("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {} t").format(
                    sql.Identifier(table)
                )
            ).fetchone()
            assert row is not None
            found[table] = str(row[0])
        return found
