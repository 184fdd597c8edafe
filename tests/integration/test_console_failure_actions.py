"""What is done from the page of a failed job: retry, resolve, abandon, re-open, note; once, and by whoever may."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from dramatiq import Broker
from dramatiq.brokers.stub import StubBroker
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy.orm import Session

from db.failed import FailedJob, get, history
from db.replays import runs
from db.session import operator_transaction
from tests.integration.console import Console, csrf, part, submit
from tests.integration.replaying import Deployment
from tests.integration.test_console_failure import fail, text_of
from tests.integration.test_failed_jobs import A, B, set_status
from tests.servers import Database
from worker.console.deployment import Deployment as Imports
from worker.failed import incident

pytestmark = pytest.mark.usefixtures("imported")


class Imported(Imports):
    """An application that is imported already, in a console that runs no replay by itself."""

    def __init__(self, console: Console, broker: Broker | None = None) -> None:
        super().__init__(console.settings(), imported=lambda: broker or StubBroker(middleware=[]))
        self.started: list[UUID] = []

    def run_soon(self, replay_id: UUID) -> None:
        """Keep what is to be run."""
        self.started.append(replay_id)


@pytest.fixture
def imported(console: Console) -> Imported:
    """What each console of the test has instead of the Procfile's modules."""
    imported = Imported(console)
    console.deployment = lambda _: imported
    return imported


def act(client: TestClient, job: UUID, action: str, **values: str) -> Response:
    """Do it as the page's form would, and return the page that one comes back to."""
    answer = submit(client, f"/failures/{job}", f"/failures/{job}/{action}", **values)
    assert (answer.status_code, answer.headers.get("location")) == (303, f"/failures/{job}"), answer.text
    return client.get(f"/failures/{job}")


def last_event(job: UUID) -> tuple[str, str, str | None]:
    with operator_transaction() as session:
        event = history(session, job)[-1]
    return event.event, event.changed_by, event.reason


def status(job: UUID) -> str:
    with operator_transaction() as session:
        found = get(session, job)
    assert found is not None
    return found.status


def replays() -> list[runs.Replay]:
    with operator_transaction() as session:
        return runs.find(session)


def test_a_replay_that_takes_a_job_while_its_page_is_made_is_not_missed(
    deployment: Deployment, console: Console, imported: Imported, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = deployment.fail("one")
    with console.logged_in("operator") as client:
        act(client, job, "retry")

        def read_and_claim(session: Session, job_id: UUID) -> FailedJob | None:
            found = get(session, job_id)
            deployment.runner().run_to_end(imported.started[0], at_most=0.1)
            assert status(job_id) == "in_progress"
            return found

        with monkeypatch.context() as patched:
            patched.setattr(incident, "get", read_and_claim)
            page = client.get(f"/failures/{job}")
        # It shows the job as it was, and looks again.
        assert "pending" in part(page, "head")
        assert "data-every" in page.text
        assert f"Replay {str(imported.started[0])[:8]}, made" in text_of(page.text)
        assert "sent it, and it has not ended" in text_of(client.get(f"/failures/{job}").text)


def test_a_retry_is_seen_to_its_end(deployment: Deployment, console: Console, imported: Imported) -> None:
    (job,), (other,) = deployment.fail("one"), deployment.fail("two")
    deployment.fails = {"two"}
    with console.logged_in("operator") as client:
        name = "operator-0"
        page = act(client, job, "retry")
        (replay,) = replays()
        assert (replay.created_by, replay.filter.ids, replay.tenant_id) == (name, (job,), None)
        assert imported.started == [replay.id]
        # It is looked at again until it has ended.
        said = text_of(page.text)
        assert "data-every" in page.text
        assert f"Replay {str(replay.id)[:8]}, made" in said
        assert f"by {name}, sends it as soon as a process runs it" in said
        assert f'href="/replays/{replay.id}"' in page.text
        # Whoever presses again is told so, and nothing is sent twice.
        assert "being sent again already" not in said
        assert f"/failures/{job}/retry" not in page.text
        twice = act(client, job, "retry")
        assert "is being sent again already, by replay" in text_of(twice.text)
        assert "It was not sent twice." in twice.text
        with deployment.working():
            deployment.runner().run_to_end(replay.id)
        page = client.get(f"/failures/{job}")
        said = text_of(page.text)
        assert "data-every" not in page.text
        assert f": replay {str(replay.id)[:8]} sent it, and it succeeded." in said
        assert f"made by {name}" in said
        assert "replayed by" in said
        assert last_event(job)[0] == "replayed"
        assert [what for what, _, _ in deployment.ran].count("one") == 2
        # One that fails again says so, and can be tried again.
        act(client, other, "retry")
        with deployment.working():
            deployment.runner().run_to_end(replays()[0].id)
        page = client.get(f"/failures/{other}")
        said = text_of(page.text)
        assert "sent it, and it failed again" in said
        assert "2 times by now" in said
        assert f"/failures/{other}/retry" in page.text


def test_what_has_been_sent_and_not_ended(deployment: Deployment, console: Console) -> None:
    (job,) = deployment.fail("one")
    with console.logged_in("operator") as client:
        act(client, job, "retry")
        # Nobody works.
        deployment.runner(stop=lambda: True).run_to_end(replays()[0].id)
        page = client.get(f"/failures/{job}")
        assert "sent it, and it has not ended. This page says how it ends." in text_of(page.text)
        assert "data-every" in page.text
        again = act(client, job, "retry")
        assert "It is being worked on already. It was not sent twice." in text_of(again.text)
        assert len(replays()) == 1


def test_two_who_press_at_once_send_it_once(console: Console) -> None:
    job = fail()
    with console.logged_in("operator") as client:
        form = {"csrf": csrf(client.get(f"/failures/{job}"))}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.post(f"/failures/{job}/retry", data=form), range(8)))
        assert [answer.status_code for answer in answers] == [303] * 8
        assert len(replays()) == 1


