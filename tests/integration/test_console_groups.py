"""Groups in the console: the list, and a group's page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event
from sqlalchemy.engine import Engine

from db import failed_jobs
from db.failed import Filter, resolve
from db.failed.groups import hours_of_group, tenants_of_group
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.console import Console
from tests.integration.failed_rows import fingerprint
from tests.integration.test_failed_jobs import A, B, a_failure
from worker.console.pages.groups import trend

TRACEBACK = """Traceback (most recent call last):
  File "/app/.venv/lib/python3.11/site-packages/dramatiq/actor.py", line 177, in __call__
    return self.fn(*args, **kwargs)
  File "/app/shop/<b>billing.py", line 44, in charge_card
    raise GatewayDown("<i>no</i>")
shop.errors.GatewayDown: <i>no</i>
"""


def fail(group: int, minutes: int, **changes: Any) -> UUID:
    """Record a failure of so many minutes ago."""
    values = {"fingerprint": fingerprint(group), "failed_at": datetime.now(UTC) - timedelta(minutes=minutes), **changes}
    return failed_jobs.record(a_failure(**values))


@contextmanager
def counting() -> Iterator[list[str]]:
    """Count statements."""
    seen: list[str] = []

    def see(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", see)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", see)


def listed(page: str) -> list[int]:
    """Return which groups a page lists, in order."""
    return [int(number) for number in re.findall(r'class="row" href="/groups/abcd(\d)0{27}"', page)]


@pytest.fixture
def browser(console: Console) -> Iterator[TestClient]:
    """An operator's, who sees all tenants; there are tokens of others."""
    console.token("viewer")
    console.token("operator", A)
    with console.logged_in("operator") as client:
        yield client


