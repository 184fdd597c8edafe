"""The console's first page: whether anything is wrong."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import event, text
from sqlalchemy.engine import Connection, Engine

from db import failed_jobs, session
from db.failed import Filter, resolve
from db.replays import runs
from db.session import operator_transaction
from tests.integration.console import Console, part, submit
from tests.integration.nothing_lost import QUEUE, TENANT, Side, ours, put
from tests.integration.test_failed_jobs import B, a_failure
from tests.servers import Database, free_port
from tests.waiting import eventually
from worker.console.shared import WAITS, Shared
from worker.live import list_workers
from worker.queue_admin import pause

EVIL = "<script>alert('x')</script>"
OWN = "dramatiq:__dramaturg__."


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def tenants(database: Database) -> None:
    """Two, one of which is called what would be a tag."""
    with psycopg.connect(database.admin_url) as connection:
        connection.execute(
            "INSERT INTO tenants (id, name) VALUES (%s, %s), (%s, 'globex')", [TENANT, f"acme {EVIL}", B]
        )


@pytest.fixture
def failures(tenants: None) -> dict[str, UUID]:
    """Three groups of failures, one of which is back; a replay that stopped, and one that runs."""
    now = datetime.now(UTC)

    def fail(minutes: float, name: str, **changes: object) -> UUID:
        at = now - timedelta(minutes=minutes)
        return failed_jobs.record(a_failure(failed_at=at, fingerprint=name * 32, title=f"title {name}", **changes))

    fail(200, "a", error_type="timeout")
    resolve(operator_transaction, Filter(fingerprint=("a" * 32,)), by="ada", note="mended")
    ids = {"a": fail(150, "a", error_type="timeout")}
    for minutes in (3, 4, 5):
        fail(minutes, "b", tenant_id=B, exception_class=f"shop.{EVIL}", error_message=EVIL, error_type="kind_of_b")
    fail(90, "c", error_type="expired")
    with operator_transaction() as s:
        ids["stopped"] = runs.create(s, Filter(error_type=("timeout",)), runs.ReplaySettings(), by="ada")
        ids["running"] = runs.create(s, Filter(error_type=("expired",)), runs.ReplaySettings(), by=EVIL)
        runs.stop(s, ids["stopped"], runner="r", why=f"too many failed again {EVIL}")
        s.execute(
            text(
                "INSERT INTO worker_outbox (queue, redis_id, message_id, actor, message, written_at)"
                " VALUES ('unknown', gen_random_uuid(), 'm', 'a', 'm', now() - interval '2 minutes')"
            )
        )
    return ids


def test_what_is_wrong_is_seen_at_a_glance_and_leads_on(
    console: Console, failures: dict[str, UUID], client: redis.Redis, redis_url: str, side: Callable[..., Side]
) -> None:
    one = side(ours, redis_url)
    one.broker._heartbeat._interval = 0.05  # type: ignore[attr-defined]
    gate = threading.Event()
    held = one.actor(lambda: bool(gate.wait(60)) and None, actor_name=f"test.{EVIL}")
    put(client, "m1", "{}", queue="llm")
    put(client, "m2", "{}", queue="llm")
    pause(client, "maintenance", by="bob", reason=f"a migration {EVIL}")
    client.hset(f"{OWN}spool", "1", json.dumps({"task_name": "a", "error_type": "timeout"}))
    client.set(f"{OWN}spool.since", int(time.time()) - 120)
    client.hset(f"{OWN}ended.{int(time.time() // 60) - 1}", mapping={f"succeeded:{QUEUE}": 50, f"failed:{QUEUE}": 5})
    minute = int(time.time() // 60)
    for ago, waiting in ((5, 4), (3, 8), (2, 0)):
        sample = json.dumps({QUEUE: [waiting, 0, 0, None]})
        client.hset(f"{OWN}depths.{(minute - ago) // 60}", str(minute - ago), sample)
    with one.working(3), console.logged_in("viewer") as browser:
        try:
            one.send(held)
            eventually(lambda: any(worker.running for worker in list_workers(client)))
            page = browser.get("/")
        finally:
            gate.set()
    assert page.status_code == 200
    assert EVIL not in page.text
    verdict = part(page, "verdict")
    assert "Something is wrong" in verdict
    assert "1 group is back after it was resolved." in verdict
    assert "5 failures are open, in 3 groups." in verdict
    assert f"Replay {str(failures['stopped'])[:8]} stopped by itself: too many failed again {EVIL}." in verdict
    assert "Queue llm holds 2 messages, and nobody consumes it." in verdict
    assert f"Queue maintenance is paused by bob: a migration {EVIL}." in verdict
    assert "1 failure waits in Redis for Postgres to take them." in verdict
    assert "1 message of transactions that are committed did not reach Redis yet." in verdict
    # The worst first.
    assert (
        verdict.index("nobody consumes")
        < verdict.index("is back")
        < verdict.index("are open")
        < verdict.index("is paused")
    )
    assert part(page, "tiles") == (
        "5 open failures in 3 groups 1 regressed were resolved, and are back"
        " 2h oldest pending since it failed 1 replay stopped 1 running"
        " 1 live worker running 1 message 1 queue paused of 4 1 in the spool since 2m"
    )
    # To each in one click, and from a group to its failures in the third.
    for path in (
        "/failures",
        "/groups",
        f"/failures/{failures['a']}",
        "/replays?state=stopped",
        "#workers",
        "#queues",
        f"/groups/{'a' * 32}",
        f"/replays/{failures['stopped']}",
        f"/failures?tenant={TENANT}",
        "/failures?status=all&amp;since=3h&amp;error_type=kind_of_b",
        f"/failures?status=all&amp;since=1h&amp;queue={QUEUE}",
    ):
        assert f'href="{path}"' in page.text, path
    groups = part(page, "groups")
    assert groups.index("title a") < groups.index("title b") < groups.index("title c")
    assert groups.count("regressed") == 1
    queues = part(page, "queues")
    assert re.search(rf"{QUEUE} 0 0 1 - 11 5 1 ok", queues), queues
    assert re.search(r"llm 2 0 0 - 0 0 0 nobody consumes it", queues), queues
    # Of what waited, minute by minute; where there is no sample, as the minute before.
    assert '<polyline points="0,500 1,500 2,0 3,1000 4,1000 5,1000' in page.text
    assert f"paused just now by bob: a migration {EVIL}" in queues or re.search("paused .* ago by bob", queues)
    workers = part(page, "workers")
    assert re.search(rf"{QUEUE} 1 / 3 {re.escape(EVIL)} acme {re.escape(EVIL)} for \d+s", workers), workers
    replays = part(page, "replays")
    assert replays.index("stopped") < replays.index("running") < replays.index(f"by {EVIL}")


def test_whoever_sees_one_tenant_sees_nothing_of_another(
    console: Console, failures: dict[str, UUID], client: redis.Redis
) -> None:
    put(client, "m1", "{}", queue="secret-queue")
    pause(client, "paused-queue", by="bob", reason="because")
    client.hset(f"{OWN}spool", "1", "{}")
    with operator_transaction() as s:
        assert runs.get(s, failures["running"]) is not None
    with console.logged_in("operator", B) as browser:
        page = browser.get("/")
        assert part(page, "verdict") == "Something needs attention 3 failures are open, in 1 group."
        assert part(page, "tiles") == (
            "3 open failures in 1 group 0 regressed nothing is back 5m oldest pending since it failed"
            " 0 replays running none stopped"
        )
        assert "kind_of_b" in part(page, "chart")
        for others in ("timeout", "title a", "title c", "secret", "paused-queue", "spool", "acme", str(TENANT)):
            assert others not in page.text, others
        assert "those who operate all of them see these" in page.text
        for name in ("queues", "workers"):
            assert f'data-live="{name}"' not in page.text
        assert browser.get("/tenants").status_code == 403


def test_the_chart_is_read_without_seeing_it(console: Console, failures: dict[str, UUID]) -> None:
    with console.logged_in("viewer") as browser:
        page = browser.get("/")
        assert '<svg class="plot" width="100%"' in page.text
        assert "5 failures. The most in one bar: 1, at" in page.text
        chart = part(page, "chart")
        assert "Failures per minute 1 h 3 h 12 h 24 h" in chart
        # In words, and as numbers that add up.
        assert "kind_of_b 3 expired 1 timeout 1" in chart
        columns = re.findall(r"\d\d:\d\d (\d+) (\d+) (\d+) (\d+)", chart)
        assert 20 <= len(columns) <= 24
        assert [sum(int(row[n]) for row in columns) for n in range(4)] == [3, 1, 1, 5]
        day = part(browser.get("/?hours=24"), "chart")
        assert "Failures per 10 minutes" in day
        assert "kind_of_b 3 timeout 2 expired 1" in day
        assert "kind_of_b 3 " in (hour := part(browser.get("/?hours=1"), "chart"))
        assert "expired" not in hour
        wrong = browser.get("/?hours=7")
        assert (wrong.status_code, "hours must be one of 1, 3, 12, 24, not &#39;7&#39;" in wrong.text) == (400, True)


def test_before_anything_happened_it_teaches_and_later_says_that_all_is_well(
    console: Console, client: redis.Redis
) -> None:
    with console.logged_in("viewer") as browser:
        page = browser.get("/")
        assert "Nothing has happened yet" in part(page, "verdict")
        assert "dramatiq worker.attribution" in part(page, "verdict")
        assert "No job failed in the last 3 hours." in page.text
        assert "No group of failures is open" in part(page, "groups")
        assert "No worker is live" in part(page, "workers")
        assert "Scheduler none runs, and none is needed" in part(page, "workers")
        assert "Nothing is being sent again" in part(page, "replays")
        # Also before it is shared with others no more.
        client.hset(f"{OWN}ended.{int(time.time() // 60)}", mapping={f"succeeded:{QUEUE}": 7})
        browser.app.state.shared.forget()  # type: ignore[attr-defined]
        verdict = part(browser.get("/"), "verdict")
        assert verdict == (
            "All is well No failure is open, no queue is stuck, and nothing is paused."
            " 7 messages ended well in the last hour."
        )
        # Nor is it when the clock's jobs are not sent any more.
        now = time.time()
        facts = {"name": f"clock/1 {EVIL}", "since": now - 60, "jobs": 2, "next": now + 30, "next_job": f"x.{EVIL}"}
        client.zadd(f"{OWN}schedulers", {"s": now * 1000})
        client.hset(f"{OWN}schedulers.facts", "s", json.dumps(facts))
        browser.app.state.shared.forget()  # type: ignore[attr-defined]
        page = browser.get("/")
        assert re.search(rf"Scheduler on time 2 jobs; next {re.escape(EVIL)} at 20", part(page, "workers"))
        client.zadd(f"{OWN}schedulers", {"s": now * 1000 - 3_600_000})
        browser.app.state.shared.forget()  # type: ignore[attr-defined]
        page = browser.get("/")
        assert "The scheduler is gone, which sent 2 jobs by the clock." in part(page, "verdict")
        assert "Scheduler gone 1h ago , and 2 jobs wait for it: worker scheduler starts one" in part(page, "workers")
        assert EVIL not in page.text
    with console.client() as browser:
        assert browser.get("/").headers["location"] == "/login"


def test_without_redis_the_rest_is_there(console: Console, failures: dict[str, UUID]) -> None:
    console.environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    with console.logged_in("operator") as browser:
        page = browser.get("/")
    assert page.status_code == 200
    assert "Redis does not answer. What queues hold and who works is not known." in part(page, "verdict")
    for name in ("queues", "workers"):
        assert "Not known: Redis does not answer." in part(page, name)
    assert "5 open failures" in part(page, "tiles")
    assert "? live workers not known ? queues paused not known" in part(page, "tiles")
    assert "title a" in part(page, "groups")
    assert "kind_of_b 3" in part(page, "chart")


def test_without_postgres_queues_are_there(
    console: Console, database: Database, failures: dict[str, UUID], client: redis.Redis
) -> None:
    put(client, "m1", "{}", queue="llm")
    with console.logged_in("operator") as browser:
        session.configure(f"postgres://nobody:secret-word@127.0.0.1:{free_port()}/none")
        page = browser.get("/")
        other, program = browser.get("/failures"), browser.get("/api/v1/failures")
    assert (page.status_code, other.status_code, program.status_code) == (200, 503, 503)
    # Nor where it was looked for, which is in the log.
    for said in (page.text, other.text, program.text):
        assert "secret-word" not in said
        assert "127.0.0.1" not in said
        assert "Postgres cannot be reached" in said
    verdict = part(page, "verdict")
    assert verdict.count("Postgres cannot be reached") == 1
    assert "Queue llm holds 1 message, and nobody consumes it." in verdict
    for name in ("chart", "groups", "replays"):
        assert "Not known: Postgres cannot be reached." in part(page, name)
    assert "? open failures not known" in part(page, "tiles")
    assert "llm 1 0 0" in part(page, "queues")


def test_many_who_look_ask_postgres_once(console: Console, failures: dict[str, UUID]) -> None:
    begun: list[Connection] = []
    console.token("operator", B)

    def count(connection: Connection) -> None:
        begun.append(connection)

    def looks(browser: TestClient, paths: list[str]) -> int:
        before = len(begun)
        with ThreadPoolExecutor(10) as pool:
            assert {page.status_code for page in pool.map(browser.get, paths)} == {200}
        return len(begun) - before

    event.listen(Engine, "begin", count)
    try:
        with console.logged_in("operator") as browser:
            # However slow this machine is.
            browser.app.state.shared = Shared(600)  # type: ignore[attr-defined]
            first = looks(browser, ["/"])
            assert 0 < first <= 4
            assert looks(browser, ["/"] * 30) == 0
            # Another chart is one question more, whoever asks first.
            assert looks(browser, ["/?hours=24"] * 10) == 1
            # What is somebody's own is asked for him.
            own = {"Authorization": f"Bearer {console.token('operator', B)}"}
            page = browser.get("/", headers=own)
            assert len(begun) > first + 1
            assert "3 open failures" in part(page, "tiles")
            assert "5 open failures" in part(browser.get("/"), "tiles")
            # Whoever does something sees what came of it.
            submit(browser, "/failures", f"/replays/{failures['running']}/pause")
            assert looks(browser, ["/"]) == first
    finally:
        event.remove(Engine, "begin", count)


def test_while_postgres_hangs_the_rest_is_there(
    console: Console, failures: dict[str, UUID], client: redis.Redis
) -> None:
    put(client, "m1", "{}", queue="llm")
    begun, go_on = threading.Event(), threading.Event()

    def never_answers() -> None:
        begun.set()
        assert go_on.wait(30)

    now = time.monotonic()
    with ThreadPoolExecutor(1) as pool, console.logged_in("operator") as browser:
        shared = Shared(600, clock=lambda: now)
        browser.app.state.shared = shared  # type: ignore[attr-defined]
        # As somebody who looked before, and whom it does not answer.
        asks = pool.submit(shared.get, (None, "failures"), never_answers)
        try:
            assert begun.wait(30)
            now += WAITS
            page = browser.get("/")
            assert page.status_code == 200
            for name in ("chart", "groups", "replays"):
                assert "Not known: it takes longer than usual" in part(page, name)
            assert "llm 1 0 0" in part(page, "queues")
        finally:
            go_on.set()
        asks.result(30)
