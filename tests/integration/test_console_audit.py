"""Who did what, as the console shows it."""

from __future__ import annotations

import re
from uuid import UUID

import psycopg
import pytest

from db import failed_jobs
from db.failed import Filter, abandon, note, reopen, resolve, write_event
from db.failed.retention import set_rule
from db.replays import runs
from db.session import operator_transaction
from tests.integration.console import Console
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database
from worker.console.pages.audit import EVENTS, ROWS

EVIL = "<script>alert(1)</script>"


def rows(text: str) -> list[str]:
    """Return what each row says."""
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    return [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in body.split("</tr>") if "<td" in row]


@pytest.fixture
def done(database: Database) -> dict[str, UUID]:
    """Things that people did to the jobs of two tenants, to a replay, a queue and a rule."""
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'acme'), (%s, %s)", [A, B, EVIL])
    own, theirs = failed_jobs.record(a_failure()), failed_jobs.record(a_failure(tenant_id=B))
    abandon(operator_transaction, Filter(ids=(own,)), by="ada", reason="test data")
    reopen(operator_transaction, Filter(ids=(own,)), by="ada", reason="it was none")
    note(operator_transaction, Filter(ids=(theirs,)), by=f"bob {EVIL}", note=f"looked at it {EVIL}")
    resolve(operator_transaction, Filter(ids=(theirs,)), by="bob", note="loaded again")
    with operator_transaction() as session:
        replay = runs.create(
            session, Filter(queue=("llm",), status=("pending",)), runs.ReplaySettings(), by="ada", reason="quota raised"
        )
        runs.pause(session, replay, by="bob", why="wait for it")
        write_event(
            session,
            "queue_paused",
            by="bob",
            reason="a migration",
            before={"queue": f"llm{EVIL}", "paused": None},
            after={"queue": f"llm{EVIL}", "paused": {"by": "bob", "reason": "a migration"}},
        )
        write_event(
            session,
            "messages_purged",
            by="ada",
            before={"actor": "a.b", "queues": [{"queue": "llm", "waiting": 3, "delayed": 1, "suspects": 0}]},
            after={},
        )
        set_rule(session, "resolved", 30, by="ada")
    return {"own": own, "theirs": theirs, "replay": replay}


def test_who_did_what_to_what_and_why(console: Console, done: dict[str, UUID]) -> None:
    with console.logged_in("viewer") as browser:
        page = browser.get("/audit")
        assert page.status_code == 200
        assert EVIL not in page.text
        said = [row.replace("&lt;", "<").replace("&gt;", ">") for row in rows(page.text)]
        expected = [
            "ada retention changed - - resolved: kept as is usual -> 30 days",
            "ada messages purged queue llm - of actor a.b; queue llm: 3 waiting, 1 delayed",
            f"bob queue paused queue llm{EVIL} - a migration",
            f"bob replay paused replay {str(done['replay'])[:8]} - wait for it",
            f"ada replay started replay {str(done['replay'])[:8]} - quota raised queue llm; status pending",
            f"bob resolved failure {str(done['theirs'])[:8]} {EVIL} loaded again",
            f"bob {EVIL} noted failure {str(done['theirs'])[:8]} {EVIL} looked at it {EVIL}",
            f"ada reopened failure {str(done['own'])[:8]} acme it was none",
            f"ada abandoned failure {str(done['own'])[:8]} acme test data",
        ]
        assert [re.sub(r"^(just now|\d+s ago) ", "", row) for row in said] == expected
        assert f'href="/failures/{done["own"]}"' in page.text
        assert f'href="/replays/{done["replay"]}"' in page.text
        # Every event that there is can be asked for.
        assert all(f'value="{event}"' in page.text for event in EVENTS)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("who=ada&event=reopened", ["reopened"]),
        ("event=noted", ["noted"]),
        ("who=bob&since=1h&until=", ["queue paused", "replay paused", "resolved"]),
        ("until=1h", []),
        ("event=nothing+of+ours", []),
        ("who=%3Cscript%3E", []),
    ],
)
def test_what_is_asked_for(console: Console, done: dict[str, UUID], query: str, expected: list[str]) -> None:
    with console.logged_in("viewer") as browser:
        page = browser.get(f"/audit?{query}")
        assert re.findall("<b>([^<]*)</b>", page.text) == expected
        assert "<script>" not in page.text
        assert expected or "Nobody did anything of that kind" in page.text


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("by=ada", "there is no filter &#39;by&#39;; there is who, event, since, until, before"),
        ("who=a&who=b", "who can be given once, not 2 times"),
        ("before=x", "before must be the number of an event, not &#39;x&#39;"),
        (f"before={2**63}", "before must be the number of an event"),
        ("since=yesterday", "since must be"),
        ("who=%00", "who must not hold a NUL"),
    ],
)
def test_what_cannot_be_asked_for_is_said(console: Console, query: str, wrong: str) -> None:
    with console.logged_in("viewer") as browser:
        page = browser.get(f"/audit?{query}")
        assert (page.status_code, wrong in page.text) == (400, True), page.text


