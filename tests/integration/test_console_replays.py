"""Replays in the console: started from a filter, run by real workers, watched to their end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from uuid import UUID, uuid4

import pytest
from dramatiq import Broker
from fastapi.testclient import TestClient
from httpx2 import Response

from db.errors import ConfigurationError
from db.failed import Filter, abandon, resolve
from db.failed.groups import largest_groups
from db.replays import edits, items, runs
from db.replays.edits import Arguments, Edit
from db.replays.runs import AlreadyMade, ReplaySettings
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.console import Console, csrf, submit
from tests.integration.replaying import A, B, Deployment
from tests.integration.test_console_groups import counting
from tests.waiting import eventually
from worker.console import dry_runs
from worker.console.deployment import Deployment as Known

ALL = "/replays/new?actor=replayed"


@pytest.fixture
def browser(console: Console, deployment: Deployment) -> Iterator[TestClient]:
    """An operator's, of a console that imports the deployment's actors; there are tokens of others."""
    knows(console, deployment.broker)
    with console.logged_in("operator") as client:
        yield client


def knows(console: Console, broker: Broker | None) -> None:
    """Let a console import an application, or none."""
    for role, tenant in (("operator", None), ("viewer", None), ("operator", A), ("operator", B)):
        console.token(role, tenant)

    def imported() -> Broker:
        if broker is None:
            raise ConfigurationError("module shop cannot be imported")
        return broker

    console.deployment = lambda settings: Known(settings, imported=imported)


def values(page: Response) -> dict[str, Any]:
    """Return what the form of a page holds that starts a replay."""
    form = page.text[page.text.index('<form method="post" action="/replays"') :]
    found = re.findall(r'<input[^>]* name="([^"]+)" value="([^"]*)"', form[: form.index("</form>")])
    given: dict[str, Any] = {}
    for name, value in found:
        given[name] = [*given.get(name, ()), unescape(value)]
    return {name: several if len(several) > 1 else several[0] for name, several in given.items()}


def start(client: TestClient, page: str, **changes: str) -> UUID:
    """Start a replay as somebody would, and return its id."""
    answer = client.post("/replays", data={**values(client.get(page)), **changes})
    assert answer.status_code == 303, answer.text
    return UUID(answer.headers["location"].rpartition("/")[2])


def tile(page: str, name: str) -> int:
    """Return the number that a tile shows."""
    found = re.search(rf"<b>([\d,?]+)</b>{name}", page)
    assert found is not None, page
    return int(found[1].replace(",", ""))


def ends(client: TestClient, replay_id: UUID) -> str:
    """Look at a replay until nothing moves any more, and return its page."""
    page = ""

    def ended() -> bool:
        nonlocal page
        page = client.get(f"/replays/{replay_id}").text
        return "data-every" not in page

    eventually(ended, seconds=60)
    return page


def test_from_a_filter_with_a_dry_run_first_to_its_end(browser: TestClient, deployment: Deployment) -> None:
    deployment.fail("a", "<b>c</b>", "closed", "broken")
    ids = {row["error_message"].removeprefix("no "): row["id"] for row in deployment.rows()}
    resolve(operator_transaction, Filter(ids=(ids["closed"],)), by="ada", note="mended")
    deployment.sql("UPDATE worker_failed_job_originals SET original = 'x' WHERE failed_job_id = %s", ids["broken"])
    page = browser.get(ALL)
    assert ">3 jobs<" in page.text
    assert "ValueError</a>" in page.text
    assert "<b>c" not in page.text
    form = values(page)
    # What fails after he was shown which is not part of it.
    later = deployment.fail("later")[0]
    deployment.fails.clear()
    with deployment.working():
        eventually(lambda: "<b>2 of 3 jobs would go now.</b>" in browser.post("/replays/new", data=form).text)
        looked = browser.post("/replays/new", data=form)
        assert "its original is not JSON" in looked.text
        assert f'href="/failures/{ids["broken"]}"' in looked.text
        # The same form, with what was typed, and no other id.
        assert values(looked) == form
        assert not deployment.rows("SELECT * FROM worker_replays")
        for _ in range(2):
            # A double click is one replay, and its second answer leads to the same page.
            answer = browser.post("/replays", data={**form, "reason": "mended <i>now</i>"})
            assert (answer.status_code, answer.headers["location"]) == (303, f"/replays/{form['form_id']}")
        end = ends(browser, UUID(form["form_id"]))
    assert [tile(end, name) for name in ("succeeded", "failed again", "refused", "not sent")] == [2, 0, 1, 0]
    assert "finished</span>" in end
    assert "its original is not JSON" in end
    assert "mended &lt;i&gt;now&lt;/i&gt;" in end
    assert "by operator-0" in end
    statuses = {name: deployment.status(row_id) for name, row_id in {**ids, "later": later}.items()}
    assert statuses == {
        **dict.fromkeys(("a", "<b>c</b>", "closed"), "resolved"),
        "broken": "pending",
        "later": "pending",
    }
    assert len(deployment.rows("SELECT * FROM worker_replays")) == 1
    started = deployment.rows("SELECT * FROM worker_failed_job_events WHERE event = 'replay_started'")
    assert [(row["changed_by"], row["reason"]) for row in started] == [("operator-0", "mended <i>now</i>")]
    listed = browser.get("/replays").text
    assert form["form_id"] in listed
    assert "mended &lt;i&gt;now" in listed
    # Nothing of it waits any more.
    gone = browser.get(f"/replays/new?id={ids['a']}")
    assert (gone.status_code, "Nothing to retry" in gone.text) == (200, True)
    assert "is resolved, which is final" in gone.text


def test_it_stops_by_itself_when_jobs_fail_again_and_goes_on_when_that_is_mended(
    browser: TestClient, deployment: Deployment
) -> None:
    deployment.fail(*(f"<b>{n}</b>" for n in range(6)))
    with deployment.working():
        replay_id = start(browser, ALL, ramp="1", window="2", threshold="50", rate="1000")
        stopped = ends(browser, replay_id)
        assert "It stopped by itself: 2 of the last 2 failed again." in stopped
        assert (tile(stopped, "failed again"), tile(stopped, "not sent yet")) == (2, 4)
        assert f'href="/failures?replay={replay_id}"' in stopped
        assert len(re.findall(r'class="message">no &lt;b&gt;\d&lt;/b&gt;</span>', stopped)) == 2
        again = browser.get(f"/failures?replay={replay_id}").text
        assert again.count('class="row"') == 2
        deployment.fails.clear()
        answer = submit(browser, f"/replays/{replay_id}", f"/replays/{replay_id}/resume")
        assert answer.headers["location"] == f"/replays/{replay_id}"
        end = ends(browser, replay_id)
    assert (tile(end, "succeeded"), tile(end, "failed again"), tile(end, "not sent")) == (4, 2, 0)
    assert "Resume" not in end


def test_paused_resumed_and_cancelled_by_those_who_may(console: Console, deployment: Deployment) -> None:
    # Nothing runs here, so nothing moves by itself.
    knows(console, None)
    deployment.fail("a", "b")
    with console.logged_in("operator") as client, console.logged_in("viewer") as viewer:
        asked = client.get(ALL).text
        assert "Start" in asked
        refused = client.post("/replays/new", data=values(client.get(ALL)))
        assert (refused.status_code, "module shop cannot be imported" in refused.text) == (503, True)
        replay_id = start(client, ALL)
        address = f"/replays/{replay_id}"
        waits = client.get(address).text
        assert "waiting</span>" in waits
        assert "OPERATOR_DATABASE_URL" in waits
        assert "data-every" in waits
        assert "Run it here" not in waits
        seen = viewer.get(address).text
        assert "Pause" not in seen
        assert "Cancel" not in seen
        for path in (f"{address}/pause", f"{address}/cancel", f"{address}/resume", "/replays", "/replays/new"):
            assert viewer.post(path, data={"csrf": csrf(viewer.get(address)), "actor": "replayed"}).status_code == 403
        assert viewer.get(ALL).status_code == 403
        assert "Retry jobs" not in viewer.get("/replays").text
        token = {"csrf": csrf(client.get(address))}
        for verb, why, said, state in (
            ("pause", "look <b>first</b>", "is paused", "paused"),
            ("pause", "", "only one that is running can become paused", "paused"),
            ("resume", "", "goes on", "waiting"),
            ("cancel", "no more", "is cancelled", "cancelled"),
            ("resume", "", "only one that is paused or stopped can become running", "cancelled"),
        ):
            answer = client.post(f"{address}/{verb}", data={**token, "why": why}, follow_redirects=True)
            assert said in answer.text, verb
            assert f'<span class="badge {state}">' in answer.text
            assert ("look &lt;b&gt;first&lt;/b&gt;" in answer.text) == (state == "paused")
        assert 'class="said bad"' in answer.text
        assert client.post(f"{address}/pause", data={"csrf": "x"}).status_code == 403
        long = client.post(f"{address}/cancel", data={**token, "why": "x" * 10_001})
        assert (long.status_code, "why must be at most 10,000 characters" in long.text) == (400, True)
        assert client.get("/replays/ffff").status_code == 404
        assert client.get(f"/replays/{uuid4()}").status_code == 404
        assert client.get(f"/replays/{str(replay_id)[:8]}").status_code == 200


def test_a_tenant_makes_and_sees_its_own(console: Console, deployment: Deployment) -> None:
    knows(console, deployment.broker)
    own, others = deployment.fail("a", tenant=A), deployment.fail("b", tenant=B)
    deployment.fails.clear()
    with (
        console.logged_in("operator") as everybodys,
        console.logged_in("operator", A) as bound,
        console.logged_in("operator", B) as stranger,
        deployment.working(),
    ):
        page = bound.get(ALL)
        assert "1 job<" in page.text
        assert "A dry run is for operators of all tenants" in page.text
        assert ">Dry run<" not in page.text.replace("<h2>Dry run<", "")
        refused = bound.post("/replays/new", data=values(page))
        assert (refused.status_code, "sees one tenant" in refused.text) == (403, True)
        replay_id = start(bound, ALL)
        end = ends(bound, replay_id)
        assert tile(end, "succeeded") == 1
        assert "whose jobs alone it sends" not in end
        assert "whose jobs alone it sends" in everybodys.get(f"/replays/{replay_id}").text
        theirs = start(everybodys, f"/replays/new?tenant={B}")
        ends(everybodys, theirs)
        for client, path in ((stranger, f"/replays/{replay_id}"), (bound, f"/replays/{theirs}")):
            token = {"csrf": csrf(client.get("/replays"))}
            assert client.get(path).status_code == 404
            for verb in ("pause", "resume", "cancel"):
                assert client.post(f"{path}/{verb}", data=token).status_code == 404
            assert path not in client.get("/replays").text
    assert [deployment.status(each) for each in (*own, *others)] == ["resolved"] * 2
    # Nor by an id that somebody else's has: nothing is made, and nothing is told.
    deployment.fail("c", tenant=A)
    with console.logged_in("operator", A) as bound:
        taken = bound.post("/replays", data={**values(bound.get(ALL)), "form_id": str(theirs)})
        assert (taken.status_code, "load it again" in taken.text) == (409, True)
    assert len(deployment.rows("SELECT * FROM worker_replays")) == 2


def test_fields_that_cannot_be_so_are_named_and_nothing_is_made(browser: TestClient, deployment: Deployment) -> None:
    deployment.fail("a")
    form = values(browser.get(ALL))
    for field, value, message in (
        ("ramp", "1,x", "ramp must be whole numbers with commas between, as 1,5,20, not &#39;1,x&#39;"),
        ("ramp", "0", "ramp must be one or more whole numbers from 1"),
        ("rate", "0", "rate must be more than 0 a second, not 0.0"),
        ("rate", "soon", "rate must be a number, not &#39;soon&#39;"),
        ("threshold", "150", "threshold must be 0 to 100 per cent, not &#39;150&#39;"),
        ("threshold", "nan", "threshold must be 0 to 100 per cent"),
        ("window", "0", "window must be 1 to 10000, not 0"),
        ("window", "", "window must be a whole number"),
        ("send_as", "replayd", "there is no actor &#39;replayd&#39; in the modules that were imported"),
    ):
        for action in ("/replays", "/replays/new"):
            answer = browser.post(action, data={**form, field: value, "reason": "<b>why</b>"})
            assert (answer.status_code, message in answer.text) == (422, True), (field, value)
            # What was typed is there still, and what is wrong is marked.
            assert values(answer) == {**form, field: value, "reason": "<b>why</b>"}
            assert re.search(rf'name="{field}" [^>]*aria-invalid="true"', answer.text), answer.text
    answer = browser.post("/replays", data={**form, "reason": "x" * 10_001})
    assert (answer.status_code, "reason must be at most 10,000 characters" in answer.text) == (422, True)
    for more, message in (
        ({"colour": "red"}, "there is no filter &#39;colour&#39;"),
        ({"form_id": "mine"}, "form_id"),
        ({"held_until": "soon"}, "held_until must be a time"),
    ):
        answer = browser.post("/replays", data={**form, **more})
        assert (answer.status_code, message in answer.text) == (400, True), more
    # Which jobs must be said; and where none waits, that is said.
    token = {"csrf": form["csrf"]}
    assert "say which jobs" in browser.post("/replays", data=token).text
    assert "Which?" in browser.get("/replays/new").text
    nothing = browser.post("/replays", data={**token, "actor": "nobody"})
    assert (nothing.status_code, "No failed job matches" in nothing.text) == (409, True)
    assert not deployment.rows("SELECT * FROM worker_replays")


def test_dry_runs_are_one_at_a_time_and_bounded(
    browser: TestClient, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = deployment.fail(*map(str, range(5)))
    abandon(operator_transaction, Filter(ids=(ids[4],)), by="ada", reason="no")
    form = values(browser.get(f"{ALL}&status=all"))
    app: Any = browser.app
    with app.state.deployment.dry_run:
        busy = browser.post("/replays/new", data=form)
    assert (busy.status_code, "dry run is under way here" in busy.text) == (409, True)
    assert values(busy) == form
    with deployment.working():
        eventually(lambda: "<b>5 of 5 jobs would go now.</b>" in browser.post("/replays/new", data=form).text)
        monkeypatch.setattr("worker.replay.dry_run.AT_ONCE", 2)
        monkeypatch.setattr(dry_runs, "AT_MOST", 3)
        # Statements are of two jobs.
        some = browser.post("/replays/new", data=form).text
        assert "<b>4 of the 4 that failed first would go now.</b>" in some
        monkeypatch.setattr(dry_runs, "WITHIN", 0.001)
        some = browser.post("/replays/new", data=form).text
        assert "There was no time to look at more." in some
        assert "of the 2 that failed first would go now" in some
    assert not deployment.rows("SELECT * FROM worker_replays")


def test_a_console_that_stops_leaves_its_replay_to_others_at_once(console: Console, deployment: Deployment) -> None:
    knows(console, deployment.broker)
    row_id = deployment.fail("a")[0]
    deployment.fails.clear()
    with console.logged_in("operator") as client:
        # Nobody consumes the queue, so it waits for that.
        replay_id = start(client, ALL)
        eventually(lambda: deployment.stands(replay_id).runner)
        runner = deployment.stands(replay_id).runner or ""
        assert "/console/" in runner
        assert "run by " in client.get(f"/replays/{replay_id}").text
    left = deployment.stands(replay_id)
    assert (left.state, left.runner) == ("running", None)
    # As after a process that died: somebody lets it run here.
    with console.logged_in("operator") as client, deployment.working():
        page = client.get(f"/replays/{replay_id}").text
        assert "Run it here" in page
        submit(client, f"/replays/{replay_id}", f"/replays/{replay_id}/resume")
        assert tile(ends(client, replay_id), "succeeded") == 1
    assert deployment.status(row_id) == "resolved"


def test_pages_ask_as_often_for_many_as_for_few(console: Console, deployment: Deployment) -> None:
    knows(console, None)

    def statements(client: TestClient, path: str) -> int:
        with counting() as seen:
            assert client.get(path).status_code == 200
        return len(seen)

    def make(number: int) -> UUID:
        ids = deployment.fail(*(f"{number}-{n}" for n in range(number)), tenant=A)
        with operator_transaction() as session:
            return runs.create(session, Filter(ids=tuple(ids)), ReplaySettings(), by="ada <b>l</b>", reason="<i>r</i>")

    def end(replay_id: UUID, state: str) -> None:
        deployment.sql(
            "INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id, state, why, ended_at)"
            " SELECT %s, unnest(ARRAY(SELECT id FROM worker_failed_jobs)), %s, %s, '<b>why</b>', now()",
            replay_id,
            A,
            state,
        )

    first = make(1)
    end(first, "failed")
    with console.logged_in("operator") as client:
        few = [statements(client, path) for path in ("/replays", f"/replays/{first}", ALL)]
        many = make(8)
        for _ in range(10):
            with operator_transaction() as session:
                runs.create(session, Filter(actor=("<b>x</b>",)), ReplaySettings(), by="ada", reason="<i>r</i>")
        end(many, "refused")
        more = [statements(client, path) for path in ("/replays", f"/replays/{many}", ALL)]
        assert more == few
        assert max(few) <= 18
        for path in ("/replays", f"/replays/{many}", f"/replays/{first}"):
            page = client.get(path).text
            assert "&lt;b&gt;" in page
            assert not re.search("<b>(x|l|why)</b>|<i>r</i>", page), path
        assert "9 jobs" in client.get(f"/replays/{many}").text


def test_the_list_is_by_state_and_in_pages(
    browser: TestClient, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Nothing has been sent again" in browser.get("/replays").text
    made = [deployment.replay(Filter(actor=("nobody",))) for _ in range(5)]
    with operator_transaction() as session:
        runs.pause(session, made[1], by="ada")
        runs.cancel(session, made[3], by="ada")

    def listed(path: str) -> list[int]:
        return [made.index(UUID(each)) for each in re.findall(r'class="row" href="/replays/([^"]+)"', path)]

    assert listed(browser.get("/replays").text) == [4, 3, 2, 1, 0]
    assert listed(browser.get("/replays?state=running").text) == [4, 2, 0]
    assert listed(browser.get("/replays?state=paused&state=cancelled").text) == [3, 1]
    assert "No replay is finished" in browser.get("/replays?state=finished").text
    monkeypatch.setattr("worker.console.pages.replays.ROWS", 2)
    page, seen = browser.get("/replays?state=running").text, []
    while True:
        seen.append(listed(page))
        older = re.search(r'rel="next" href="([^"]+)"', page)
        if older is None:
            break
        page = browser.get(unescape(older[1])).text
    assert seen == [[4, 2], [0]]
    for query, message in (
        ("state=done", "state must be one of"),
        ("colour=red", "there is no filter"),
        ("before=then", "before must be what a page gave"),
    ):
        answer = browser.get(f"/replays?{query}")
        assert (answer.status_code, message in answer.text) == (400, True)


def test_edited_arguments_are_shown_redacted_to_operators_of_all_tenants(
    console: Console, deployment: Deployment
) -> None:
    knows(console, None)
    row_id = deployment.fail("a")[0]
    shown = [{"name": "what", "before": '"<b>a</b>"', "after": '"[redacted]"'}]
    with operator_transaction() as session:
        edit = edits.keep(session, row_id, Edit(Arguments(["a"], {}), Arguments(["secret"], {}), shown), None)
        settings = ReplaySettings(edit={"id": str(edit), "changed": ["what"]})
        replay_id = runs.create(session, Filter(ids=(row_id,)), settings, by="ada")
    with console.logged_in("operator") as client:
        page = client.get(f"/replays/{replay_id}").text
    assert "<del>&#34;&lt;b&gt;a&lt;/b&gt;&#34;</del>" in page
    assert "<ins>&#34;[redacted]&#34;</ins>" in page
    assert "secret" not in page
    # A tenant's own, made by its hand in SQL, names what it may not read.
    with tenant_context(A), transaction() as session:
        own = runs.create(session, Filter(ids=(row_id,)), ReplaySettings(), by="bob")
    named = json.dumps({"edit": {"id": str(edit), "changed": ["what"]}})
    deployment.sql("UPDATE worker_replays SET settings = settings || %s WHERE id = %s", named, own)
    with console.logged_in("operator", A) as client:
        page = client.get(f"/replays/{own}").text
    assert "for operators of all tenants" in page
    assert "redacted" not in page


def test_what_is_asked_of_the_database(deployment: Deployment) -> None:
    ids = deployment.fail("a", "b", "c", tenant=A)
    with operator_transaction() as session:
        replay_id = uuid4()
        where = Filter(ids=tuple(ids))
        assert runs.create(session, where, ReplaySettings(), by="ada", replay_id=replay_id) == replay_id
    with pytest.raises(AlreadyMade), operator_transaction() as session:
        runs.create(session, where, ReplaySettings(), by="bob", replay_id=replay_id)
    assert len(deployment.rows("SELECT * FROM worker_failed_job_events WHERE event = 'replay_started'")) == 1
    for row_id, state, ago in ((ids[0], "failed", 1), (ids[1], "succeeded", 60), (ids[2], "refused", 1)):
        deployment.sql(
            "INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id, state, ended_at)"
            " VALUES (%s, %s, %s, %s, now() - make_interval(secs => %s))",
            replay_id,
            row_id,
            A,
            state,
            ago,
        )
    other = uuid4()
    with operator_transaction() as session:
        assert items.counts(session, [replay_id, other]) == {
            replay_id: {"failed": 1, "succeeded": 1, "refused": 1},
            other: {},
        }
        assert items.ended_within(session, replay_id, 30) == 1
        assert items.ended_within(session, replay_id, 90) == 2
        # From the counts of groups, from all rows, and from some.
        by_counts = largest_groups(session, Filter(status=("pending",)), at_most=1)
        assert by_counts == largest_groups(session, Filter(status=("pending",)))
        assert sum(share.jobs for share in by_counts) == 3
        assert sum(share.jobs for share in largest_groups(session, where, at_most=2)) == 2
