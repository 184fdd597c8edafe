"""Edit and retry in the console: what changes is looked at first, and sent once; for operators of all tenants."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from db.failed import Filter, history, resolve
from db.replays import runs
from db.session import operator_transaction
from tests.integration.console import Console, csrf
from tests.integration.replaying import A, Deployment
from tests.integration.test_console_failure import text_of
from tests.integration.test_console_failure_actions import Imported


@pytest.fixture
def imported(deployment: Deployment, console: Console) -> Imported:
    """What each console of the test knows: the test's actors."""
    imported = Imported(console, deployment.broker)
    console.deployment = lambda _: imported
    return imported


@pytest.fixture
def browser(console: Console, imported: Imported) -> Iterator[tuple[TestClient, Imported]]:
    """An operator's browser."""
    with console.logged_in("operator") as client:
        yield client, imported


def fields(page: Response) -> dict[str, str]:
    """Return what a page's form holds, as a browser would send it."""
    names = re.findall(r'<textarea name="([^"]+)"[^>]*>\n?(.*?)</textarea>', page.text, re.DOTALL)
    hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.text)
    inputs = re.findall(r'<input name="([^"]+)" value="([^"]*)"', page.text)
    return {name: unescape(value) for name, value in (*hidden, *inputs, *names)}


def replays() -> list[runs.Replay]:
    with operator_transaction() as session:
        return runs.find(session)


def test_what_changes_is_seen_redacted_and_then_sent_once(
    deployment: Deployment, browser: tuple[TestClient, Imported]
) -> None:
    client, imported = browser
    (job,) = deployment.fail("one")
    deployment.fails = {"one"}
    path = f"/failures/{job}/edit"
    with deployment.working():
        page = client.get(path)
        form = fields(page)
        # As it is, to be changed.
        assert (form["args.0"], form["kwargs.password"]) == ('"one"', '"secret of one"')
        form |= {"args.0": '"<b>two</b>"', "kwargs.password": '"another secret"', "reason": "it was misspelt"}
        looked = client.post(path, data={**form, "step": "look"})
        assert looked.status_code == 200, text_of(looked.text)
        said = text_of(looked.text)
        assert 'what before: "one" after: "<b>two</b>"' in said
        assert 'password before: "[redacted]" after: "[redacted]"' in said
        assert "<b>two" not in looked.text
        assert (replays(), imported.started) == ([], [])
        # What is sent is what was seen.
        seen = fields(looked)
        assert seen["args.0"] == '"<b>two</b>"'
        other = client.post(path, data={**seen, "args.0": '"three"', "step": "send"})
        assert (other.status_code, 'after: "three"' in text_of(other.text), replays()) == (200, True, [])
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: client.post(path, data={**seen, "step": "send"}), range(4)))
        assert [answer.headers["location"] for answer in answers] == [f"/failures/{job}"] * 4
        (replay,) = replays()
        assert imported.started == [replay.id]
        assert (replay.created_by, replay.reason) == ("operator-0", "it was misspelt")
        deployment.runner().run_to_end(replay.id)
    assert [what for what, _, _ in deployment.ran] == ["one", "<b>two</b>"]
    page = client.get(f"/failures/{job}")
    said = text_of(page.text)
    assert "sent it with other arguments, and it succeeded" in said
    assert "edited by operator-0: it was misspelt (what, password)" in said
    # The history does not say to what.
    with operator_transaction() as session:
        events = json.dumps([[event.before, event.after] for event in history(session, job)])
    assert "another secret" not in events + page.text
    # It is final.
    late = client.get(path)
    assert late.headers["location"] == f"/failures/{job}"
    assert "It cannot be edited. It is resolved, which is final." in text_of(client.get(f"/failures/{job}").text)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, "nothing was changed; to send it as it is, retry it"),
        ({"args.0": "one"}, "what is not JSON, at character 1; text stands in quotes"),
        ({"kwargs.password": '"hush'}, "password is not JSON, at character 1"),
        ({"kwargs.colour": '"red"'}, "its arguments do not fit test.replayed"),
        ({"args.0": ""}, "its arguments do not fit test.replayed"),
        (
            {"actor": "test.replaye"},
            "there is no actor 'test.replaye' in the modules that were imported; there is test",
        ),
        ({"reason": "r" * 10_001, "args.0": "1", "step": "send"}, "reason must be at most 10,000 characters"),
    ],
)
def test_what_would_not_run_is_refused_and_what_was_typed_is_kept(
    deployment: Deployment, browser: tuple[TestClient, Imported], change: dict[str, str], why: str
) -> None:
    client, imported = browser
    (job,) = deployment.fail("one")
    path = f"/failures/{job}/edit"
    form = {**fields(client.get(path)), **change}
    answer = client.post(path, data=form)
    if form.get("step") == "send":
        answer = client.post(path, data={**form, **fields(answer), "step": "send"})
    assert answer.status_code == 400
    assert f"Not sent: {why}" in text_of(answer.text)
    assert "hush" not in text_of(answer.text).partition("Not sent")[2].partition("Arguments")[0]
    after = fields(answer)
    assert {name: after.get(name) for name in change if name != "step"} == {
        name: value for name, value in change.items() if name != "step"
    }
    assert (replays(), imported.started) == ([], [])


