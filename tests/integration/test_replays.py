"""Failed jobs are sent again, once each, and their rows are closed by how that ends: on real Postgres and Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import pytest
import redis
from dramatiq import Broker, Worker
from psycopg.rows import dict_row

from db.failed import Filter
from db.replays import runs
from db.replays.runs import Replay, ReplaySettings
from db.session import operator_transaction
from tests.servers import Database
from tests.waiting import eventually
from worker.broker import make_broker
from worker.replay.making import make_runner
from worker.replay.runner import Runner
from worker.settings import Settings

A, B = UUID(int=0xA), UUID(int=0xB)


class Deployment:
    """Workers, and the actor that they run."""

    def __init__(self, broker: Broker, settings: Settings, database: Database) -> None:
        self.broker = broker
        self.settings = settings
        self.database = database
        #: What each execution is to do: raise, or nothing. By argument.
        self.fails: set[str] = set()
        self.ran: list[tuple[str, UUID | None, str]] = []
        self._lock = threading.Lock()
        self.actor = self.declare(self.run, "test.replayed")

    def declare(self, fn: Callable[..., Any], name: str, **options: Any) -> dramatiq.Actor[..., Any]:
        return dramatiq.actor(
            broker=self.broker, queue_name="attribution", actor_name=name, **{"max_retries": 0, **options}
        )(fn)

    def run(self, what: str, password: str = "") -> None:
        from dramatiq.middleware import CurrentMessage

        from db.tenancy import current_tenant

        message = CurrentMessage.get_current_message()
        assert message is not None
        with self._lock:
            self.ran.append((what, current_tenant(), message.message_id))
        if what in self.fails:
            raise ValueError(f"no {what}")

    @contextmanager
    def working(self, threads: int = 4) -> Iterator[Worker]:
        worker = Worker(self.broker, worker_timeout=100, worker_threads=threads, queues={"attribution"})
        worker.start()
        try:
            yield worker
        finally:
            worker.stop(timeout=10_000)

    def runner(self, name: str = "runner", stop: Callable[[], bool] = lambda: False, **options: Any) -> Runner:
        client: redis.Redis = self.broker.client  # type: ignore[attr-defined]
        paused = threading.Event()

        def wait(seconds: float) -> bool:
            paused.wait(min(seconds, 0.02))
            return stop()

        return make_runner(self.settings, self.broker, client, name, wait, knows_all=True, **options)

    def fail(self, *what: str, tenant: UUID = A) -> list[UUID]:
        """Let jobs fail, and return their rows' ids, in the order in which they failed."""
        before = {row["id"] for row in self.rows()}
        self.fails |= set(what)
        with self.working():
            for each in what:
                self.actor.send_with_options(
                    args=(each,), kwargs={"password": f"secret of {each}"}, tenant_id=str(tenant)
                )
            eventually(lambda: len(self.rows()) == len(before) + len(what), seconds=30)
        return [row["id"] for row in self.rows() if row["id"] not in before]

    def rows(self, query: str = "SELECT * FROM worker_failed_jobs ORDER BY failed_at, id") -> list[dict[str, Any]]:
        with psycopg.connect(self.database.admin_url, row_factory=dict_row) as connection:
            return connection.execute(query.encode()).fetchall()

    def replay(self, where: Filter, **settings: Any) -> UUID:
        with operator_transaction() as s:
            return runs.create(s, where, ReplaySettings(**settings), by="ann")

    def stands(self, replay_id: UUID) -> Replay:
        with operator_transaction() as s:
            found = runs.get(s, replay_id)
        assert found is not None
        return found


@pytest.fixture
def deployment(database: Database, redis_url: str) -> Iterator[Deployment]:
    settings = Settings.load(
        {"DATABASE_URL": database.worker_url, "REDIS_URL": redis_url, "MIN_BACKOFF": "1", "MAX_BACKOFF": "1"}
    )
    broker = make_broker(settings)
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'A'), (%s, 'B')", [A, B])
    yield Deployment(broker, settings, database)
    broker.close()


def test_a_replay_that_succeeds_closes_its_row(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    (before,) = deployment.rows()
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items, done.matched) == ("finished", {"succeeded": 1}, 1)
    (row,) = deployment.rows()
    assert row["status"] == "resolved"
    assert row["resolved_at"] is not None
    # The same message, for the same tenant.
    assert deployment.ran == [("one", A, before["task_id"])] * 2
    events = deployment.rows(
        "SELECT event, changed_by, reason FROM worker_failed_job_events WHERE failed_job_id IS NOT NULL ORDER BY id"
    )
    assert [event["event"] for event in events] == ["captured", "claimed", "replayed"]
    assert events[1]["changed_by"] == "ann"
    assert events[1]["reason"] == f"replay {replay_id}"


def test_a_replay_that_fails_returns_its_row(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"failed": 1})
    (row,) = deployment.rows()
    assert (row["id"], row["status"], row["retry_count"]) == (row_id, "pending", 1)
    assert row["last_retry_at"] is not None


def test_many_go_up_the_ramp_and_each_once(deployment: Deployment) -> None:
    rows = deployment.fail(*(str(n) for n in range(60)))
    deployment.fails.clear()
    deployment.ran.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)))
    under_way: list[int] = []
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id, lambda replay: under_way.append(replay.under_way))
    assert done is not None
    assert (done.state, done.items, done.matched) == ("finished", {"succeeded": 60}, 60)
    assert sorted(what for what, *_ in deployment.ran) == sorted(str(n) for n in range(60))
    assert {row["status"] for row in deployment.rows()} == {"resolved"}
    assert len(rows) == 60
    assert max(under_way) > 1


def test_it_stops_by_itself_when_too_many_fail_again(deployment: Deployment) -> None:
    deployment.fail(*(str(n) for n in range(30)))
    deployment.ran.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(1,))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert done.state == "stopped"
    assert done.why == "5 of the last 5 failed again"
    assert len(deployment.ran) == 5
    assert {row["status"] for row in deployment.rows()} == {"pending"}


def test_what_does_not_fit_todays_code_stays_as_it_is(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    with psycopg.connect(deployment.database.admin_url, autocommit=True) as connection:
        connection.execute("DELETE FROM tenants WHERE id = %s", [A])
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"refused": 1})
    (row,) = deployment.rows()
    assert row["status"] == "pending"
    (item,) = deployment.rows("SELECT * FROM worker_replay_items")
    assert item["why"] == f"there is no tenant {A} any more"


def test_a_runner_that_dies_before_it_sends_is_followed_by_one_that_does(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("worker.replay.runner.send", die)
        with deployment.working():
            deployment.runner("first").run_to_end(replay_id)
    assert deployment.rows()[0]["status"] == "in_progress"
    with deployment.working():
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert done.items == {"succeeded": 1}
    assert [what for what, *_ in deployment.ran] == ["one", "one"]


def test_a_runner_that_dies_after_it_sent_is_followed_by_one_that_sends_none(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def die(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr("db.replays.claims.sent", die)
            deployment.runner("first").run_to_end(replay_id)
        eventually(lambda: deployment.rows()[0]["status"] == "resolved")
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert done.items == {"succeeded": 1}
    assert [what for what, *_ in deployment.ran] == ["one", "one"]
