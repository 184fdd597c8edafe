"""The console's list of failures: every filter in its address, page by page, with counts that are true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from db import failed_jobs
from db.failed import Filter, abandon
from db.session import operator_transaction
from tests.integration.console import Console
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database
from worker.console.pages.failures import ROWS


@pytest.fixture
def browser(console: Console, database: Database) -> Iterator[TestClient]:
    """A viewer's; 120 jobs of two tenants failed, one a minute, of which every fortieth was given up."""
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'acme'), (%s, 'globex')", [A, B])
    # Not of when this was imported: minutes may be between, and filters go by the minute.
    now = datetime.now(UTC)
    failures = [
        a_failure(
            tenant_id=A if n % 4 else B,
            error_message=f"<i>order</i> {n:03}",
            error_type="timeout" if n % 3 else "expired",
            failed_at=now - timedelta(minutes=n),
            fingerprint=f"{n % 2}" * 32,
        )
        for n in range(120)
    ]
    failed_jobs.record_all(failures)
    ids = [failed_jobs.failed_job_id(f.task_id, f.task_name) for f in failures[::40]]
    abandon(operator_transaction, Filter(ids=tuple(ids)), by="ada", reason="test")
    with console.logged_in("viewer") as client:
        yield client


def orders(page: Response) -> list[int]:
    """Return which jobs a page lists, by the numbers in their messages."""
    assert page.status_code == 200, page.text
    return [int(n) for n in re.findall(r"&lt;i&gt;order&lt;/i&gt; (\d{3})", page.text)]


def heading(page: Response) -> str:
    found = re.search(r'<h1>Failures <span class="count">(.*?)</span>', page.text)
    assert found is not None
    return found[1]


def address(page: Response, name: str) -> str:
    found = re.search(rf'<a class="button"[^>]*href="([^"]+)">{name}</a>', page.text)
    assert found is not None
    return found[1].replace("&amp;", "&")


def test_it_is_read_page_by_page(browser: TestClient) -> None:
    page, seen = browser.get("/failures"), list[int]()
    assert heading(page) == "117"
    while True:
        assert len(orders(page)) <= ROWS
        seen += orders(page)
        if "Older" not in page.text:
            break
        page = browser.get(address(page, "Older"))
        assert heading(page) == "117"
    assert seen == [n for n in range(120) if n % 40]
    assert orders(browser.get(address(page, "Newest"))) == seen[:ROWS]
    # The page that an address names stays what it is, whatever fails meanwhile.
    second = address(browser.get("/failures"), "Older")
    before = orders(browser.get(second))
    failed_jobs.record(a_failure(error_message="new", failed_at=datetime.now(UTC)))
    assert orders(browser.get(second)) == before


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("status=all", lambda n: True),
        ("status=abandoned", lambda n: n % 40 == 0),
        ("status=abandoned&status=pending", lambda n: True),
        ("tenant=globex", lambda n: n % 4 == 0 and n % 40),
        (f"tenant={A}&error_type=expired", lambda n: n % 4 and n % 3 == 0),
        ("fingerprint=0000&since=31m", lambda n: n % 2 == 0 and n <= 30 and n % 40),
        ("until=100m", lambda n: n >= 100),
        ("text=order%3C/i%3E%20007", lambda n: n == 7),
        ("exception=ValueError&actor=job&queue=attribution&text=", lambda n: n % 40),
    ],
)
def test_every_filter_is_in_the_address(browser: TestClient, query: str, expected: object) -> None:
    wanted = [n for n in range(120) if expected(n)]  # type: ignore[operator]
    page = browser.get(f"/failures?{query}")
    assert orders(page) == wanted[:ROWS]
    assert heading(page) == str(len(wanted))
    # What was asked for stays in the form, and no tag of anybody's is one.
    for value in re.findall(r"(?:tenant|error_type|since|until)=([^&]+)", query):
        assert f'value="{value}"' in page.text
    assert "<i>order" not in page.text


def test_a_text_in_many_is_not_counted_to_its_end(browser: TestClient) -> None:
    page = browser.get("/failures?status=all&text=order")
    assert (heading(page), len(orders(page))) == ("50 or more", ROWS)


def test_what_cannot_be_asked_for_is_named(browser: TestClient) -> None:
    for query, said in (
        ("stauts=all", "there is no filter &#39;stauts&#39;"),
        ("status=open&status=lost", "status must be one of"),
        ("since=yesterday", "since must be a time such as 2h"),
        ("text=ab", "text must be at least 3 characters"),
        ("since=1h&since=2h", "since can be given once, not 2 times"),
        ("tenant=nobody", "tenant must be a UUID or the name of one that is there, not &#39;nobody&#39;"),
        ("after=x", "after must be what a page gave as its next"),
        ("fingerprint=zz", "fingerprint must be 4 to 32 of 0-9 and a-f"),
    ):
        page = browser.get(f"/failures?{query}")
        assert (page.status_code, said in page.text) == (400, True), page.text
    nothing = browser.get("/failures?text=nothing+is+so")
    assert "No failure matches these filters." in nothing.text
    assert heading(nothing) == "0"


def test_one_tenants_failures_are_looked_through_for_a_text_some_at_a_time(
    console: Console, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.failed.search.LOOKED_AT", 10)
    now = datetime.now(UTC)
    failed_jobs.record_all(
        [
            a_failure(
                tenant_id=A,
                error_message=f"<i>order</i> {n:03} {'rare' if n in {3, 27} else ''}",
                failed_at=now - timedelta(minutes=n),
            )
            for n in range(29)
        ]
    )
    console.token("viewer")
    with console.logged_in("viewer", A) as bound:
        page, seen, looks = bound.get("/failures?text=rare"), list[int](), 1
        assert (heading(page), orders(page)) == ("1 or more", [3])
        everywhere = re.search(r'href="([^"]+)">Look through all', page.text)
        assert everywhere is not None
        while True:
            seen += orders(page)
            further = re.search(r'href="([^"]+)">Look further', page.text)
            if further is None:
                break
            page, looks = bound.get(further[1].replace("&amp;", "&")), looks + 1
        # Each is looked at once; an empty page says that it is not the end.
        assert (seen, looks) == ([3, 27], 3)
        page = bound.get("/failures?text=rare&until=5m")
        assert (heading(page), "None so far" in page.text) == ("none yet", True)
        page = bound.get(everywhere[1].replace("&amp;", "&"))
        assert (heading(page), orders(page)) == ("2", [3, 27])
        assert "Look further" not in page.text
        bound.post("/logout")
        bound.post("/login", data={"token": console.token("viewer")})
        # Whoever sees all of them has an index.
        assert orders(bound.get("/failures?text=rare")) == [3, 27]
