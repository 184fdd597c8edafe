"""``recompute_day`` on real servers: what it sends, each once, and how its run comes to an end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import psycopg
import pytest
from dramatiq import Worker
from psycopg.rows import dict_row
from sqlalchemy import text
from sqlalchemy.exc import InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.errors import ConfigurationError
from db.failed import Filter
from db.replays import runs as replays
from db.replays.runs import ReplaySettings
from db.session import operator_transaction
from db.tenancy import tenant_context
from middleware.lossless_broker import LosslessBroker
from tests.integration.command_line import CommandLine
from tests.integration.test_recompute import MOST, Sale, Touch, given_events
from tests.servers import Database
from tests.waiting import eventually
from worker import attribution
from worker.attribution import follow_run, recompute_day, recompute_window
from worker.broker import make_broker
from worker.daily import fan_out, following, runs
from worker.recompute import Model
from worker.replay.making import make_runner
from worker.settings import Settings
from worker.testing import TestBroker, stub_broker, stub_worker

__all__ = ["stub_broker", "stub_worker"]

DAY = "2025-01-01"
RUNS = "SELECT * FROM attribution_runs ORDER BY started_at"
CHILDREN = "SELECT * FROM attribution_run_children ORDER BY tenant_id, model"
JOBS = "SELECT * FROM attribution_recompute_jobs ORDER BY tenant_id, model"
FAILED = "SELECT * FROM worker_failed_jobs ORDER BY failed_at"

GOOD = (Touch("t", 0.1), Sale("s", 500, 0.5))
#: More cents than a bigint holds, which is a failure at the first try.
TOO_MUCH = (Sale("s", MOST, 0.5), Sale("more", MOST, 0.5))


class Daily:
    """Workers of production's broker, which knows the actors under test."""

    def __init__(self, database: Database, redis_url: str) -> None:
        self.settings = Settings.load({"DATABASE_URL": database.worker_url, "REDIS_URL": redis_url})
        self.database = database
        broker = make_broker(self.settings)
        assert isinstance(broker, LosslessBroker)
        self.broker = broker
        for actor in (recompute_day, recompute_window, follow_run):
            broker.declare_actor(actor)

    @contextmanager
    def working(self) -> Iterator[None]:
        worker = Worker(self.broker, worker_timeout=20, worker_threads=4, queues={"attribution"})
        worker.start()
        try:
            yield
        finally:
            worker.stop(timeout=10_000)

    def send(self, **arguments: Any) -> dramatiq.Message[Any]:
        return recompute_day.send_with_options(kwargs={"day": DAY, **arguments})

    def rows(self, query: str) -> list[dict[str, Any]]:
        with psycopg.connect(self.database.admin_url, row_factory=dict_row) as admin:
            return admin.execute(query.encode()).fetchall()

    def sql(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.database.admin_url, autocommit=True) as admin:
            admin.execute(statement.encode(), values)

    def finished(self) -> bool:
        found = self.rows(RUNS)
        return bool(found) and all(run["finished_at"] for run in found)

    def waiting(self) -> int:
        return int(self.broker.do_qsize("attribution"))


@pytest.fixture
def daily(database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daily]:
    one = Daily(database, redis_url)
    for actor in (recompute_day, recompute_window, follow_run):
        monkeypatch.setattr(actor, "broker", one.broker)
    monkeypatch.setattr(following, "LOOK_SOON", 50)
    monkeypatch.setattr(following, "LOOK_LATE", 200)
    try:
        yield one
    finally:
        one.broker.close()
        one.broker.client.close()