def test_pages_go_on_where_the_one_before_ended(console: Console) -> None:
    number = 2 * ROWS + 5
    failed_jobs.record_all([a_failure(error_message=str(n)) for n in range(number)])
    resolve(operator_transaction, Filter(status=("pending",)), by="ada", note="all of them")
    with console.logged_in("viewer") as browser:
        page = browser.get("/audit?who=ada").text
        seen = re.findall('href="/failures/([^"]+)"', page)
        while following := re.search('rel="next" href="([^"]+)"', page):
            page = browser.get(following[1].replace("&amp;", "&")).text
            seen += re.findall('href="/failures/([^"]+)"', page)
        assert (len(seen), len(set(seen))) == (number, number)
        assert "That was all" in browser.get("/audit?before=1").text


def test_whoever_sees_one_tenant_sees_what_was_done_to_that_ones(console: Console, done: dict[str, UUID]) -> None:
    with console.logged_in("operator", B) as browser:
        page = browser.get("/audit")
        assert re.findall("<b>([^<]*)</b>", page.text) == ["resolved", "noted"]
        for others in ("ada", "acme", "quota", "migration", str(done["own"])[:8]):
            assert others not in page.text


def test_what_a_tenant_writes_into_the_history_breaks_no_page(console: Console, database: Database) -> None:
    written = [
        ("edited", None, '{"arguments": 5}'),
        ("edited", "[1]", '"text"'),
        ("messages_purged", '{"queues": 7, "actor": {"a": [1]}}', "{}"),
        ("messages_purged", '{"queues": [7, {"queue": null, "waiting": "many"}]}', None),
        ("retention_changed", '{"keep_days": {}}', '{"subject": [1]}'),
        ("replay_started", None, '{"replay_id": "../../login", "filter": {"a": {"b": 1}, "c": [[]]}}'),
        ("purged", '{"task_name": [], "status": 7}', None),
        ("forgotten", '{"a": "b"}', '{"a": null}'),
        ("\x1b[31m", None, '{"tenant_id": 5, "javascript:x": "javascript:x"}'),
    ]
    with psycopg.connect(database.worker_url) as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(A)])
        for event, before, after in written:
            connection.execute(
                "INSERT INTO worker_failed_job_events (tenant_id, event, changed_by, before, after)"
                " VALUES (%s, %s, 'strange', %s, %s)",
                [A, event, before, after],
            )
    with console.logged_in("viewer") as browser:
        page = browser.get("/audit")
        assert (page.status_code, page.text.count("strange</span>")) == (200, len(written))
        assert "\x1b" not in page.text
        assert not re.findall('href="[^"]*login"', page.text.partition("<tbody>")[2])


def test_before_anybody_did_anything_it_teaches(console: Console) -> None:
    with console.logged_in("viewer") as browser:
        assert "Nobody has done anything yet" in browser.get("/audit").text
