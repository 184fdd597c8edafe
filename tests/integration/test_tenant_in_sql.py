"""What somebody who runs SQL of their own, bound to one tenant, cannot do to the history, nor to others."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.errors import CheckViolation, InsufficientPrivilege

from db import failed_jobs
from db.failed import Filter, find_groups, stats
from db.session import operator_transaction
from tests.integration.failed_rows import START, fingerprint
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database


@pytest.fixture
def tenant(database: Database) -> Iterator[psycopg.Connection]:
    """A connection as workers have it, bound to A."""
    with psycopg.connect(database.worker_url, autocommit=True) as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, false)", [str(A)])
        yield connection


def fail(tenant_id: UUID | None) -> UUID:
    return failed_jobs.record(a_failure(tenant_id=tenant_id, task_id=str(uuid4()), fingerprint=fingerprint(0)))


def events(database: Database, job_id: UUID) -> list[tuple[str, str]]:
    with psycopg.connect(database.admin_url) as admin:
        return admin.execute(
            "SELECT event, database_user FROM worker_failed_job_events WHERE failed_job_id = %s ORDER BY id", [job_id]
        ).fetchall()


def test_it_takes_no_numbers_of_events_that_others_are_to_have(tenant: psycopg.Connection) -> None:
    with pytest.raises(InsufficientPrivilege):
        tenant.execute(
            "INSERT INTO worker_failed_job_events (id, tenant_id, event, changed_by)"
            " SELECT n, %s, 'noted', 'x' FROM generate_series(1, 1000) n",
            [A],
        )
    fail(B)


def test_it_cannot_say_that_postgres_knew_it_as_somebody_else(database: Database, tenant: psycopg.Connection) -> None:
    job = fail(A)
    statement = (
        "INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by{})"
        " VALUES (%s, %s, 'noted', 'the boss'{})"
    )
    with pytest.raises(InsufficientPrivilege):
        tenant.execute(statement.format(", database_user", ", 'postgres'").encode(), [job, A])
    tenant.execute(statement.format("", "").encode(), [job, A])
    assert events(database, job)[-1] == ("noted", tenant.info.user)


@pytest.mark.parametrize("table", ["worker_failed_job_events", "worker_failed_job_details", "worker_failed_job_groups"])
def test_a_temporary_table_takes_nothing_from_the_history(
    database: Database, tenant: psycopg.Connection, table: str
) -> None:
    job = fail(A)
    tenant.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM public.{table} WITH NO DATA".encode())
    tenant.execute("UPDATE public.worker_failed_jobs SET status = 'resolved' WHERE id = %s", [job])
    assert [event for event, _ in events(database, job)] == ["captured", "resolved"]
    with psycopg.connect(database.admin_url) as admin:
        assert admin.execute("SELECT pending, resolved FROM worker_failed_job_groups").fetchall() == [(0, 1)]
        assert admin.execute("SELECT status FROM worker_failed_job_details").fetchall() == [("resolved",)]
    tenant.execute("DELETE FROM public.worker_failed_jobs WHERE id = %s", [job])
    assert [event for event, _ in events(database, job)] == ["captured", "resolved", "purged"]


@pytest.mark.parametrize(
    "change",
    [
        "regressions = 2147483647",
        "failures = 9223372036854775807",
        "pending = 9223372036854775807, in_progress = 1",
        "abandoned = -9223372036854775808",
        "last_seen = 'infinity'",
        "first_seen = '-infinity'",
        "regressed_at = '20000-01-01'",
    ],
)
def test_no_group_of_one_tenant_breaks_the_sums_of_all(tenant: psycopg.Connection, change: str) -> None:
    fail(A)
    fail(B)
    with pytest.raises(CheckViolation):
        tenant.execute(f"UPDATE worker_failed_job_groups SET {change}".encode())


def test_sums_over_the_most_that_groups_hold(tenant: psycopg.Connection) -> None:
    fail(A)
    fail(B)
    most = 10**12
    fail(None)
    with operator_transaction() as session:
        session.connection().exec_driver_sql("UPDATE worker_failed_job_groups SET regressions = 1000000000")
    tenant.execute("UPDATE worker_failed_job_groups SET failures = %s, pending = %s", [most, most])
    with operator_transaction() as session:
        (group,), _ = find_groups(session, Filter())
        assert (group.failures, group.pending, group.regressions) == (most + 2, most + 2, 3 * 10**9)
        assert stats(session, Filter(), now=START).by_status["pending"] == most + 2


def test_a_group_that_counts_no_further_keeps_no_failure_from_being_recorded(
    database: Database, tenant: psycopg.Connection
) -> None:
    fail(A)
    tenant.execute("UPDATE worker_failed_job_groups SET failures = %s", [10**12])
    job = fail(A)
    failed_jobs.record_all(
        [a_failure(tenant_id=whose, task_id=str(uuid4()), fingerprint=fingerprint(0)) for whose in (A, B)]
    )
    with psycopg.connect(database.admin_url) as admin:
        assert admin.execute("SELECT count(*) FROM worker_failed_jobs").fetchall() == [(4,)]
        found = admin.execute("SELECT error_message FROM worker_failed_jobs WHERE id = %s", [job]).fetchall()
        # Only its group is left out: what it says fits.
        assert found == [(a_failure().error_message,)]
        assert admin.execute(
            "SELECT fingerprint FROM worker_failed_job_details WHERE failed_job_id = %s", [job]
        ).fetchall() == [(None,)]
