"""Channel totals by day: what a recompute replaces, and what it leaves."""

from __future__ import annotations

from datetime import date
from threading import Thread
from uuid import UUID

import psycopg
import pytest

from db.session import transaction
from db.tenancy import tenant_context
from tests.integration.test_recompute import Sale, Touch, given_events, insert, run, wait_for_lock
from tests.servers import Database
from worker.channel_days import Days, channel_days
from worker.recompute import Model, parse_window, recompute

MONTH = Days(date(2025, 1, 1), date(2025, 2, 1))

#: Touches on the first day; sales on the first, the second (at its very first moment) and the third.
EVENTS = (
    Touch("t1", 0.1, channel="ads"),
    Touch("t2", 0.2, channel="mail"),
    Sale("s1", 101, 0.5),
    Sale("s2", 50, 1),
    Touch("t3", 2.1, channel="ads"),
    Sale("s3", 30, 2.5),
    Sale("alone", 7, 2.6, visitor="w"),
)


def days(tenant: UUID, model: Model = Model.LINEAR) -> dict[int, dict[str, int]]:
    """Cents by day of January and channel."""
    found: dict[int, dict[str, int]] = {}
    with tenant_context(tenant), transaction() as session:
        for one in channel_days(session, tenant, MONTH, model, "1"):
            found.setdefault(one.day.day, {})[one.channel] = one.cents
    return found


def again(tenant: UUID, start: str, end: str, model: Model = Model.LINEAR) -> UUID:
    return run(tenant, model, parse_window(start, end))[0].job_id


def test_what_a_recompute_replaces_and_what_it_leaves(database: Database) -> None:
    tenant, other = given_events(*EVENTS), given_events(*EVENTS)
    january = {1: {"ads": 51, "mail": 50}, 2: {"ads": 25, "mail": 25}, 3: {"ads": 20, "mail": 10, "direct": 7}}
    for each in (tenant, other):
        again(each, "2025-01-01", "2025-02-01")
        assert days(each) == january
    # The same once more, and under another model beside it.
    again(tenant, "2025-01-01", "2025-02-01")
    again(tenant, "2025-01-01", "2025-02-01", Model.FIRST_TOUCH)
    assert days(tenant) == january
    assert days(tenant, Model.FIRST_TOUCH) == {1: {"ads": 101}, 2: {"ads": 50}, 3: {"ads": 30, "direct": 7}}
    # Parts of a day say nothing of it.
    again(tenant, "2025-01-01T00:00:01", "2025-01-02")
    again(tenant, "2025-01-01T02:00+02:00", "2025-01-02T01:59+02:00")
    assert days(tenant) == january
    # A window of the day alone knows fewer touches, and what it says stands for all of that day and no other.
    alone = again(tenant, "2025-01-03", "2025-01-04")
    assert days(tenant) == {**january, 3: {"ads": 30, "direct": 7}}
    # One that begins and ends within days replaces those between.
    between = again(tenant, "2025-01-01T12:00", "2025-01-03T12:30")
    assert days(tenant) == {**january, 2: {"direct": 50}, 3: {"ads": 30, "direct": 7}}
    with psycopg.connect(database.admin_url) as admin:
        assert admin.execute(
            "SELECT day, job_id FROM attribution_channel_days WHERE tenant_id = %s AND model = 'linear' AND day > %s"
            " GROUP BY 1, 2 ORDER BY 1",
            [tenant, date(2025, 1, 1)],
        ).fetchall() == [(date(2025, 1, 2), between), (date(2025, 1, 3), alone)]
        # What is gone from the events is gone from the totals.
        admin.execute("DELETE FROM attribution_events WHERE tenant_id = %s", [tenant])
        admin.commit()
    again(tenant, "2025-01-01", "2025-02-01")
    assert days(tenant) == {}
    assert days(other) == january


@pytest.mark.parametrize("window", [("2025-01-01", "2025-01-02"), ("2025-01-01", "2025-03-01")], ids=["day", "more"])
def test_a_failed_recompute_leaves_the_totals(database: Database, window: tuple[str, str]) -> None:
    tenant = given_events(*EVENTS)
    again(tenant, *window)
    before = days(tenant)
    assert before[1] == {"ads": 51, "mail": 50}
    with pytest.raises(RuntimeError), tenant_context(tenant), transaction() as session:
        insert(session, tenant, [Sale("s4", 1_000, 0.6)])
        recompute(session, tenant, parse_window(*window), Model.LINEAR, "1")
        raise RuntimeError
    assert days(tenant) == before


def test_of_two_recomputes_at_once_one_stands(database: Database) -> None:
    """They hold other windows and channels, so neither's rows are in the other's way."""
    tenant = given_events(*EVENTS)
    done: list[UUID] = []
    second = Thread(target=lambda: done.append(again(tenant, "2025-01-03", "2025-01-04")))
    with tenant_context(tenant), transaction() as session:
        recompute(session, tenant, parse_window("2025-01-01", "2025-02-01"), Model.LINEAR, "1")
        second.start()
        wait_for_lock(database)
        # Another model does not wait.
        again(tenant, "2025-01-03", "2025-01-04", Model.LAST_TOUCH)
    second.join(30)
    assert len(done) == 1
    assert days(tenant)[3] == {"ads": 30, "direct": 7}
    assert days(tenant)[1] == {"ads": 51, "mail": 50}
