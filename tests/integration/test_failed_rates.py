"""Failures over time, and by tenant: equal to a recount, and within what a chart can show."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from db import failed_jobs
from db.failed import (
    FailureRates,
    Filter,
    InvalidFilter,
    TenantFailures,
    abandon,
    failures_by_tenant,
    failures_per_minute,
    resolve,
)
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.failed_rows import START, TENANTS, fingerprint, record_at_random, seeded
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database

#: Of :func:`record_at_random`, every failure is in the 40 minutes before.
END = START + timedelta(minutes=41)
C = UUID(int=0xC)


def rates(tenant_id: UUID | None = None, **options: Any) -> FailureRates:
    with operator_transaction() as session:
        return failures_per_minute(session, tenant_id=tenant_id, **{"since": START, "now": END, **options})


def recounted(rows: list[dict[str, Any]], found: FailureRates) -> dict[str, Counter[int]]:
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        counts.setdefault(row["error_type"], Counter())[(row["failed_at"] - found.since) // found.width] += 1
    return counts


def as_counts(found: FailureRates) -> dict[str | None, Counter[int]]:
    return {
        one.error_type: Counter({n: failures for n, failures in enumerate(one.failures) if failures})
        for one in found.series
    }


class TestRates:
    @pytest.mark.parametrize("seed", [1, 2])
    def test_they_equal_a_recount_whoever_looks(self, database: Database, seed: int) -> None:
        rows = record_at_random(database, seed)
        assert {row["status"] for row in rows} == {"pending", "in_progress", "resolved", "abandoned"}
        for options in ({}, {"buckets": 15}, {"since": START - timedelta(days=200)}):
            found = rates(**options)
            assert as_counts(found) == recounted(rows, found)
            assert sum(found.totals) == sum(one.total for one in found.series) == len(rows)
            totals = [one.total for one in found.series]
            assert totals == sorted(totals, reverse=True)
        for tenant in (t for t in TENANTS if t is not None):
            own = [row for row in rows if row["tenant_id"] == tenant]
            asked = rates(tenant)
            with tenant_context(tenant), transaction() as session:
                bound = failures_per_minute(session, since=START, now=END)
                others = failures_per_minute(session, since=START, now=END, tenant_id=B if tenant == A else A)
            assert asked == bound
            assert as_counts(bound) == recounted(own, bound)
            assert others.series == ()

    def test_of_many_types_the_most_frequent_are_told_apart(self, database: Database) -> None:
        for kind, count in {"b": 2, "a": 2, "few": 1, "most": 4, "fewer": 1}.items():
            failed_jobs.record_all([a_failure(error_type=kind, failed_at=START) for _ in range(count)])
        found = rates(types=3)
        assert [(one.error_type, one.total) for one in found.series] == [("most", 4), ("a", 2), ("b", 2), (None, 2)]
        assert [one.error_type for one in rates(types=5).series] == ["most", "a", "b", "few", "fewer"]

    def test_from_the_bucket_of_the_one_to_that_of_the_other_and_nothing_beyond(self, database: Database) -> None:
        def fail(seconds: float) -> None:
            failed_jobs.record(a_failure(failed_at=START + timedelta(seconds=seconds)))

        for seconds in (-0.001, 0, 59.999, 60, 150, 150.001):
            fail(seconds)
        found = rates(since=START + timedelta(seconds=30), now=START + timedelta(seconds=150))
        assert (found.since, found.width, found.buckets) == (START, timedelta(minutes=1), 3)
        assert found.totals == (2, 1, 1)

    def test_where_nothing_failed_there_are_buckets_and_no_series(self, database: Database) -> None:
        found = rates()
        assert (found.series, found.totals) == ((), (0,) * 42)

    @pytest.mark.parametrize("seed", range(3))
    def test_bars_are_no_more_than_a_chart_can_show_and_do_not_move(self, database: Database, seed: int) -> None:
        r = seeded(seed)
        with operator_transaction() as session:
            for _ in range(50):
                now = datetime.fromtimestamp(r.uniform(0, 4e9), UTC)
                since = now - timedelta(seconds=10 ** r.uniform(0, 9))
                buckets = r.choice((2, 10, 120))
                found = failures_per_minute(session, since=since, now=now, buckets=buckets)
                assert 1 <= found.buckets <= buckets
                assert found.since <= since < found.since + found.width
                last = found.since + (found.buckets - 1) * found.width
                assert last <= now < last + found.width
                assert found.since.timestamp() % found.width.total_seconds() == 0

    def test_three_hours_are_in_bars_of_two_minutes(self, database: Database) -> None:
        found = rates(since=END - timedelta(hours=3))
        assert (found.width, found.buckets) == (timedelta(minutes=2), 91)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"since": END}, "must be before now"),
            ({"since": START.replace(tzinfo=None)}, "since must have a time zone"),
            ({"now": END.replace(tzinfo=None)}, "now must have a time zone"),
            ({"buckets": 1}, "buckets must be 2 at least, not 1"),
        ],
    )
    def test_what_cannot_be_is_refused(self, database: Database, options: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            rates(**options)


class TestByTenant:
    def every(self, limit: int) -> list[TenantFailures]:
        found, after = list[TenantFailures](), None
        with operator_transaction() as session:
            while True:
                page = failures_by_tenant(session, now=END, after=after, limit=limit)
                assert page.total == 3
                found += page.tenants
                after = page.next
                if after is None:
                    return found

    @pytest.mark.parametrize("seed", [1, 2])
    def test_they_equal_a_recount_page_by_page(self, database: Database, seed: int) -> None:
        rows = record_at_random(database, seed)
        found = self.every(limit=50)
        assert {one.tenant_id for one in found} == set(TENANTS)
        for one in found:
            own = [row for row in rows if row["tenant_id"] == one.tenant_id]
            of_status = Counter(row["status"] for row in own)
            assert (one.pending, one.in_progress) == (of_status["pending"], of_status["in_progress"])
            assert one.open == one.pending + one.in_progress
            assert one.last_day == len(own)
            assert one.last_failure == max(row["failed_at"] for row in own)
            open_rows = [row for row in own if row["status"] in {"pending", "in_progress"}]
            assert one.open_groups == len({row["fingerprint"] for row in open_rows})
        assert found == sorted(found, key=lambda one: (one.open, one.last_failure), reverse=True)
        for limit in (1, 2):
            assert self.every(limit) == found
        for tenant in (A, B):
            with tenant_context(tenant), transaction() as session:
                page = failures_by_tenant(session, now=END)
            assert page.tenants == [one for one in found if one.tenant_id == tenant]
            assert (page.next, page.total) == (None, 1)

    def test_those_with_as_much_open_are_all_on_some_page(self, database: Database) -> None:
        for tenant in (A, B, None):
            failed_jobs.record(a_failure(tenant_id=tenant, failed_at=START, fingerprint=fingerprint(1)))
        assert [one.tenant_id for one in self.every(limit=1)] == [B, A, None]

    def test_what_is_back_what_is_old_and_what_is_gone(self, database: Database) -> None:
        def fail(minute: int, tenant: UUID, cause: int = 0) -> UUID:
            at = START + timedelta(minutes=minute)
            return failed_jobs.record(a_failure(tenant_id=tenant, failed_at=at, fingerprint=fingerprint(cause)))

        fail(0, A)
        resolve(operator_transaction, Filter(tenant_id=(A,)), by="ada", note="mended")
        fail(1, A)
        fail(2, A, 1)
        # Before the last day, and not of those that are open.
        fail(-2_000, A, 1)
        given_up = fail(-1_500, B)
        abandon(operator_transaction, Filter(ids=(given_up,)), by="ada", reason="no")
        gone = fail(3, C)
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("DELETE FROM worker_failed_jobs WHERE id = %s", [gone])
        first, second, third = self.every(limit=50)
        assert first == TenantFailures(A, 2, 1, 3, 0, 3, START + timedelta(minutes=2))
        assert second == TenantFailures(C, 0, 0, 0, 0, 0, START + timedelta(minutes=3))
        assert third == TenantFailures(B, 0, 0, 0, 0, 0, START - timedelta(minutes=1_500))

    def test_nobody(self, database: Database) -> None:
        with operator_transaction() as session:
            page = failures_by_tenant(session, now=END)
        assert (page.tenants, page.next, page.total) == ([], None, 0)

    @pytest.mark.parametrize(
        "after", ["", "1~x~", "1~2026-01-01~", f"1~2026-01-01T00:00:00+00:00~{'x' * 36}", "9" * 30]
    )
    def test_a_page_after_nothing_that_a_page_gave_is_refused(self, database: Database, after: str) -> None:
        with operator_transaction() as session, pytest.raises(InvalidFilter, match="after must be what a page gave"):
            failures_by_tenant(session, now=END, after=after)

    @pytest.mark.parametrize("limit", [0, 1_001])
    def test_a_page_of_no_size_is_refused(self, database: Database, limit: int) -> None:
        with operator_transaction() as session, pytest.raises(InvalidFilter, match="limit must be 1 to 1000"):
            failures_by_tenant(session, now=END, limit=limit)
