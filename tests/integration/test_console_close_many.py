"""Closing all that match, from the list of failures."""

from __future__ import annotations

import re
from html import escape, unescape
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from db.failed import history
from db.session import operator_transaction
from tests.integration.console import Console, csrf
from tests.integration.failed_rows import fingerprint
from tests.integration.test_console_failure import EVIL, fail, text_of
from tests.integration.test_console_failure_actions import status
from tests.integration.test_failed_jobs import A, B, set_status
from tests.servers import Database


def action(page: Response) -> str:
    """Return where the page's form goes."""
    assert page.status_code < 300, text_of(page.text)
    (found,) = re.findall(r'action="(/failures/close[^"]*)"', page.text)
    return unescape(found)


def send(client: TestClient, page: Response, **values: str) -> Response:
    return client.post(action(page), data={"csrf": csrf(page), "sure": "yes", **values})


def test_what_matches_is_shown_and_closed_and_nothing_that_fails_later(database: Database, console: Console) -> None:
    mine = [fail(queue="billing", title=EVIL, exception_class="shop.errors.Down") for _ in range(3)]
    mine += [fail(queue="billing", fingerprint=fingerprint(1), title="other")]
    set_status(database, mine[0], "in_progress")
    given_up, other = fail(queue="billing"), fail(queue="llm")
    set_status(database, given_up, "abandoned")
    with console.logged_in("operator") as client:
        page = client.get("/failures/close?queue=billing&since=2h")
        said = text_of(page.text)
        assert "Close all that match 4" in said
        assert "pending 3, in progress 1." in said
        assert f">Down</a>: {escape(EVIL, quote=True)}</td>".replace("&#x27;", "&#39;") in page.text
        assert "<script>alert" not in page.text
        assert "1 ValueError: other" in said
        assert "Resolve 4" in said
        assert "Re-open 1" in said
        # What was two hours ago when somebody looked is no later moment now.
        assert re.search(r"since=20\d\d-.*until=20\d\d-", action(page))
        later = fail(queue="billing")
        answer = send(client, page, do="resolve", words="all charged by hand")
        assert (answer.status_code, answer.headers["location"].startswith("/failures?")) == (303, True), answer.text
        assert "4 jobs resolved." in text_of(client.get("/failures").text)
        assert [status(job) for job in (*mine, given_up, other, later)] == ["resolved"] * 4 + [
            "abandoned",
            "pending",
            "pending",
        ]
        with operator_transaction() as session:
            event = history(session, mine[0])[-1]
        assert (event.event, event.changed_by, event.reason) == ("resolved", "operator-0", "all charged by hand")
        # And back, where that is allowed; without a reason.
        page = client.get("/failures/close?queue=billing&status=abandoned")
        assert "Resolve 0" in text_of(page.text)
        assert send(client, page, do="reopen").status_code == 303
        assert status(given_up) == "pending"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "say what to do: resolve, abandon or re-open"),
        ({"do": "purge", "words": "x"}, "say what to do: resolve, abandon or re-open"),
        ({"do": "resolve", "words": " "}, "say what was done; it is kept with each job"),
        ({"do": "abandon"}, "say why they are given up; it is kept with each job"),
        ({"do": "abandon", "words": "kept <b>text</b>", "sure": ""}, "say that you mean all of them"),
        ({"do": "resolve", "words": "n" * 10_001}, "note must be at most 10,000 characters, not 10,001"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_done(console: Console, values: dict[str, str], why: str) -> None:
    job = fail()
    with console.logged_in("operator") as client:
        answer = send(client, client.get("/failures/close?queue=attribution"), **values)
        assert (answer.status_code, f"Nothing was changed: {why}." in text_of(answer.text)) == (400, True)
        assert (
            f">\n{values.get('words', '')}</textarea>".replace("<b>", "&lt;b&gt;").replace("</b>", "&lt;/b&gt;")
            in answer.text
        )
        assert status(job) == "pending"


def test_jobs_that_were_named_are_refused_with_the_reason(database: Database, console: Console) -> None:
    one, two = fail(), fail()
    with console.logged_in("operator") as client:
        page = client.get(f"/failures/close?id={one}&id={two}")
        set_status(database, two, "resolved")
        assert send(client, page, do="abandon", words="x").status_code == 303
        said = text_of(client.get("/failures").text)
        assert f"1 job abandoned. Left as they are: {str(two)[:8]} is resolved, which is final." in said
        nothing = client.get("/failures/close?queue=nobodys")
        assert "There is nothing to close." in text_of(nothing.text)
        assert "<form" not in nothing.text.partition("<main")[2]
        assert client.get("/failures/close?colour=red").status_code == 400


def test_what_takes_long_says_how_far_it_is_and_goes_on(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [fail() for _ in range(5)]
    monkeypatch.setattr("db.failed.actions.AT_ONCE", 2)
    monkeypatch.setattr("worker.console.pages.close_many.AT_MOST", -1.0)
    with console.logged_in("operator") as client:
        page = client.get("/failures/close")
        for left in (3, 1):
            page = send(client, page, do="resolve", words="kept until it is done")
            assert page.status_code == 200
            assert f"2 jobs resolved so far, {left} left." in text_of(page.text)
            assert "\nkept until it is done</textarea>" in page.text
        assert send(client, page, do="resolve", words="x").status_code == 303
    assert {status(job) for job in jobs} == {"resolved"}


def test_a_viewer_is_refused_and_a_tenants_operator_closes_its_own_alone(console: Console) -> None:
    mine, theirs = fail(tenant_id=A), fail(tenant_id=B)
    console.token("viewer")
    console.token("operator", A)
    with console.logged_in("viewer") as client:
        assert client.get("/failures/close").status_code == 403
        form = {"csrf": csrf(client.get("/failures")), "do": "resolve", "words": "x", "sure": "yes"}
        assert client.post("/failures/close", data=form).status_code == 403
    with console.logged_in("operator", A) as client:
        page = client.get("/failures/close")
        assert "Resolve 1" in text_of(page.text)
        assert client.post(action(page), data={"do": "resolve", "words": "x", "sure": "yes"}).status_code == 403
        assert send(client, page, do="resolve", words="x").status_code == 303
        named: tuple[UUID, ...] = (theirs,)
        page = client.get("/failures/close?queue=attribution&status=all")
        client.post(
            f"/failures/close?id={named[0]}", data={"csrf": csrf(page), "do": "resolve", "words": "x", "sure": "yes"}
        )
        assert "0 jobs resolved." in text_of(client.get("/failures").text)
    assert (status(mine), status(theirs)) == ("resolved", "pending")