def test_the_list_has_every_filter_regressed_groups_first_and_pages(
    browser: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(1, 50, title="bad *", place="shop:run", tenant_id=A)
    fail(1, 40, tenant_id=B, error_message="needle in it")
    fail(1, 30, tenant_id=None)
    fail(2, 10, tenant_id=None, title="<b>bold</b>", task_name="other.job", exception_class="shop.errors.GatewayDown")
    fail(3, 60, tenant_id=A)
    resolve(operator_transaction, Filter(fingerprint=(fingerprint(3),)), by="ada", note="mended")
    fail(4, 5, tenant_id=A)
    resolve(operator_transaction, Filter(fingerprint=(fingerprint(4),)), by="ada", note="mended")
    fail(3, 20, tenant_id=A)
    page = browser.get("/groups").text
    # Open ones, and what is back first, though others were seen later.
    assert listed(page) == [3, 2, 1]
    assert page.count("after it was resolved") == 1
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page
    assert re.findall(r'data-label="For"[^>]*>([^<]+)<', page) == ["1 tenant", "no tenant", "2 tenants, and no tenant"]
    for query, groups in (
        ("status=resolved", [3, 4]),
        ("status=all", [3, 4, 2, 1]),
        ("actor=job&status=all&exception=GatewayDown", [2]),
        ("text=needle", [1]),
        (f"tenant={B}", [1]),
        (f"fingerprint={fingerprint(2)[:5]}", [2]),
        ("since=25m", [3, 2]),
    ):
        assert listed(browser.get(f"/groups?{query}").text) == groups, query
    monkeypatch.setattr("worker.console.pages.groups.ROWS", 2)
    first = browser.get("/groups?since=1d").text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    rest = browser.get(older[1].replace("&amp;", "&")).text
    assert (listed(first), listed(rest)) == ([3, 2], [1])
    assert 'rel="next"' not in rest
    wrong = browser.get("/groups?colour=red")
    assert (wrong.status_code, "there is no filter &#39;colour&#39;" in wrong.text) == (400, True)


def test_a_group_is_told_on_its_page(browser: TestClient, console: Console) -> None:
    fail(1, 3000, tenant_id=A)
    resolve(operator_transaction, Filter(fingerprint=(fingerprint(1),)), by="ada", note="mended")
    newest = fail(1, 1, tenant_id=A, title="<b>*</b>", place="shop.billing:charge_card", traceback=TRACEBACK)
    fail(1, 30, tenant_id=None, error_message="<script>alert(1)</script>")
    fail(1, 90, tenant_id=B)
    page = browser.get(f"/groups/{fingerprint(1)[:5]}").text
    assert "regressed" in page
    assert "2 tenants, and no tenant" in page
    assert "4</b>failures ever" in page
    assert f'href="/replays/new?fingerprint={fingerprint(1)}"' in page
    assert f'href="/failures/close?fingerprint={fingerprint(1)}"' in page
    # The application's own frame, and no library's; as text.
    assert "shop/&lt;b&gt;billing.py:44" in page
    assert "dramatiq/actor.py" not in page
    assert "<script>alert" not in page
    assert "<b>*" not in page
    assert page.index(f"/failures/{newest}") > 0
    assert "3 jobs of it failed in the last 24 hours" in page
    with console.logged_in("viewer") as viewer:
        seen = viewer.get(f"/groups/{fingerprint(1)}").text
    assert "failures ever" in seen
    assert "Retry the group" not in seen
    assert "Close the group" not in seen
    with console.logged_in("operator", A) as bound:
        seen = bound.get(f"/groups/{fingerprint(1)}").text
    assert "2</b>failures ever" in seen
    assert "no tenant" not in seen
    assert str(B) not in seen


def test_a_group_that_is_not_there_or_not_one_or_not_ones_own(browser: TestClient, console: Console) -> None:
    fail(1, 5, tenant_id=B)
    fail(2, 5, tenant_id=B)
    assert browser.get("/groups/ffff").status_code == 404
    several = browser.get("/groups/abcd")
    assert (several.status_code, fingerprint(1) in several.text, fingerprint(2) in several.text) == (400, True, True)
    assert browser.get("/groups/<b>x</b>").status_code == 404
    wrong = browser.get("/groups/xyz!")
    assert (wrong.status_code, "fingerprint must be 4 to 32" in wrong.text) == (400, True)
    with console.logged_in("operator", A) as bound:
        assert bound.get(f"/groups/{fingerprint(1)}").status_code == 404
        assert listed(bound.get("/groups?status=all").text) == []


def test_pages_ask_as_often_for_many_rows_as_for_few(browser: TestClient) -> None:
    paths = ("/groups?status=all", f"/groups/{fingerprint(1)}")

    def statements() -> list[int]:
        counts = []
        for path in paths:
            with counting() as seen:
                assert browser.get(path).status_code == 200
            counts.append(len(seen))
        return counts

    fail(1, 1, tenant_id=A)
    few = statements()
    for group in range(1, 6):
        for n in range(8):
            fail(group, n, tenant_id=(A, B, None)[n % 3])
    assert all(many <= one for many, one in zip(statements(), few, strict=True))
    assert max(few) <= 12


@pytest.mark.parametrize(("hour", "begins"), [(22, "23:00 yesterday"), (23, "00:00"), (0, "01:00 yesterday")])
def test_where_the_last_24_hours_begin(hour: int, begins: str) -> None:
    last = datetime(2026, 5, 1, hour, tzinfo=UTC)
    assert trend([(last - timedelta(hours=23 - n), n) for n in range(24)]).begins == begins


def test_what_a_group_did_by_hour_and_tenant(browser: TestClient) -> None:
    now = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
    for minutes, tenant in ((10, A), (20, A), (45, B), (60 * 23, None), (60 * 24, A), (-5, A)):
        changes = {"failed_at": now - timedelta(minutes=minutes), "tenant_id": tenant}
        failed_jobs.record(a_failure(fingerprint=fingerprint(1), **changes))
    resolve(operator_transaction, Filter(tenant_id=(B,)), by="ada", note="mended")
    with operator_transaction() as session:
        hours = hours_of_group(session, fingerprint(1), now=now)
        touched = tenants_of_group(session, fingerprint(1))
        first = tenants_of_group(session, fingerprint(1), limit=1)
    assert {at: jobs for at, jobs in hours if jobs} == {
        now.replace(minute=0): 2,
        now.replace(minute=0) - timedelta(hours=1): 1,
        now.replace(minute=0) - timedelta(hours=23): 1,
    }
    assert len(hours) == 24
    assert [(one.tenant_id, one.open, one.jobs) for one in touched] == [(A, 4, 4), (None, 1, 1), (B, 0, 1)]
    assert first == touched[:1]
    with tenant_context(B), transaction() as session:
        assert [one.tenant_id for one in tenants_of_group(session, fingerprint(1))] == [B]
        assert sum(jobs for _, jobs in hours_of_group(session, fingerprint(1), now=now)) == 1
