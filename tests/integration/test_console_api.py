"""The API: what programs see and do, which is what pages and the command line see and do."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
from fastapi.testclient import TestClient
from httpx2 import Response

from db import failed_jobs
from db.failed import Filter, count, find, history
from db.replays import runs
from db.session import operator_transaction
from tests.integration.console import Console, csrf
from tests.integration.failed_rows import record_at_random
from tests.integration.replaying import A, Deployment
from tests.integration.test_console_failure_actions import Imported
from tests.integration.test_failed_jobs import B, a_failure
from tests.servers import Database
from worker.queue_admin import pause

API = "/api/v1"


@pytest.fixture
def program(console: Console) -> Iterator[TestClient]:
    """A program with an operator's token."""
    token = console.token("operator")
    with console.client(headers={"authorization": f"Bearer {token}"}) as client:
        yield client


def problem(answer: Response, status: int) -> str:
    """Return what is said to be wrong."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    said = answer.json()
    assert said.keys() == {"type", "title", "status", "detail"}
    assert said["status"] == status
    return str(said["detail"])


def every(client: TestClient, path: str, name: str, limit: int, **asked: Any) -> list[dict[str, Any]]:
    """Return everything of every page."""
    found: list[dict[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        answer = client.get(f"{API}{path}", params={"limit": limit, **asked, **after})
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page[name]) <= limit
        found += page[name]
        if page["next"] is None:
            return found
        after = {"after": page["next"]}


def test_pages_of_everything_by_cursors(program: TestClient, database: Database, redis_url: str) -> None:
    record_at_random(database, 1, 60)
    with operator_transaction() as session:
        for n in range(5):
            # In one transaction, so at one moment.
            runs.create(session, Filter(actor=("charge",)), runs.ReplaySettings(), by=f"person {n}")
    with operator_transaction() as session:
        wanted = [str(job.id) for job in find(session, Filter(status=("pending", "in_progress")), limit=1000).jobs]
        billing = count(session, Filter(queue=("billing",)))
    found = every(program, "/failures", "failures", 7)
    assert [job["id"] for job in found] == wanted
    assert found[0].keys() >= {"task_name", "error_message", "failed_at", "status", "tenant_name", "fingerprint"}
    assert len(every(program, "/failures", "failures", 1000, status="all", queue="billing")) == billing
    assert len({one["id"] for one in every(program, "/replays", "replays", 2)}) == 5
    assert len(every(program, "/replays", "replays", 2, state="paused")) == 0
    groups = every(program, "/groups", "groups", 2)
    assert len(groups) == len({group["fingerprint"] for group in groups}) == 5
    assert all(group["open"] == group["pending"] + group["in_progress"] for group in groups)
    assert {one["tenant_id"] for one in every(program, "/tenants", "tenants", 1)} == {str(A), str(B), None}
    events = every(program, "/audit", "events", 2)
    assert [event["event"] for event in events][:5] == ["replay_started"] * 5
    assert len(every(program, "/audit", "events", 2, who="person 3")) == 1
    stats = program.get(f"{API}/stats").json()
    assert stats["jobs"] == 60 == sum(stats["by_status"].values())
    assert {one["name"] for one in stats["by_queue"]} == {"billing", "attribution", "llm"}
    assert sum(one["jobs"] for one in stats["by_tenant"]) == 60
    one = program.get(f"{API}/groups/{groups[0]['fingerprint'][:5]}").json()
    assert one["group"] == groups[0]
    assert sum(tenant["open"] for tenant in one["tenants"]) == groups[0]["open"]
    assert len(one["hours"]) == 24
    with redis.Redis.from_url(redis_url) as client:
        pause(client, "llm", by="ann", reason="too many")
    queues = {queue["name"]: queue for queue in program.get(f"{API}/queues").json()["queues"]}
    assert queues["llm"]["pause"]["reason"] == "too many"
    assert queues["housekeeping"]["pause"] is None
    assert program.get(f"{API}/workers").json() == {"workers": []}


def test_what_cannot_be_asked_for_is_named(program: TestClient) -> None:
    wrong = (
        ("/failures?limit=0", 422, "limit: "),
        ("/failures?limit=1001", 422, ", not '1001'"),
        ("/failures?limit=x", 422, ", not 'x'"),
        ("/failures?queu=llm", 400, "there is no parameter 'queu'; there is actor, after, "),
        ("/failures?status=opened", 422, ", not 'opened'"),
        ("/failures?tenant=acme", 400, "tenant must be a UUID or the name of one that is there, not 'acme'"),
        ("/failures?queue=", 422, "queue.0: "),
        ("/failures?fingerprint=xyz", 400, "fingerprint must be 4 to 32 of 0-9 and a-f, not 'xyz'"),
        ("/failures?since=yesterday", 400, "since must be a time such as 2h"),
        ("/failures?after=bm90aGluZw", 400, "after must be what a page gave as its next"),
        ("/failures?after=!", 400, "after must be what a page gave as its next, not '!'"),
        ("/groups?after=bm90aGluZw", 400, "after must be what a page gave as its next"),
        ("/tenants?after=bm90aGluZw", 400, "after must be what a page gave as its next"),
        ("/replays?after=bm90aGluZw", 400, "after must be what a page gave as its next"),
        ("/audit?after=bm90aGluZw", 400, "after must be what a page gave as its next"),
        ("/replays?state=on", 422, ", not 'on'"),
        ("/queues?limit=5", 400, "there is no parameter 'limit'; there is none"),
        (f"/failures/{uuid4()}", 404, "there is no failed job"),
        ("/failures/xyz", 400, "not 'xyz'"),
        ("/groups/ffff", 404, "no group's fingerprint begins with 'ffff'"),
        (f"/replays/{uuid4()}", 404, "there is no replay"),
        ("/nothing", 404, "Not Found"),
    )
    for path, status, said in wrong:
        assert said in problem(program.get(f"{API}{path}"), status), path
    nothing: tuple[tuple[str, dict[str, Any], int, str], ...] = (
        ("/failures/resolve", {"note": "x"}, 422, "filter: Field required"),
        ("/failures/resolve", {"filter": {}, "note": "x"}, 400, "filter must say which jobs"),
        ("/failures/resolve", {"filter": {"status": ["all"]}, "note": "x"}, 400, "filter must say which jobs"),
        ("/failures/resolve", {"filter": {"id": []}, "note": "x"}, 422, "filter.id: "),
        ("/failures/resolve", {"filter": {"queue": ["llm"], "ids": ["abcd"]}, "note": "x"}, 422, "filter.ids: "),
        ("/failures/resolve", {"filter": {"queue": ["llm"]}, "note": " "}, 400, "note must not be empty"),
        ("/replays", {"filter": {}}, 400, "filter must say which jobs"),
        ("/replays", {"filter": {"queue": ["llm"]}, "ramp": [0]}, 422, "ramp.0: "),
        ("/replays", {"filter": {"queue": ["llm"]}, "threshold": 20}, 422, "threshold: "),
        ("/replays", {"filter": {"queue": ["llm"]}}, 409, "nothing to retry: no failed job matches"),
    )
    for path, body, status, said in nothing:
        assert said in problem(program.post(f"{API}{path}", json=body), status), (path, body)
    assert "body" in problem(program.post(f"{API}/replays", content=b"{", headers={"content-type": "text/json"}), 422)


def test_one_failure_and_what_is_done_to_it(program: TestClient, console: Console, database: Database) -> None:
    imported = Imported(console)
    program.app.state.deployment = imported  # type: ignore[attr-defined]
    failures = [a_failure(fingerprint="f" * 32, title="bad", correlation_id=UUID(int=7)) for _ in range(2)]
    failed_jobs.record_all(failures)
    with operator_transaction() as session:
        one, other = (str(job.id) for job in find(session, Filter()).jobs)
    found = program.get(f"{API}/failures/{one[:8]}").json()
    assert found["job"]["id"] == one
    assert found["job"]["task_kwargs"] == {"three": 3}
    assert found["group"]["open"] == 2
    assert {job["id"] for job in found["chain"]} == {one, other}
    assert [event["event"] for event in found["history"]] == ["captured"]
    assert found["advice"].startswith("Its input is wrong")
    assert found["next_steps"][0]["command"].startswith("worker failed ")
    # Each changes it and gives it back.
    noted = program.post(f"{API}/failures/{one}/note", json={"note": "seen"})
    assert (noted.status_code, noted.json()["remediation_notes"]) == (200, "seen")
    assert program.post(f"{API}/failures/{one}/abandon", json={"reason": "old"}).json()["status"] == "abandoned"
    refused = program.post(f"{API}/failures/{one}/abandon", json={"reason": "old"})
    assert problem(refused, 409) == f"{one} is abandoned already"
    assert program.post(f"{API}/failures/{one}/reopen").json()["status"] == "pending"
    assert program.post(f"{API}/failures/{one}/resolve", json={"note": "done"}).json()["status"] == "resolved"
    assert "which is final" in problem(program.post(f"{API}/failures/{one}/retry"), 409)
    retried = program.post(f"{API}/failures/{other}/retry", json={"reason": "mended"})
    assert (retried.status_code, retried.json()["reason"]) == (201, "mended")
    assert imported.started == [UUID(retried.json()["id"])]
    assert f"by replay {retried.json()['id']}" in problem(program.post(f"{API}/failures/{other}/retry"), 409)
    with operator_transaction() as session:
        assert [(event.event, event.changed_by) for event in history(session, UUID(one))][1:] == [
            (event, "operator-0") for event in ("noted", "abandoned", "reopened", "resolved")
        ]
    with operator_transaction() as session:
        session.connection().exec_driver_sql(f"DELETE FROM worker_failed_jobs WHERE id = '{one}'")
    assert "was removed" in problem(program.get(f"{API}/failures/{one}"), 410)
    events = program.get(f"{API}/failures/{one}/history").json()["events"]
    assert [event["event"] for event in events][-1] == "purged"
    assert "is not there" not in problem(program.post(f"{API}/failures/{one}/note", json={"note": "x"}), 404)


def test_all_that_match_are_closed_but_those_that_fail_later(program: TestClient, database: Database) -> None:
    now = datetime.now(UTC)
    failed_jobs.record_all(
        [
            *(a_failure(queue="llm", failed_at=now - timedelta(minutes=n)) for n in range(3)),
            a_failure(queue="billing", failed_at=now),
        ]
    )
    with operator_transaction() as session:
        ids = [str(job.id) for job in find(session, Filter(queue=("llm",))).jobs]
        (kept,) = (str(job.id) for job in find(session, Filter(queue=("billing",))).jobs)
    given_up = program.post(f"{API}/failures/abandon", json={"filter": {"id": [ids[0], kept]}, "reason": "old"})
    assert given_up.json()["changed"] == 2
    back = program.post(f"{API}/failures/reopen", json={"filter": {"queue": ["billing"]}})
    assert (back.json()["changed"], back.json()["ids"]) == (1, [kept])
    closed = program.post(f"{API}/failures/resolve", json={"filter": {"queue": ["llm"]}, "note": "all of it"}).json()
    # The one that was given up cannot be.
    assert closed == {
        "changed": 2,
        "ids": sorted(ids[1:]),
        "refused": {},
        "left": 0,
        "until": closed["until"],
    }
    # Just after the last that was meant.
    last = now - timedelta(minutes=1) + timedelta(microseconds=1)
    assert datetime.fromisoformat(closed["until"]) == last
    missing = str(uuid4())
    said = program.post(f"{API}/failures/resolve", json={"filter": {"id": [ids[1], missing]}, "note": "again"}).json()
    assert (said["changed"], said["refused"]) == (
        0,
        {ids[1]: "is resolved already", missing: "is not there"},
    )


def test_a_replay_is_made_once_for_a_key_and_goes_as_it_is_told(
    program: TestClient, console: Console, deployment: Deployment
) -> None:
    imported = Imported(console, deployment.broker)
    program.app.state.deployment = imported  # type: ignore[attr-defined]
    one, other = map(str, deployment.fail("one", "other"))
    wanted = {"filter": {"actor": ["replayed"]}, "ramp": [1, 2], "rate": 5, "reason": "mended"}
    deployment.declare(lambda: None, "test.without_arguments")
    looked = program.post(f"{API}/replays/dry-run", json={**wanted, "actor": "test.without_arguments"}).json()
    assert (looked["jobs"], looked["would_go"], looked["in_time"]) == (2, 0, True)
    assert looked["refused"][0]["why"].startswith("its arguments do not fit test.without_arguments")
    assert looked["refused"][0]["jobs"] == 2
    assert program.post(f"{API}/replays/dry-run", json=wanted).json()["would_go"] == 2
    assert program.get(f"{API}/replays").json()["replays"] == []
    key = {"idempotency-key": "nightly"}
    made = program.post(f"{API}/replays", json=wanted, headers=key)
    assert made.status_code == 201, made.text
    replay = made.json()["replay"]
    assert replay["settings"]["ramp"] == [1, 2]
    assert (replay["created_by"], replay["reason"], replay["state"]) == ("operator-0", "mended", "running")
    # Held fast: what fails from now on is not of it.
    assert replay["filter"]["until"]
    assert imported.started == [UUID(replay["id"])]
    with deployment.working():
        deployment.fails.clear()
        deployment.runner().run_to_end(UUID(replay["id"]))
    # Again, when there is nothing left to send: it was made, and is the same.
    again = program.post(f"{API}/replays", json=wanted, headers=key)
    assert (again.status_code, again.json()["replay"]["id"]) == (201, replay["id"])
    assert again.json()["replay"]["items"] == {"succeeded": 2}
    assert len(imported.started) == 1
    assert "for another request" in problem(
        program.post(f"{API}/replays", json={**wanted, "rate": 6}, headers=key), 409
    )
    assert "nothing to retry" in problem(program.post(f"{API}/replays", json=wanted), 409)
    assert f"{one} is resolved" in problem(program.post(f"{API}/replays", json={"filter": {"id": [one]}}), 409)
    path = f"{API}/replays/{replay['id'][:8]}"
    assert "only one that is running can become paused" in problem(program.post(f"{path}/pause"), 409)
    # Another, step by step.
    (third,) = deployment.fail("third")
    second = program.post(f"{API}/replays", json={"filter": {"id": [str(third), other]}}).json()
    assert second["refused"] == {other: "is resolved, which is final"}
    path = f"{API}/replays/{second['replay']['id']}"
    paused = program.post(f"{path}/pause", json={"why": "wait"}).json()
    assert (paused["state"], paused["why"]) == ("paused", "wait")
    assert program.post(f"{path}/resume").json()["state"] == "running"
    assert imported.started[-1] == UUID(second["replay"]["id"])
    assert program.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert program.get(path).json()["replay"]["why"] == "cancelled by hand"


def test_arguments_are_edited_by_operators_of_all_tenants(
    program: TestClient, console: Console, deployment: Deployment
) -> None:
    imported = Imported(console, deployment.broker)
    program.app.state.deployment = imported  # type: ignore[attr-defined]
    (job,) = deployment.fail("one")
    path = f"{API}/failures/{job}/edit"
    assert "nothing was changed" in problem(program.post(path, json={}), 409)
    assert "do not fit test.replayed" in problem(program.post(path, json={"set": {"colour": 1}}), 409)
    assert "there is no actor 'nobody'" in problem(
        program.post(path, json={"set": {"what": 1}, "actor": "nobody"}), 400
    )
    change = {"set": {"what": "two", "password": "another"}, "reason": "misspelt"}
    looked = program.post(path, json={**change, "dry_run": True}).json()
    assert looked["replay"] is None
    assert looked["changed"] == [
        {"name": "what", "before": '"one"', "after": '"two"'},
        {"name": "password", "before": '"[redacted]"', "after": '"[redacted]"'},
    ]
    assert looked["doubtful"] is None
    assert imported.started == []
    sent = program.post(path, json=change)
    assert sent.status_code == 201, sent.text
    replay_id = sent.json()["replay"]["id"]
    assert imported.started == [UUID(replay_id)]
    assert "another" not in sent.text
    assert program.get(f"{API}/replays/{replay_id}").json()["edit"] == looked["changed"]
    with deployment.working():
        deployment.runner().run_to_end(UUID(replay_id))
    assert deployment.ran[-1][0] == "two"


def test_a_browsers_session_works_with_the_token_of_its_forms(console: Console, database: Database) -> None:
    failed_jobs.record_all([a_failure()])
    console.token("operator", A)
    with console.logged_in("operator") as client:
        form = csrf(client.get("/failures"))
        (job,) = client.get(f"{API}/failures").json()["failures"]
        path = f"{API}/failures/{job['id']}/note"
        assert "too old" in problem(client.post(path, json={"note": "x"}), 403)
        assert client.post(path, json={"note": "x"}, headers={"x-csrf-token": form}).status_code == 200
    # What is about all tenants is not for one's people.
    with console.client(headers={"authorization": f"Bearer {console.token('operator', A)}"}) as bound:
        for path in ("/queues", "/workers", "/tenants"):
            assert "sees one tenant" in problem(bound.get(f"{API}{path}"), 403)
        assert [one["id"] for one in bound.get(f"{API}/failures").json()["failures"]] == [job["id"]]


def test_it_is_described_in_full_to_whoever_is_logged_in(program: TestClient) -> None:
    described = program.get(f"{API}/openapi.json").json()
    assert described["openapi"].startswith("3.")
    operations = [
        (path, method, operation) for path, of in described["paths"].items() for method, operation in of.items()
    ]
    assert len(operations) > 20
    for path, method, operation in operations:
        assert path.startswith(API), path
        assert operation["summary"], path
        assert operation["description"], (path, method)
        good = next(of for status, of in operation["responses"].items() if status.startswith("2"))
        assert good["content"]["application/json"]["schema"], (path, method)
        assert "application/problem+json" in operation["responses"]["4XX"]["content"]
    # Names that a client made from this can have.
    assert all(name.isidentifier() and "__" not in name for name in described["components"]["schemas"])
    assert len({operation["operationId"] for *_, operation in operations}) == len(operations)
    assert all(operation["operationId"].count("_") < 3 for *_, operation in operations)
    filters = {one["name"] for one in described["paths"][f"{API}/failures"]["get"]["parameters"]}
    assert filters >= {"id", "status", "queue", "actor", "tenant", "since", "text", "replay", "after", "limit"}
    # Cursors say nothing that anybody should read.
    assert base64.urlsafe_b64decode(b"bm90aGluZw==") == b"nothing"
