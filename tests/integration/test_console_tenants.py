"""Whose jobs fail, as the console shows it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from db import failed_jobs
from db.failed import Filter, resolve
from db.session import operator_transaction
from tests.integration.console import Console
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database
from worker.console.pages.tenants import ROWS

EVIL = "<b>Bobby</b> & Sons 100%"
WELL = UUID(int=0xE)


def names(text: str) -> list[str]:
    """Return the rows of the table, each by what its first cell says."""
    return [
        " ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in re.findall('<th scope="row".*?</th>', text, re.S)
    ]


@pytest.fixture
def tenants(database: Database) -> None:
    """One with most that is open, one with most that failed today, one that has never had a failure; and nobody."""
    now = datetime.now(UTC)
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(
            "INSERT INTO tenants (id, name) VALUES (%s, 'acme'), (%s, %s), (%s, 'ACME of the north')",
            [A, B, EVIL, WELL],
        )
    for days in (2, 3, 4):
        failed_jobs.record(a_failure(failed_at=now - timedelta(days=days), fingerprint="a" * 32))
    closed = failed_jobs.record(a_failure(tenant_id=B, failed_at=now - timedelta(hours=2), fingerprint="b" * 32))
    resolve(operator_transaction, Filter(ids=(closed,)), by="ada", note="mended")
    failed_jobs.record(a_failure(tenant_id=B, failed_at=now - timedelta(hours=1), fingerprint="b" * 32))
    failed_jobs.record(a_failure(tenant_id=None, failed_at=now - timedelta(hours=3), fingerprint="c" * 32))


def test_those_with_most_to_do_come_first(console: Console, tenants: None) -> None:
    with console.logged_in("viewer") as browser:
        page = browser.get("/tenants")
        assert page.status_code == 200
        assert "<b>Bobby" not in page.text
        assert "3 with failures" in page.text
        assert names(page.text) == ["acme", "&lt;b&gt;Bobby&lt;/b&gt; &amp; Sons 100%", "of no tenant"]
        acme, bobby, nobody = re.findall("<tr>.*?</tr>", page.text.partition("<tbody>")[2], re.S)
        assert ["<b>3</b>" in acme, "2d ago" in acme, str(A) in acme] == [True] * 3
        assert f'href="/failures?tenant={A}"' in acme
        assert "since=24h" not in acme
        # It is back after it was resolved.
        assert ["<b>1</b>" in bobby, "1h ago" in bobby, "1 regressed" in bobby] == [True] * 3
        assert f'href="/failures?status=all&amp;since=24h&amp;tenant={B}">2</a>' in bobby
        assert "href" not in nobody
        # To what its row counts.
        assert "<b>Bobby" not in browser.get(f"/failures?tenant={B}").text


def test_they_are_found_by_name_or_id(console: Console, tenants: None) -> None:
    with console.logged_in("viewer") as browser:
        found = browser.get("/tenants?name=AcMe").text
        assert names(found) == ["acme"]
        assert re.search(r"Without any failure.*ACME of the north", found, re.S)
        assert names(browser.get(f"/tenants?name={B}").text) == ["&lt;b&gt;Bobby&lt;/b&gt; &amp; Sons 100%"]
        # What is typed is no pattern.
        assert names(browser.get("/tenants?name=0%25").text) == ["&lt;b&gt;Bobby&lt;/b&gt; &amp; Sons 100%"]
        assert "No tenant is called that" in browser.get("/tenants?name=c_e").text
        assert "No tenant is called that" in browser.get("/tenants?name=x%00").text


def test_ten_thousand_are_pages(console: Console, database: Database) -> None:
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(
            """
            INSERT INTO worker_failed_job_groups (
                fingerprint, tenant_id, task_name, error_type, exception_class, first_seen, last_seen, failures, pending
            )
            SELECT
                repeat('a', 32), gen_random_uuid(), 'a.b', 'timeout', 'E', now(), now() - make_interval(secs => n), n, n
            FROM generate_series(1, 10000) n
            """
        )
    with console.logged_in("viewer") as browser:
        page = browser.get("/tenants").text
        seen = names(page)
        assert len(seen) == ROWS
        assert "10,000 with failures" in page
        assert len(page) < 100_000
        for _ in range(2):
            following = re.search('rel="next" href="([^"]+)"', page)
            assert following is not None
            page = browser.get(following[1].replace("&amp;", "&")).text
            seen += names(page)
        assert len(set(seen)) == 3 * ROWS
        assert browser.get("/tenants?after=x").status_code == 400


def test_before_any_failure_it_teaches(console: Console) -> None:
    with console.logged_in("viewer") as browser:
        assert "No tenant has had a failure" in browser.get("/tenants").text