def test_a_run_of_several_tenants_some_of_which_fail(daily: Daily) -> None:
    good = sorted(given_events(*GOOD) for _ in range(3))
    bad = given_events(*TOO_MUCH)
    # Neither has events in that day.
    given_events(Touch("t", 1), Sale("s", 500, 1))
    given_events()

    with daily.working():
        sent = daily.send(models=["linear", "last_touch"])
        eventually(daily.finished, seconds=60)
    (run,) = daily.rows(RUNS)
    assert (run["day"], run["expected"], run["succeeded"], run["failed"]) == (date(2025, 1, 1), 8, 6, 2)
    assert run["summary"] == "2025-01-01: 6 of 8 recomputes succeeded, 2 failed"
    assert run["correlation_id"] == UUID(sent.message_id)
    jobs = daily.rows(JOBS)
    assert [(job["tenant_id"], job["model"], job["run_count"]) for job in jobs] == [
        (tenant, model, 1) for tenant in good for model in ("last_touch", "linear")
    ]
    assert {(str(job["window_start"].date()), str(job["window_end"].date())) for job in jobs} == {(DAY, "2025-01-02")}
    failed = daily.rows(FAILED)
    assert [(job["tenant_id"], job["error_type"]) for job in failed] == [(bad, "validation_error")] * 2
    # One correlation id for all that belongs together.
    assert {job["correlation_id"] for job in (*jobs, *failed)} == {run["correlation_id"]}
    assert daily.rows("SELECT DISTINCT tenant_id, channel FROM attribution_channel_days ORDER BY 1") == [
        {"tenant_id": tenant, "channel": "ads"} for tenant in good
    ]
    assert daily.waiting() == 0

    command = CommandLine(daily.database)
    (told,) = command.json("attribution", "runs")
    assert (told["day"], told["expected"], told["sent"], told["succeeded"], told["failed"], told["missing"]) == (
        *(DAY, 8, 8, 6, 2, 0),
    )
    assert told["recovered"] == 0
    # What is mended and replayed is told, and the run stays what it was when it finished.
    daily.sql("DELETE FROM attribution_events WHERE event_id = 'more'")
    assert replayed(daily) == 2
    (told,) = command.json("attribution", "runs")
    assert (told["succeeded"], told["failed"], told["recovered"], told["summary"]) == (6, 2, 2, run["summary"])
    assert daily.rows(RUNS) == [run]
    shown = command("attribution", "runs").stdout
    assert f"--correlation-id {run['correlation_id']}" in shown
    assert "finished" in shown
    # A run of all is no tenant's to see.
    assert json.loads(command("attribution", "runs", "--json", "--as-tenant", good[0]).stdout) == []


def replayed(daily: Daily) -> int:
    """Replay all that failed, wait until that has resolved them, and return how many they were."""
    ids = tuple(job["id"] for job in daily.rows(FAILED))
    with operator_transaction() as session:
        replay_id = replays.create(session, Filter(ids=ids), ReplaySettings(), by="ann")
    runner = make_runner(daily.settings, daily.broker, daily.broker.client, "r", lambda _: False, knows_all=True)
    with daily.working():
        ended = runner.run_to_end(replay_id)
    assert ended is not None
    assert ended.state == "finished"
    assert {job["status"] for job in daily.rows(FAILED)} == {"resolved"}
    return len(ids)


class Died(BaseException):
    """Stands for the end of the process at that point."""


def dying(fn: Callable[..., Any], times: int = 1) -> Callable[..., Any]:
    """Die instead of calling ``fn``, so many times."""
    left = [times]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise Died
        return fn(*args, **kwargs)

    return call


