"""Whether the console, what it needs, and the workers are well: for anybody to ask, and without secrets."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg
import redis
from dramatiq import Message, Worker
from fastapi.testclient import TestClient

from tests.integration.console import Console
from tests.integration.replaying import A, Deployment
from tests.servers import Database
from tests.waiting import eventually
from worker import probe
from worker.broker import make_broker
from worker.queue_admin import pause, resume
from worker.settings import Settings

#: What is there of queues and probes; processes come and go, and what of them says when they were last heard of stays.
OF_MESSAGES = ("dramatiq:attribution*", "dramatiq:__dramaturg__.probe.*", "dramatiq:__dramaturg__.started.*")


def left(redis_url: str) -> set[bytes]:
    """Return the keys that a probe could have left."""
    with redis.Redis.from_url(redis_url) as client:
        return {key for pattern in OF_MESSAGES for key in client.keys(pattern)}


def ask(client: TestClient, queue: str = "attribution", timeout: float = 5) -> tuple[int, dict[str, Any]]:
    answer = client.get("/health/worker", params={"queue": queue, "timeout": timeout})
    return answer.status_code, answer.json()


def test_it_lives_whatever_else_does_not(console: Console) -> None:
    console.token("viewer")
    console.environment |= {
        "DATABASE_URL": "postgresql://somebody:secret@127.0.0.1:1/gone",
        "REDIS_URL": "redis://:secret@127.0.0.1:1/0",
        "CONSOLE_HTTPS": "yes",
    }
    # By plain http, as whoever watches from beside it asks.
    with console.client() as client:
        answer = client.get("/health/live")
        assert (answer.status_code, answer.json()) == (200, {"status": "live"})
        assert client.head("/health/live").status_code == 200
        ready, worker = client.get("/health/ready"), client.get("/health/worker")
    assert ready.status_code == worker.status_code == 503
    assert ready.json()["parts"]["redis"] == {"ok": False, "detail": "does not answer: ConnectionError"}
    assert worker.json()["detail"] == "Redis does not answer"
    assert "secret" not in ready.text + worker.text


def test_it_is_ready_when_postgres_redis_and_the_tables_are(console: Console, database: Database) -> None:
    console.token("viewer")
    with console.client() as client:
        answer = client.get("/health/ready")
        assert answer.status_code == 200, answer.text
        said = answer.json()
        assert said["status"] == "ready"
        assert {name: part["ok"] for name, part in said["parts"].items()} == {
            "postgres": True,
            "migrations": True,
            "redis": True,
        }
        with psycopg.connect(database.admin_url) as connection:
            connection.execute("UPDATE dramaturg_version SET version_num = '0001'")
        # Nobody asks again so soon.
        assert client.get("/health/ready").json() == said
    with console.client() as client:
        behind = client.get("/health/ready")
    assert (behind.status_code, behind.json()["status"]) == (503, "not ready")
    assert "behind" in behind.json()["parts"]["migrations"]["detail"]


def test_a_probe_goes_through_a_queue_and_back_and_leaves_nothing(
    console: Console, deployment: Deployment, redis_url: str
) -> None:
    console.token("viewer")
    with deployment.working(), console.client() as client:
        before = left(redis_url)
        at_once = threading.Barrier(6)

        def ask_at_once(_: int) -> tuple[int, dict[str, Any]]:
            at_once.wait(10)
            return ask(client)

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask_at_once, range(6)))
        status, said = answers[0]
        assert (status, said["status"], said["queue"]) == (200, "answered", "attribution")
        assert said["seconds"] < 5
        # One probe, to the thousandth of a second; and for whoever asks next, and would wait for less.
        assert answers == [answers[0]] * 6
        assert ask(client)[1] == said
        eventually(lambda: left(redis_url) == before)
        assert deployment.rows() == []
        # Of no worker, of no queue, and not in no time.
        assert ask(client, "llm") == (
            503,
            {
                "status": "unconsumed",
                "queue": "llm",
                "detail": "no worker that lives consumes the queue",
                "seconds": None,
            },
        )
        unknown = client.get("/health/worker?queue=nothing")
        assert unknown.status_code == 404
        assert unknown.json()["detail"].startswith("there is no queue 'nothing'; there is attribution, housekeeping")
        for timeout in ("0", "21", "nan", "x"):
            wrong = client.get(f"/health/worker?timeout={timeout}")
            assert (wrong.status_code, "timeout" in wrong.json()["detail"]) == (422, True), wrong.text
    assert left(redis_url) == before
    # Of what ended here it is none.
    with redis.Redis.from_url(redis_url) as server:
        assert not server.keys("dramatiq:__dramaturg__.ended.*")
    assert not deployment.broker.tally.take()  # type: ignore[attr-defined]


def test_a_paused_queue_is_said_to_be(console: Console, deployment: Deployment, redis_url: str) -> None:
    console.token("viewer")
    client_ = redis.Redis.from_url(redis_url)
    with deployment.working():
        pause(client_, "attribution", by="ann")
        before = left(redis_url)
        with console.client() as client:
            assert ask(client)[0] == 200
            assert ask(client)[1]["status"] == "paused"
        assert left(redis_url) == before
        resume(client_, "attribution", by="ann")
        with console.client() as client:
            assert ask(client, timeout=20)[1]["status"] == "answered"
    client_.close()


def test_a_probe_that_is_late_becomes_no_failed_job(console: Console, deployment: Deployment, redis_url: str) -> None:
    console.token("viewer")
    busy, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        go_on.wait(60)

    actor = deployment.declare(hold, "test.hold")
    with deployment.working(threads=1), console.client() as client:
        actor.send_with_options(tenant_id=str(A))
        assert busy.wait(20)
        # Fetched ahead, for the one thread there is; and then one more than is fetched ahead.
        for _ in range(3):
            deployment.actor.send_with_options(args=("x",), tenant_id=str(A))
        status, said = ask(client, timeout=0.3)
        assert (status, said["status"]) == (503, "late")
        assert said["detail"] == "a message did not come back within 0.3 seconds"
        with redis.Redis.from_url(redis_url) as server:
            # It is taken off, and is not in the way of what is to run.
            eventually(lambda: server.hlen("dramatiq:attribution.msgs") == 4)
            eventually(lambda: not server.keys("dramatiq:__dramaturg__.probe.*"))
        go_on.set()
        # Another waits longer, and gets its own.
        assert ask(client, timeout=20)[1]["status"] == "answered"
        eventually(lambda: len(deployment.ran) == 3)
        eventually(lambda: not left(redis_url))
    assert deployment.rows() == []


def test_a_probe_that_nobody_waits_for_any_more_is_never_too_old(database: Database, redis_url: str) -> None:
    """Its console ended, and its queue has a worker again after an hour, where MAX_AGE is less."""
    settings = Settings.load({"DATABASE_URL": database.worker_url, "REDIS_URL": redis_url, "MAX_AGE": "1000"})
    broker = make_broker(settings)
    sent = str(uuid4())
    broker.enqueue(
        Message(
            queue_name="attribution",
            actor_name=probe.ACTOR,
            args=(sent,),
            kwargs={},
            options={},
            message_id=sent,
            message_timestamp=1,
        )
    )
    worker = Worker(broker, worker_timeout=100, worker_threads=1, queues={"attribution"})
    worker.start()
    try:
        eventually(lambda: not left(redis_url))
    finally:
        worker.stop()
        broker.close()
    with psycopg.connect(database.admin_url) as connection:
        assert connection.execute("SELECT count(*) FROM worker_failed_jobs").fetchone() == (0,)
