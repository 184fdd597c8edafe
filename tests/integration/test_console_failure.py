"""The page of a failed job in the console."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from html import escape, unescape
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db import failed_jobs
from db.failed import Filter, abandon, note
from db.failed.removal import forget, purge
from db.session import operator_transaction
from db.tenancy import tenant_context
from tests.integration.console import Console
from tests.integration.failed_rows import fingerprint
from tests.integration.test_cli_failed_look import TRACEBACK
from tests.integration.test_failed_jobs import A, B, a_failure, set_status
from tests.servers import Database
from worker.tenants import add_tenant

EVIL = "<script>alert('x')</script><b>&"


def fail(**changes: Any) -> UUID:
    """Record a failure of just now."""
    values = {"failed_at": datetime.now(UTC) - timedelta(minutes=3), "fingerprint": fingerprint(0), **changes}
    return failed_jobs.record(a_failure(**values))


def text_of(page: str) -> str:
    """Return what a page says, without its tags."""
    words = " ".join(unescape(re.sub(r"<[^>]+>", " ", page.partition("<body>")[2])).split())
    return re.sub(r" (?=[,.:;])", "", words)


def test_it_says_what_for_whom_since_when_how_often_where_and_what_next(console: Console) -> None:
    with operator_transaction() as session:
        acme = add_tenant(session, "Acme", A)
    correlation = uuid4()
    first = {"task_name": "shop.billing.charge_card", "exception_class": "shop.errors.GatewayDown", "queue": "billing"}
    job = fail(
        **first,
        error_type="upstream_error",
        error_message="no answer\nfrom the gateway",
        title="no answer",
        place="shop.billing:charge_card",
        traceback=TRACEBACK,
        tenant_id=acme,
        correlation_id=correlation,
        task_args=[8841],
        task_kwargs={"card": "[redacted]", "note": "für Müller", "order": {str(n): "x" * 20 for n in range(9)}},
        original=b"{}",
        attempts=[
            {
                "at": (datetime.now(UTC) - timedelta(minutes=9)).isoformat(),
                "worker": "worker.1/7",
                "exception_class": "shop.errors.Refused",
                "message": "the first time",
                "place": "shop.elsewhere:f",
            }
        ],
    )
    other = fail(**first, tenant_id=B, correlation_id=correlation)
    note(operator_transaction, Filter(ids=(job,)), by="ada@ops", note="asked the bank")
    with console.logged_in("operator") as client:
        # By the beginning of its id, as people copy it.
        answer = client.get(f"/failures/{str(job)[:8]}")
        assert answer.status_code == 200
        said = text_of(answer.text)
        for expected in (
            "GatewayDown in charge_card",
            "GatewayDown no answer",
            "shop.billing.charge_card on billing, for Acme, failed 3m ago",
            "One of 2 failures like it for 2 tenants",
            "Another server did not answer, or badly",
            "Retry",
            "Edit and retry…",
            "Resolve",
            "Abandon",
            f"worker failed retry {str(job)[:8]}",
            '/billing.py:44 charge_card raise GatewayDown("no answer") from e',
            "caused by httpx.ConnectError: refused",
            "All 2 frames, 1 of libraries",
            "no answer from the gateway",
            "argument 1 8841",
            'note "für Müller"',
            'card "[redacted]"',
            "9m ago Refused the first time at shop.elsewhere:f on worker.1/7",
            "captured by host/1",
            "noted by ada@ops: asked the bank",
            "3 times, last begun",
            "Original kept",
            "Notes asked the bank",
        ):
            assert expected in answer.text.partition("</title>")[0] + said, expected
        # Library frames are there, folded, and after the application's own.
        folded = answer.text.index("dramatiq/worker.py")
        assert answer.text.index("charge_card</b>") < folded
        assert "<details>" in answer.text[:folded].rpartition("<summary>")[0][-200:]
        for link in (
            f"/groups/{fingerprint(0)}",
            f"/failures?fingerprint={fingerprint(0)}",
            f"/replays/new?fingerprint={fingerprint(0)}",
            f"/failures?status=all&amp;correlation_id={correlation}",
            f"/failures/{other}",
        ):
            assert f'href="{link}"' in answer.text
        # Nothing will change by itself.
        assert "data-every" not in answer.text


def test_what_a_failure_holds_is_shown_as_text(console: Console) -> None:
    with operator_transaction() as session:
        evil = add_tenant(session, EVIL)
    frame = (
        f'Traceback (most recent call last):\n  File "/app/{EVIL}.py", line 1, in {EVIL}\n    {EVIL}\n{EVIL}: {EVIL}'
    )
    job = fail(
        task_name=EVIL,
        queue=EVIL,
        worker=EVIL,
        error_type=EVIL,
        exception_class=EVIL,
        error_message=f"{EVIL}\n{EVIL}\x1b[31m\u202e",
        title=EVIL,
        place=EVIL,
        traceback=f"Traceback (most recent call last):\n{frame}\n{EVIL}: {EVIL}",
        tenant_id=evil,
        task_args=[EVIL],
        task_kwargs={EVIL: {EVIL: EVIL}},
        attempts=[{"at": EVIL, "worker": EVIL, "exception_class": EVIL, "message": EVIL, "place": f"{EVIL}2"}],
    )
    note(operator_transaction, Filter(ids=(job,)), by=EVIL, note=EVIL)
    with console.logged_in("operator") as client:
        for path in (f"/failures/{job}", f"/failures/{job}?full=1"):
            page = client.get(path)
            assert page.status_code == 200
            assert EVIL not in page.text
            assert page.text.count(str(escape(EVIL, quote=False)).replace("'", "&#39;")) > 15
            assert "<script>alert" not in page.text
            assert "\x1b" not in page.text
            assert "\u202e" not in page.text
        purge(operator_transaction, Filter(ids=(job,)), by=EVIL, reason=EVIL)
        gone = client.get(f"/failures/{job}")
        assert (gone.status_code, "<script>alert" in gone.text) == (200, False)


def test_what_is_large_is_cut_with_a_link_to_all_of_it(console: Console) -> None:
    # Frames that differ, so that none is left out as a repetition.
    frames = "".join(
        f'  File "/app/{"shop" if n % 2 else ".venv/lib/python3.13/site-packages/lib"}/m{n}.py", line {n}, in f\n'
        f"    {'code ' * 20}\n"
        for n in range(800)
    )
    job = fail(
        error_message="line of a message\n" * 5_000,
        traceback=f"Traceback (most recent call last):\n{frames}ValueError: {'y' * 9_000}",
        task_args=["argument " * 10_000],
        task_kwargs={f"name{n}": ["v" * 90] * 3 for n in range(300)},
        attempts=[{"at": None, "message": "m" * 10_000} for _ in range(5)],
    )
    for _ in range(40):
        note(operator_transaction, Filter(ids=(job,)), by="ada", note="n" * 9_000)
    with console.logged_in("viewer") as client:
        page = client.get(f"/failures/{job}")
        assert len(page.content) < 100_000
        assert page.text.count('href="?full=1"') >= 6
        full = client.get(f"/failures/{job}?full=1").text
        assert full.count("line of a message") >= 5_000
        assert full.count("/m1.py") == page.text.count("/m1.py") + 2
        assert "name299" in full


@pytest.mark.parametrize("status", ["pending", "in_progress", "resolved", "abandoned"])
def test_what_can_be_done_is_what_its_status_allows(database: Database, console: Console, status: str) -> None:
    job = fail()
    set_status(database, job, status)
    console.token("viewer")
    with console.logged_in("operator") as client:
        page = client.get(f"/failures/{job}").text
        offered = {
            name for name in ("retry", "resolve", "abandon", "reopen", "note", "edit") if f"{job}/{name}" in page
        }
        assert (
            offered
            == {
                "pending": {"retry", "edit", "resolve", "abandon", "note"},
                "in_progress": {"resolve", "abandon", "reopen", "note"},
                "resolved": {"note"},
                "abandoned": {"retry", "edit", "reopen", "note"},
            }[status]
        )
        # What moves is looked at again.
        assert ("data-every" in page) == (status == "in_progress")
    with console.logged_in("viewer") as client:
        page = client.get(f"/failures/{job}").text
        assert "<button" not in page.partition("<main")[2]
        assert "You may look" in page


def test_what_was_forgotten_or_removed(console: Console) -> None:
    job = fail(original=b"{}")
    kept = fail(original=b"\0sealed", original_key="k1", fingerprint=None, tenant_id=None)
    with console.logged_in("operator") as client:
        assert "kept, encrypted" in client.get(f"/failures/{kept}").text
        forget(operator_transaction, Filter(ids=(job,)), by="ada", reason="GDPR")
        page = text_of(client.get(f"/failures/{job}").text)
        assert "They were forgotten" in page
        assert "It cannot be sent again: what it was called with was forgotten." in page
        assert "forgotten by ada: GDPR" in page
        abandon(operator_transaction, Filter(ids=(job,)), by="bob", reason="old")
        purge(operator_transaction, Filter(ids=(job,)), by="eve", reason="very old")
        answer = client.get(f"/failures/{job}")
        page = text_of(answer.text)
        assert answer.status_code == 200
        for said in ("gone", "abandoned by bob: old", "purged by eve: very old", "task name test.job"):
            assert said in page
        for nobody in (uuid4(), "ffffffff"):
            assert client.get(f"/failures/{nobody}").status_code == 404
        assert client.get("/failures/nonsense").status_code == 400


def test_a_tenants_people_see_its_own_alone(console: Console) -> None:
    with operator_transaction() as session:
        add_tenant(session, "Acme", A)
        add_tenant(session, "Globex", B)
    correlation = uuid4()
    mine = fail(tenant_id=A, correlation_id=correlation, original=b"{}", error_message="mine")
    theirs = fail(tenant_id=B, correlation_id=correlation, error_message="of somebody else")
    gone = fail(tenant_id=B)
    purge(operator_transaction, Filter(ids=(gone,)), by="eve", reason="old")
    with tenant_context(A), console.logged_in("operator", A) as client:
        page = client.get(f"/failures/{mine}")
        said = text_of(page.text)
        assert page.status_code == 200
        assert "Globex" not in page.text
        assert "somebody else" not in page.text
        assert f"{mine}/retry" in page.text
        assert f"{mine}/edit" not in page.text
        assert "Editing is for operators of all tenants" in said
        assert "for operators of all tenants alone" in said
        assert f"retry {str(mine)[:8]} --as-tenant {A}" in said
        for other in (theirs, gone, str(theirs)[:8]):
            assert client.get(f"/failures/{other}").status_code == 404


def test_from_a_list_one_goes_through_it_and_back(database: Database, console: Console) -> None:
    now = datetime.now(UTC)
    one, two, three, other = (
        fail(queue=queue, failed_at=now - timedelta(minutes=n))
        for n, queue in enumerate(("billing", "billing", "billing", "llm"))
    )
    set_status(database, two, "resolved")
    with console.logged_in("operator") as client:
        page = client.get("/failures?queue=billing&since=2h").text
        (link,) = re.findall(f'href="(/failures/{one}[^"]*)"', page)
        page = client.get(unescape(link)).text
        # Not the one that is not in the list.
        (following,) = re.findall(r'rel="next" href="([^"]*)"', page)
        assert following == f"/failures/{three}?from=queue%3Dbilling%26since%3D2h"
        assert 'href="/failures?queue=billing&amp;since=2h">Back to the list' in page
        # What is done in between does not lose it.
        (note_it,) = re.findall(r'action="([^"]*/note[^"]*)"', page)
        form = {"csrf": re.findall(r'name="csrf" value="([^"]+)"', page)[0], "note": "seen"}
        assert client.post(unescape(note_it), data=form).headers["location"] == unescape(link)
        last = client.get(unescape(following)).text
        assert "the last of the list" in last
        assert 'rel="next"' not in last
        # Of the list as it is without filters.
        assert f'href="/failures/{other}?from="' in client.get(f"/failures/{three}?from=").text
        for nonsense in ("colour=red", "since=never", "fingerprint=%2500", "x" * 3_000, EVIL):
            answer = client.get(f"/failures/{one}", params={"from": nonsense})
            assert (answer.status_code, "<script>alert" in answer.text) == (200, False)
        assert "Back to the list" not in client.get(f"/failures/{one}").text


def test_a_list_that_takes_long_keeps_nobody_from_the_failure(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_for_ever(session: Session, *_: Any, **__: Any) -> Any:
        session.execute(text("SELECT pg_sleep(600)"))

    job = fail()
    monkeypatch.setattr("worker.console.pages.failure.find", find_for_ever)
    monkeypatch.setattr("worker.console.pages.failure.FOLLOWING_WITHIN", 50)
    with console.logged_in("viewer") as client:
        answer = client.get(f"/failures/{job}", params={"from": "text=rare"})
    assert answer.status_code == 200
    assert "Back to the list" in answer.text
