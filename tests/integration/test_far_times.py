"""Times that Postgres knows and Python does not: whoever writes one into its own rows breaks nobody else's work."""

from __future__ import annotations

import asyncio
import copy
import pickle
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from db import failed_jobs, session
from db.failed import Filter, count, find, history, iterate
from db.failed.batches import Where, remove
from db.far_time import FarTime
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.command_line import CommandLine
from tests.integration.failed_rows import fingerprint
from tests.integration.replaying import Deployment
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database

FAR = ("infinity", "-infinity", "0044-03-15 12:00:00+00 BC", "10000-01-01 00:00:00+00", "12026-01-01 00:00:00+00")


@pytest.fixture
def rows(database: Database) -> list[UUID]:
    """Rows of a tenant that wrote times such as nobody means, two each, and one of another tenant, the last."""
    far = [
        failed_jobs.record(a_failure(error_message=f"far {n}", fingerprint=fingerprint(0))) for n in range(2 * len(FAR))
    ]
    with tenant_context(A), transaction() as s:
        for n, row_id in enumerate(far):
            s.execute(
                text(
                    "UPDATE worker_failed_jobs SET failed_at = CAST(:far AS timestamptz), last_retry_at = failed_at,"
                    " resolved_at = CAST(:far AS timestamptz) WHERE id = :id"
                ),
                {"far": FAR[n // 2], "id": row_id},
            )
        s.execute(
            text(
                "INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, happened_at)"
                " VALUES (:id, :tenant, 'edited', 'strange', 'infinity')"
            ),
            {"id": far[0], "tenant": A},
        )
    return [*far, failed_jobs.record(a_failure(tenant_id=B, error_message="of today", fingerprint=fingerprint(1)))]


def test_every_look_at_them_goes_on(rows: list[UUID], worker: CommandLine) -> None:
    *far, other = rows
    assert str(other)[:8] in worker("failed", "list", "--status", "all").stdout
    listed = worker.json("failed", "list", "--status", "all")["jobs"]
    assert [job["id"] for job in listed if job["tenant_id"] == str(B)] == [str(other)]
    assert {job["failed_at"] for job in listed if job["tenant_id"] == str(A)} == set(FAR)
    for row_id in rows:
        assert str(row_id) in worker("failed", "show", row_id).stdout
        worker.json("failed", "show", row_id)
    assert "(infinity)" in worker("failed", "show", far[0]).stdout
    assert worker.json("failed", "stats", "--status", "all")["jobs"] == len(rows)
    for words in (("stats",), ("groups",), ("audit",), ("list", "--text", "far"), ("export",)):
        worker("failed", *words)
        worker("failed", *words, "--as-tenant", str(A))


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("where", [Filter(), Filter(tenant_id=(A,)), Filter(text="far"), Filter(status=("pending",))])
def test_page_by_page_each_comes_once(rows: list[UUID], worker: CommandLine, limit: int, where: Filter) -> None:
    found: list[UUID] = []
    after = None
    with operator_transaction() as s:
        while len(found) <= len(rows):
            page = find(s, where, after=after, limit=limit)
            found += [job.id for job in page.jobs]
            after = page.next
            if after is None:
                break
            # As people copy it.
            assert " " not in after
        assert sorted(found) == sorted(rows if where.tenant_id == () and where.text is None else rows[:-1])
        assert [job.failed_at for job in find(s, where).jobs] == sorted(
            (job.failed_at for job in find(s, where).jobs), reverse=True
        )
        assert len(list(iterate(s, where))) == len(found)


def test_they_are_changed_and_removed_like_others(rows: list[UUID], database: Database, worker: CommandLine) -> None:
    worker("failed", "note", "--status", "pending", "--note", "seen", "--yes")
    worker("failed", "resolve", rows[0], "--note", "of no use")
    # By filter, nothing that fails after the question: of such times nobody knows that they were before it.
    worker("failed", "abandon", "--tenant", str(A), "--reason", "of no use", "--yes")
    everything = Where("true", {})
    with operator_transaction() as s:
        left = count(s, Filter())
    removed = remove(operator_transaction, everything, by="ada", reason=None, batch=2, oldest_first=True)
    assert (removed.count, left) == (len(rows), len(rows))
    with operator_transaction() as s:
        assert next(event.event for event in history(s, rows[-1])) == "captured"


def test_a_replay_comes_by_each_of_them_once(deployment: Deployment) -> None:
    names = [str(n) for n in range(5)]
    rows = deployment.fail(*names)
    deployment.fails.clear()
    deployment.ran.clear()
    for row_id, far in zip(rows, FAR, strict=True):
        deployment.sql("UPDATE worker_failed_jobs SET failed_at = CAST(%s AS timestamptz) WHERE id = %s", far, row_id)
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(1,))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"succeeded": 5})
    assert sorted(what for what, *_ in deployment.ran) == names


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_a_time_comes_back_as_it_was(database: Database, zone: str) -> None:
    edges = ("0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00", "0001-01-01 12:00:00+00 BC")
    with operator_transaction() as s:
        s.execute(text("SELECT set_config('TimeZone', :zone, true)"), {"zone": zone})
        for written in (*FAR, *edges, "2026-01-01 00:00:00+00"):
            found: Any = s.execute(text("SELECT CAST(:at AS timestamptz)"), {"at": written}).scalar_one()
            assert isinstance(found, datetime)
            # It can be reckoned with, and compared.
            assert found.astimezone(UTC) >= datetime.min.replace(tzinfo=UTC)
            assert (found < datetime(2025, 1, 1, tzinfo=UTC)) == (written[0] in "-0")
            again = s.execute(
                text("SELECT CAST(:found AS timestamptz) = CAST(:at AS timestamptz)"), {"found": found, "at": written}
            ).scalar_one()
            assert again is True


def test_what_is_copied_is_the_same() -> None:
    for far in FAR:
        one = FarTime.of(far)
        for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one)), FarTime.parse(one.isoformat())):  # noqa: S301
            assert (other, other.isoformat()) == (one, far)
    for wrong in ("", "infinit", "now", "10000-01-01", "2026-01-01 00:00:00+00", "'; DROP TABLE"):
        with pytest.raises(ValueError, match="no time"):
            FarTime.parse(wrong)


def test_also_in_async_code(database: Database) -> None:
    async def look() -> object:
        async with transaction() as s:
            found: object = (await s.execute(text("SELECT CAST('infinity' AS timestamptz)"))).scalar_one()
        await session.dispose_async()
        return found

    with tenant_context(A):
        assert isinstance(asyncio.run(look()), FarTime)


def test_what_is_none_is_refused(worker: CommandLine, rows: list[UUID]) -> None:
    done = worker("failed", "list", "--after", f"10000-99-01_00:00:00+00~{rows[0]}", status=2)
    assert done.stderr.startswith("worker: Postgres refused: date/time field value out of range")
    with psycopg.connect(worker.database.admin_url) as connection, pytest.raises(psycopg.DataError):
        # Whoever connects by other means is not told otherwise.
        connection.execute("SELECT CAST('infinity' AS timestamptz)").fetchone()