def test_whoever_dies_on_the_way_each_is_sent_once(daily: Daily, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = sorted(given_events(*GOOD) for _ in range(7))
    monkeypatch.setattr(runs, "AT_ONCE", 3)
    run_id = uuid4()

    def go() -> int:
        with operator_transaction() as session:
            run = runs.begin(session, run_id, date(2025, 1, 1), None, run_id)
        fan_out.send_follower(run, follow_run)
        return fan_out.fan_out(run, (Model.LINEAR,), recompute_window)

    # While it plans, before it sends, and between what Redis has and what Postgres knows of, twice.
    for owner, name in ((runs, "planned"), (fan_out, "send"), (runs, "sent"), (runs, "sent")):
        with monkeypatch.context() as patch, pytest.raises(Died):
            patch.setattr(owner, name, dying(getattr(owner, name)))
            go()
        # What was sent runs meanwhile.
        with daily.working():
            eventually(
                lambda: len(daily.rows(JOBS)) == sum(c["succeeded_at"] is not None for c in daily.rows(CHILDREN))
            )
            eventually(lambda: not daily.broker.client.llen("dramatiq:attribution"))
    assert go() == 7
    assert go() == 7
    with daily.working():
        eventually(daily.finished, seconds=60)
        eventually(lambda: daily.waiting() == 0)
    assert [(job["tenant_id"], job["run_count"]) for job in daily.rows(JOBS)] == [(tenant, 1) for tenant in tenants]
    assert daily.rows(RUNS)[0]["summary"] == "2025-01-01: 7 of 7 recomputes succeeded"
    # And once it is finished, nothing opens it again.
    before = daily.rows(RUNS)
    assert go() == 7
    with pytest.raises(ValueError, match="there is no run"):
        following.follow(uuid4(), recompute_window.actor_name)
    following.follow(run_id, recompute_window.actor_name)
    assert daily.rows(RUNS) == before
    assert daily.waiting() == 0


def test_a_run_with_what_never_ends_waits_for_a_day(daily: Daily, monkeypatch: pytest.MonkeyPatch) -> None:
    tenants = sorted(given_events(*GOOD) for _ in range(2))
    run_id = uuid4()
    with operator_transaction() as session:
        run = runs.begin(session, run_id, date(2025, 1, 1), None, run_id)
    fan_out.fan_out(run, (Model.LINEAR,), recompute_window)
    # An operator empties the queue of one.
    (lost,) = [c for c in daily.rows(CHILDREN) if c["tenant_id"] == tenants[1]]
    daily.broker.client.hdel("dramatiq:attribution.msgs", str(lost["id"]))
    daily.broker.client.lrem("dramatiq:attribution", 0, str(lost["id"]))
    with daily.working():
        eventually(lambda: len(daily.rows(JOBS)) == 1, seconds=30)
    with pytest.raises(following.NotYet, match="goes on") as caught:
        following.follow(run_id, recompute_window.actor_name)
    assert caught.value.delay == following.LOOK_SOON

    # Postgres is away, was made read-only by a failover, or all connections are taken.
    for error in (OperationalError, InternalError, PoolTimeout):

        def away(*_: Any, error: type[SQLAlchemyError] = error) -> None:
            raise error("away") if error is PoolTimeout else error("SELECT", {}, Exception("away"))

        with monkeypatch.context() as patch:
            patch.setattr(runs, "get", away)
            with pytest.raises(following.NotYet, match="cannot be looked at"):
                following.follow(run_id, recompute_window.actor_name)
    daily.sql("UPDATE attribution_runs SET started_at = started_at - interval '1 day'")
    following.follow(run_id, recompute_window.actor_name)
    (done,) = daily.rows(RUNS)
    assert done["summary"] == "2025-01-01: 1 of 2 recomputes succeeded, 1 missing, 0 of them not sent"
    assert done["finished_at"] is not None
    # Where Redis has lost what follows a run, the next one finishes it.
    left = uuid4()
    with operator_transaction() as session:
        runs.begin(session, left, date(2024, 12, 31), None, left)
    daily.sql("UPDATE attribution_runs SET started_at = started_at - interval '1 day' WHERE id = %s", left)
    following.follow_what_was_left(recompute_window.actor_name)
    assert {run["id"]: run["summary"] for run in daily.rows(RUNS)} == {
        run_id: done["summary"],
        left: "2024-12-31: it is not known for whom there was something to recompute; 0 succeeded",
    }
    # Nobody keeps for ever who its children were; it stays itself.
    with operator_transaction() as session:
        assert runs.forget(session) == 0
    daily.sql("UPDATE attribution_runs SET finished_at = finished_at - interval '31 days'")
    attribution._forget_old_children()
    assert daily.rows(CHILDREN) == []
    with operator_transaction() as session:
        told = runs.get(session, run_id)
    assert told is not None
    assert (told.expected, told.succeeded, told.missing, told.recovered) == (2, 1, 1, 0)


def test_thousands_of_tenants_are_planned_by_the_index(daily: Daily) -> None:
    daily.sql(
        """
        INSERT INTO tenants (id, name)
            SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'n' FROM generate_series(1, 3000) n;
        """
    )
    # One in three has events in the day, and each many others.
    daily.sql(
        """
        INSERT INTO attribution_events
            SELECT id, 'e' || n, 'touch', 'v', 'ads', NULL,
                CASE WHEN n = 1 AND mod(right(id::text, 4)::int, 3) = 0 THEN timestamptz '2025-01-01 12:00Z'
                    ELSE timestamptz '2024-01-01Z' + n * interval '1 day' END
            FROM tenants, generate_series(1, 20) n
        """
    )
    daily.sql("ANALYZE attribution_events")
    run_id = uuid4()
    with operator_transaction() as session:
        run = runs.begin(session, run_id, date(2025, 1, 1), None, run_id)
    assert fan_out._plan(run, (Model.LINEAR,)) == 1000
    with operator_transaction() as session:
        plan = session.execute(
            text("EXPLAIN (FORMAT JSON) " + runs._TENANTS.text),
            {"begin_with": UUID(int=0), "start": date(2025, 1, 1), "end": date(2025, 1, 2), "limit": 200},
        ).scalar_one()
    assert "Seq Scan" not in str(plan)


def test_sent_for_a_tenant_it_is_of_that_one(daily: Daily) -> None:
    tenants = [given_events(*GOOD) for _ in range(2)]
    empty = given_events()
    with daily.working():
        for tenant in (tenants[0], empty):
            recompute_day.send_with_options(kwargs={"day": DAY}, tenant_id=tenant)
        eventually(lambda: len(daily.rows(RUNS)) == 2 and daily.finished(), seconds=60)
    assert {(run["tenant_id"], run["summary"]) for run in daily.rows(RUNS)} == {
        (tenants[0], "2025-01-01: 1 of 1 recompute succeeded"),
        (empty, "2025-01-01: 0 of 0 recomputes succeeded"),
    }
    assert [job["tenant_id"] for job in daily.rows(JOBS)] == [tenants[0]]
    command = CommandLine(daily.database)
    (told,) = command.json("attribution", "runs", "--as-tenant", tenants[0])
    assert told["tenant_id"] == str(tenants[0])


def test_the_day_before_the_tick(
    database: Database, stub_broker: TestBroker, stub_worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late it runs; and the run keeps its day, whenever its message comes again."""
    monkeypatch.setattr(following, "LOOK_SOON", 10)
    tenant = given_events(*GOOD)
    message = recompute_day.message().copy(options={"scheduled_for": "2025-01-02T02:10:00+00:00"})
    for _ in range(2):
        stub_broker.enqueue(message)
        stub_broker.join("attribution", timeout=30_000)
        stub_worker.join()
    assert stub_broker.failed_jobs == []
    with operator_transaction() as session:
        (run,) = runs.find(session, limit=5)
    assert (run.day, run.expected, run.succeeded) == (date(2025, 1, 1), 1, 1)
    assert run.finished_at is not None
    with tenant_context(tenant), operator_transaction() as session:
        again = runs.begin(session, run.id, run.day + timedelta(days=1), None, uuid4())
    assert again == run


def test_tables_of_another_shape_are_named_and_nothing_is_begun(database: Database) -> None:
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE attribution_runs RENAME summary TO words")
    with pytest.raises(ConfigurationError, match="table attribution_runs exists in another shape"):
        recompute_day(day=DAY)
    with pytest.raises(ConfigurationError, match="table attribution_runs exists in another shape"):
        follow_run(run_id=str(uuid4()))
    with psycopg.connect(database.admin_url) as admin:
        assert admin.execute("SELECT count(*) FROM attribution_runs").fetchone() == (0,)
