"""How long it waits, and how often it is tried again."""

from __future__ import annotations

import heapq
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import pytest
from dramatiq.rate_limits.backends import StubBackend
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from worker.explain.errors import LimitReached
from worker.explain.limits import Limits
from worker.explain.patience import FAILURES_AT_MOST, WAITS_AT_MOST, counting_waits, retry_when, wait_for
from worker.explain.retry_after import retry_after

NOW = datetime(2025, 1, 1, 12, tzinfo=UTC)
A, B = UUID(int=1), UUID(int=2)


def test_it_waits_longer_each_time_and_never_long() -> None:
    assert [wait_for(n, lambda least, most: most) for n in (0, 1, 2, 3, 4, 5, 400)] == [
        *(15_000, 30_000, 60_000, 120_000, 240_000, 300_000, 300_000)
    ]
    assert wait_for(0, lambda least, most: least) == 7_500
    assert len({wait_for(9) for _ in range(20)}) > 1


@pytest.mark.parametrize(("value", "seconds"), [
    ("0", 0), ("120", 120), ("1.5", 1.5), ("86400", 3_600), ("1e999", None), ("nan", None), ("-5", None), ("", None),
    ("soon", None), (None, None), ("Wed, 01 Jan 2025 12:01:00 GMT", 60), ("Wed, 01 Jan 2025 13:01:00 +0100", 60),
    ("Wed, 01 Jan 2025 11:00:00 GMT", 0), ("Thu, 01 Jan 2099 00:00:00 GMT", 3_600),
])  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    headers = {} if value is None else {"retry-after": value}
    assert retry_after(headers, NOW, lambda least, most: 0) == (None if seconds is None else 1000 * seconds)


def test_a_date_counts_from_the_servers_own() -> None:
    headers = {"retry-after": "Wed, 01 Jan 2025 09:00:30 GMT", "date": "Wed, 01 Jan 2025 09:00:00 GMT"}
    assert retry_after(headers, NOW, lambda least, most: 0) == 30_000
    # And a little more, as much as there is of it.
    assert retry_after(headers, NOW, lambda least, most: most) == 34_000


@given(st.text(), st.text())
def test_whatever_a_server_says(value: str, date: str) -> None:
    delay = retry_after({"retry-after": value, "date": date}, NOW)
    assert delay is None or 0 <= delay <= 3_961_000


def test_waits_are_not_counted_as_failures() -> None:
    wait, failure = LimitReached("x", 1), RuntimeError("x")
    assert retry_when(FAILURES_AT_MOST - 1, failure)
    assert not retry_when(FAILURES_AT_MOST, failure)
    with pytest.raises(LimitReached), counting_waits() as waits:
        assert waits == 0
        raise wait
    assert retry_when(1000, wait)
    wait.dramaturg_waits = WAITS_AT_MOST  # type: ignore[attr-defined]
    assert not retry_when(1000, wait)
    failure.dramaturg_waits = 100  # type: ignore[attr-defined]
    assert retry_when(100 + FAILURES_AT_MOST - 1, failure)
    assert not retry_when(100 + FAILURES_AT_MOST, failure)


def test_a_tenant_that_sends_too_much_takes_no_turn_of_others() -> None:
    limits = Limits(StubBackend(), "x", overall=3, tenant=2)

    def takes(tenant: UUID) -> bool:
        try:
            limits.take(tenant, 0)
        except LimitReached as e:
            return e.delay is None
        return True

    with freeze_time(NOW) as clock:
        assert [takes(A) for _ in range(10)] == [True, True] + [False] * 8
        assert [takes(B), takes(B)] == [True, False]
        clock.tick(timedelta(seconds=60))
        assert takes(B)


def test_none_of_a_burst_of_a_thousand_gives_up() -> None:
    """A tenant's thousand at once, on twenty a minute, as the clock would have them come back."""
    limits, random = Limits(StubBackend(), "x", overall=60, tenant=20), Random(1)  # noqa: S311
    due = [(0.0, n, 0) for n in range(1000)]
    done: dict[int, tuple[float, int]] = {}
    with freeze_time(NOW) as clock:
        while due:
            at, n, waits = heapq.heappop(due)
            clock.move_to(NOW + timedelta(seconds=at))
            try:
                limits.take(A, waits)
            except LimitReached:
                heapq.heappush(due, (at + wait_for(waits, random.uniform) / 1000, n, waits + 1))
            else:
                done[n] = (at, waits)
    assert len(done) == 1000
    # At twenty a minute it takes 50 minutes at least; few turns are missed.
    assert 49 * 60 <= max(at for at, _ in done.values()) < 75 * 60
    # Far from the number of waits at which it would give up.
    assert max(waits for _, waits in done.values()) < WAITS_AT_MOST / 8