def test_closing_re_opening_and_noting(console: Console) -> None:
    job = fail()
    with console.logged_in("operator") as client:
        for action, words, becomes, event in (
            ("note", {"note": "look at <b>this</b>"}, "pending", "noted"),
            ("abandon", {"reason": "test data"}, "abandoned", "abandoned"),
            ("reopen", {"reason": ""}, "pending", "reopened"),
            ("resolve", {"note": "charged by hand"}, "resolved", "resolved"),
        ):
            page = act(client, job, action, **words)
            assert 'class="said good"' in page.text, text_of(page.text)
            assert status(job) == becomes
            (said,) = words.values()
            assert last_event(job) == (event, "operator-0", said or None)
        assert "look at &lt;b&gt;this&lt;/b&gt;" in page.text
        # Twice is once.
        again = act(client, job, "resolve", note="again")
        assert "It is resolved already." in again.text
        assert last_event(job)[2] == "charged by hand"


@pytest.mark.parametrize(
    ("stands", "action", "words", "why"),
    [
        ("resolved", "retry", {}, "Not sent. It is resolved, which is final."),
        ("resolved", "abandon", {"reason": "x"}, "It is resolved, which is final."),
        ("resolved", "reopen", {}, "It is resolved, which is final."),
        ("abandoned", "resolve", {"note": "x"}, "It is abandoned, and can become pending, in progress only."),
        ("pending", "resolve", {"note": "  "}, "Nothing was changed: note must not be empty."),
        ("pending", "abandon", {}, "Nothing was changed: reason must not be empty."),
        ("pending", "note", {"note": "n" * 10_001}, "note must be at most 10,000 characters, not 10,001."),
        ("pending", "note", {"note": "n\0"}, "note must not hold a NUL character"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(
    database: Database, console: Console, stands: str, action: str, words: dict[str, Any], why: str
) -> None:
    job = fail()
    set_status(database, job, stands)
    before = last_event(job)
    with console.logged_in("operator") as client:
        page = act(client, job, action, **words)
        assert 'class="said bad"' in page.text
        assert why in text_of(page.text)
        assert (status(job), last_event(job)) == (stands, before)
        assert replays() == []


ACTIONS = ("retry", "resolve", "abandon", "reopen", "note")


def test_a_viewer_is_refused_and_a_tenants_operator_touches_its_own_alone(
    deployment: Deployment, console: Console
) -> None:
    (mine,) = deployment.fail("mine")
    (theirs,) = deployment.fail("theirs", tenant=B)
    words = {"note": "x", "reason": "x"}
    console.token("viewer")
    console.token("operator", A)
    with console.logged_in("viewer") as client:
        form = {"csrf": csrf(client.get("/failures")), **words}
        for action in ACTIONS:
            assert client.post(f"/failures/{mine}/{action}", data=form).status_code == 403
    with console.logged_in("operator", A) as client:
        form = {"csrf": csrf(client.get("/failures")), **words}
        for action in ACTIONS:
            for nobodys in (theirs, uuid4(), str(theirs)[:8]):
                assert client.post(f"/failures/{nobodys}/{action}", data=form).status_code == 404
            assert client.post(f"/failures/{mine}/{action}").status_code == 403
        assert (status(mine), status(theirs), replays()) == ("pending", "pending", [])
        deployment.fails.clear()
        act(client, mine, "retry")
        (replay,) = replays()
        assert replay.tenant_id == A
        with deployment.working():
            deployment.runner().run_to_end(replay.id)
        assert status(mine) == "resolved"
        assert f'href="/replays/{replay.id}"' in client.get(f"/failures/{mine}").text


def test_of_an_operators_replay_a_tenant_sees_that_it_has_its_job(deployment: Deployment, console: Console) -> None:
    (mine,) = deployment.fail("mine")
    console.token("operator")
    console.token("viewer", A)
    with console.logged_in("operator") as client:
        act(client, mine, "retry")
        (replay,) = replays()
        with deployment.working():
            deployment.runner().run_to_end(replay.id)
    with console.logged_in("viewer", A) as client:
        page = client.get(f"/failures/{mine}")
        assert f"replay {str(replay.id)[:8]} sent it, and it failed again" in text_of(page.text)
        assert f'href="/replays/{replay.id}"' not in page.text