def test_arguments_are_added_left_out_and_given_to_another_actor(
    deployment: Deployment, browser: tuple[TestClient, Imported]
) -> None:
    client, _ = browser
    ran: list[Any] = []

    def other(what: str, password: str = "", *, loud: bool = False, **more: Any) -> None:
        ran.append((what, password, loud, more))

    deployment.declare(other, "test.other")
    (job,) = deployment.fail("one")
    path = f"/failures/{job}/edit"
    form = {**fields(client.get(path)), "actor": "test.other"}
    form |= {"kwargs.password": "", "kwargs.loud": "true", "more_name": "colour", "more_value": '["red"]'}
    with deployment.working():
        looked = client.post(path, data=form)
        said = text_of(looked.text)
        assert 'password before: "[redacted]" is left out' in said
        assert 'colour was not given after: ["red"]' in said
        client.post(path, data={**fields(looked), "step": "send"})
        deployment.runner().run_to_end(replays()[0].id)
    assert ran == [("one", "", True, {"colour": ["red"]})]


def test_an_original_that_is_not_there_and_one_that_is_large(
    deployment: Deployment, browser: tuple[TestClient, Imported]
) -> None:
    client, _ = browser
    (job,), (large,) = deployment.fail("one"), deployment.fail("x" * 250_000)
    deployment.sql("DELETE FROM worker_failed_job_originals WHERE failed_job_id = %s", job)
    # What is left is redacted, so all of it has to be said.
    answer = client.get(f"/failures/{job}/edit")
    assert "what it was called with is not known: say all of it" in text_of(answer.text)
    form = fields(answer)
    assert form["kwargs.what"] == form["kwargs.password"] == ""
    with deployment.working():
        looked = client.post(f"/failures/{job}/edit", data={**form, "kwargs.what": '"known"'})
        client.post(f"/failures/{job}/edit", data={**fields(looked), "step": "send"})
        deployment.runner().run_to_end(replays()[0].id)
    assert (deployment.ran[-1][0], deployment.status(job)) == ("known", "resolved")
    answer = client.get(f"/failures/{large}/edit")
    assert (answer.status_code, f"worker failed edit {large} --editor" in answer.text) == (409, True)
    resolve(operator_transaction, Filter(ids=(large,)), by="ada", note="x")
    assert client.get(f"/failures/{large}/edit").status_code == 303


@pytest.mark.usefixtures("imported")
def test_what_a_job_was_called_with_is_for_operators_of_all_tenants(deployment: Deployment, console: Console) -> None:
    (job,) = deployment.fail("one")
    everybody = (("viewer", None), ("viewer", A), ("operator", A))
    for role, tenant_id in everybody:
        console.token(role, tenant_id)
    for role, tenant_id in everybody:
        with console.logged_in(role, tenant_id) as client:
            form = {"csrf": csrf(client.get("/failures")), "args.0": '"two"', "step": "send"}
            for answer in (client.get(f"/failures/{job}/edit"), client.post(f"/failures/{job}/edit", data=form)):
                assert answer.status_code == 403
                assert "secret of one" not in answer.text
    assert replays() == []
