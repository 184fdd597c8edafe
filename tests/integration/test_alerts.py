"""Alerts: real failures in real Postgres and Redis, looked at and delivered to a server on loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import dramatiq
import psycopg
import pytest
import redis
from dramatiq import Worker
from dramatiq.errors import ConnectionClosed
from loguru import logger

from db import failed_jobs, session
from db.failed import Filter, abandon, resolve
from db.failures import Failure
from db.session import operator_transaction
from middleware.lossless_broker import LosslessBroker
from tests.cut_wire import CutWire
from tests.integration.command_line import CommandLine
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database, free_port
from tests.unit.test_alerts import verify
from tests.waiting import eventually
from tests.webhook import OTHER, SECRET, TOKEN, Receiver, receiver
from worker import housekeeping
from worker.alerts import looking, state
from worker.alerts.bundling import PERIOD
from worker.alerts.looking import Lookout
from worker.broker import make_broker
from worker.settings import Settings

OWN = "dramatiq:__dramaturg__.alerts"
SPOOL = "dramatiq:__dramaturg__.spool"


def fingerprint(group: int) -> str:
    return f"{group:032x}"


class World:
    """A deployment whose failures are looked at when the test says so."""

    def __init__(self, database: Database, redis_url: str, target: Receiver) -> None:
        self.database = database
        self.target = target
        self.settings = Settings.load(
            {
                "DATABASE_URL": database.worker_url,
                "OPERATOR_DATABASE_URL": database.operator_url,
                "REDIS_URL": redis_url,
                "ALERT_WEBHOOK_URL": target.url,
                "ALERT_WEBHOOK_SECRETS": f"{OTHER},{SECRET}",
                "ALERT_FAILURES": "20",
                "ALERT_ACTOR_FAILURES": "10",
                "ALERT_ENVIRONMENT": "shop",
                "CONSOLE_URL": "https://ops.example.com/console/",
            }
        )
        self.broker = make_broker(self.settings)
        assert isinstance(self.broker, LosslessBroker)
        self.client: redis.Redis = self.broker.client
        actor = housekeeping.deliver_alert
        self.deliver = dramatiq.actor(
            broker=self.broker,
            queue_name=actor.queue_name,
            actor_name=actor.actor_name,
            **{**actor.options, "min_backoff": 1, "max_backoff": 50},
        )(actor.fn)

    def lookout(self) -> Lookout:
        assert isinstance(self.broker, LosslessBroker)
        return Lookout(
            self.broker,
            self.settings,
            self.deliver,
            without=(housekeeping.deliver_alert.actor_name,),
            begin=operator_transaction,
        )

    def look(self) -> int:
        one = self.lookout()
        return one.look_at_spool() + one.look_at_failures()

    def fail(self, group: int = 0, **changes: Any) -> None:
        failed_jobs.record(self.failure(group, **changes))

    def failure(self, group: int = 0, **changes: Any) -> Failure:
        now = datetime.now(UTC)
        return a_failure(
            **{"fingerprint": fingerprint(group), "failed_at": now, "title": "no such *", "place": "shop:run"} | changes
        )

    def resolve(self, group: int = 0) -> None:
        resolve(operator_transaction, Filter(fingerprint=(fingerprint(group),)), by="ada", note="mended")

    @contextmanager
    def working(self) -> Iterator[None]:
        worker = Worker(self.broker, worker_timeout=20, worker_threads=2, queues={self.deliver.queue_name})
        worker.start()
        try:
            yield
        finally:
            worker.stop(timeout=10_000)

    def deliver_all(self) -> list[dict[str, Any]]:
        """Deliver what waits, and return all that was taken."""
        with self.target.up(), self.working():
            eventually(lambda: self.waiting() == 0)
        return self.target.taken

    def waiting(self) -> int:
        return int(self.broker.do_qsize(self.deliver.queue_name))  # type: ignore[attr-defined]

    def later(self) -> None:
        """Let what went out lately be long ago."""
        self.client.hset(OWN, state.SENT, f"[[{datetime.now(UTC).timestamp() - PERIOD}, true]]")


@pytest.fixture
def world(database: Database, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(database, redis_url, receiver())
    monkeypatch.setattr(housekeeping, "settings", world.settings)
    monkeypatch.setattr(dramatiq, "get_broker", lambda: world.broker)
    # The first look, at which what is there is no news.
    assert world.look() == 0
    yield world
    world.broker.close()


def kinds(alerts: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(alert["event"], alert.get("state")) for alert in alerts]


def test_each_kind_arrives_once_at_a_server_that_is_away_at_first(world: World) -> None:
    said: list[str] = []
    sink = logger.add(lambda line: said.append(str(line)), format="{message}\n{exception}")
    # One cause each, though it happens many times, to several, and is looked at often.
    for tenant in (A, B, None):
        world.fail(0, tenant_id=tenant, correlation_id=None)
    assert [world.look() for _ in range(3)] == [1, 0, 0]
    world.resolve()
    world.fail(0)
    assert [world.look() for _ in range(3)] == [1, 0, 0]
    world.fail(0)
    world.fail(1, error_type="worker_lost", exception_class="middleware.errors.WorkerLost")
    assert [world.look() for _ in range(3)] == [1, 0, 0]
    failed_jobs.record_all([world.failure(0) for _ in range(20)])
    assert [world.look() for _ in range(3)] == [1, 0, 0]
    world.client.hset(SPOOL, "a", "{}")
    world.client.set(f"{SPOOL}.since", int(datetime.now(UTC).timestamp() - looking.SPOOL_AFTER))
    assert [world.look() for _ in range(3)] == [1, 0, 0]

    tried = threading.Event()
    with world.working():
        # Nobody is there; then it answers 500, is busy, and takes them.
        eventually(lambda: world.client.exists(f"dramatiq:{world.deliver.queue_name}.DQ.msgs"))
        world.target.then(500, 503)
        world.target.then(429, Retry_After="0")
        world.target.during = tried.set
        with world.target.up():
            eventually(lambda: world.waiting() == 0, seconds=60)
    logger.remove(sink)
    assert tried.is_set()
    alerts = {alert["event"]: alert for alert in world.target.taken}
    assert sorted(kinds(world.target.taken), key=str) == [
        ("failure_rate", "begun"),
        ("new_group", None),
        ("poison_pill", None),
        ("regressed_group", None),
        ("spool_in_use", "begun"),
    ]
    assert [post.status for post in world.target.posts if post.status != 200] == [500, 503, 429]
    for post in world.target.posts:
        assert verify(SECRET, post.headers, post.body) == verify(OTHER, post.headers, post.body) == post.alert
        assert post.headers["webhook-id"] == post.alert["id"]
        assert (post.alert["version"], post.alert["environment"]) == (1, "shop")
    new = alerts["new_group"]
    assert new["title"] == "ValueError in test.job was never seen before: no such *"
    assert {name: new["group"][name] for name in ("actor", "tenants", "failures", "place", "error_type")} == {
        "actor": "test.job", "tenants": 2, "failures": 3, "place": "shop:run", "error_type": "validation_error",
    }  # fmt: skip
    assert new["link"] == f"https://ops.example.com/console/groups/{fingerprint(0)}"
    assert f"worker failed retry --fingerprint {fingerprint(0)[:8]} --dry-run" in new["commands"]
    assert new["text"].startswith("[shop] ValueError in test.job was never seen before: no such *\n3 failures for 2")
    # No tenant is named.
    assert str(A) not in str(world.target.taken)
    assert alerts["failure_rate"]["rate"]["actors"][0]["actor"] == "test.job"
    assert alerts["failure_rate"]["rate"]["failures"] > 20
    assert alerts["spool_in_use"]["spool"]["failures"] == 1
    # Nothing of the address is anywhere: no log, no row, nothing in Redis.
    assert TOKEN not in "".join(said)

    world.client.delete(SPOOL, f"{SPOOL}.since")
    world.later()
    world.settings = world.settings.model_copy(update={"alert_failures": 1_000})
    assert world.look() == 2
    overs = kinds(world.deliver_all())[5:]
    assert sorted(overs) == [("failure_rate", "over"), ("spool_in_use", "over")]


def test_the_commands_of_an_alert_are_ours(world: World, worker: CommandLine) -> None:
    world.fail(0)
    failed_jobs.record_all([world.failure(0, task_name="test.other") for _ in range(11)])
    assert world.look() == 2
    for alert in world.deliver_all():
        for command in alert["commands"]:
            words = command.split()[1:]
            if words[:2] in (["failed", "show"], ["failed", "groups"]):
                worker(*words)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_whoever_looks_may_die_at_any_step(world: World, monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    world.fail(0)
    world.fail(1)
    real = state.State._take

    def dies(self: state.State, *args: Any) -> bool:
        if not before:
            real(self, *args)
        raise ConnectionClosed("and the process, too")

    monkeypatch.setattr(state.State, "_take", dies)
    for _ in range(2):
        with suppress(ConnectionClosed):
            world.look()
    assert world.waiting() == (0 if before else 2)
    monkeypatch.undo()
    monkeypatch.setattr(housekeeping, "settings", world.settings)
    assert world.look() == (2 if before else 0)
    assert world.look() == 0
    assert kinds(world.deliver_all()) == [("new_group", None)] * 2


def test_of_many_who_look_one_tells(world: World) -> None:
    world.fail(0)
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda _: world.lookout().look_at_failures(), range(12))) == 1
    assert len(world.deliver_all()) == 1


def test_a_storm_of_a_thousand_groups_is_one_message(world: World) -> None:
    storm = [world.failure(n, task_name=f"test.job{n}", failed_at=datetime(2025, 1, 1, tzinfo=UTC)) for n in range(999)]
    failed_jobs.record_all(storm)
    assert [world.look() for _ in range(3)] == [1, 0, 0]
    # What comes in the same storm waits for the next message of it, and what is worst comes first there.
    failed_jobs.record_all(
        [world.failure(n, error_type="worker_lost" if n == 1_009 else "x") for n in range(1_001, 1_010)]
    )
    assert world.look() == 0
    world.later()
    assert [world.look() for _ in range(2)] == [1, 0]
    other, bundle = sorted(world.deliver_all(), key=lambda alert: sum(alert["counts"].values()))
    assert (bundle["event"], bundle["counts"], len(bundle["alerts"])) == ("bundle", {"new_group": 999}, 20)
    assert bundle["title"] == "999 alerts at once: 999 new_group"
    assert all(one["group"]["actor"].startswith("test.job") for one in bundle["alerts"])
    assert other["counts"] == {"poison_pill": 1, "new_group": 8}
    assert other["alerts"][0]["group"]["fingerprint"] == fingerprint(1_009)


def test_a_group_that_was_given_up_or_is_forgotten(world: World) -> None:
    world.fail(0)
    assert world.look() == 1
    abandon(operator_transaction, Filter(fingerprint=(fingerprint(0),)), by="ada", reason="never mind")
    assert world.look() == 0
    world.fail(0)
    # Nobody resolved it, so it is not back.
    assert world.look() == 0
    with psycopg.connect(world.database.admin_url, autocommit=True) as admin:
        admin.execute("DELETE FROM worker_failed_jobs")
        admin.execute("DELETE FROM worker_failed_job_groups")
    world.client.hset(OWN, state.TIDIED, "0")
    assert world.look() == 0
    # It is closed since the last look, and forgotten with the next.
    world.client.hset(OWN, state.TIDIED, "0")
    assert world.look() == 0
    assert world.client.hlen(f"{OWN}.closed") == world.client.hlen(f"{OWN}.open") == 0
    world.fail(0)
    assert world.look() == 1
    assert {alert["event"] for alert in world.deliver_all()} == {"new_group"}


def test_what_is_there_at_first_or_redis_has_lost_is_no_news(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "AT_ONCE", 3)
    for n in range(5):
        world.fail(n)
    world.resolve(4)
    world.client.flushall()
    assert [world.look() for _ in range(2)] == [0, 0]
    world.fail(4)
    world.fail(5)
    assert world.look() == 2
    assert sorted(kinds(world.deliver_all())) == [("new_group", None), ("regressed_group", None)]


def test_a_group_that_a_tenant_made_up_keeps_nobody_from_the_others(world: World) -> None:
    with psycopg.connect(world.database.worker_url, autocommit=True) as tenant:
        tenant.execute("SELECT set_config('app.current_tenant_id', %s, false)", [str(A)])
        tenant.execute(
            "INSERT INTO worker_failed_job_groups (tenant_id, fingerprint, task_name, error_type, exception_class,"
            " first_seen, last_seen, pending) VALUES (%s, '', E'x\n<!channel>', '', '', '0001-01-02', '9999-12-29', 1)",
            [A],
        )
    world.fail(0)
    assert [world.look() for _ in range(2)] == [2, 0]
    assert kinds(world.deliver_all()) == [("new_group", None)] * 2


def test_an_alert_that_is_refused_is_a_row_and_no_alert(world: World) -> None:
    world.fail(0)
    assert world.look() == 1
    world.target.then(400)
    world.deliver_all()
    assert [post.status for post in world.target.posts] == [400]
    with psycopg.connect(world.database.admin_url) as admin:
        rows = admin.execute("SELECT row_to_json(job)::text FROM worker_failed_jobs job ORDER BY failed_at").fetchall()
    assert len(rows) == 2
    assert "the receiver of alerts answered 400" in rows[1][0]
    assert TOKEN not in str(rows)
    assert SECRET not in str(rows)
    assert [world.look() for _ in range(2)] == [0, 0]


def test_while_postgres_is_away(world: World, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure goes to the spool by itself, and the alert arrives without Postgres; so does that it is over."""
    monkeypatch.setattr(looking, "SPOOL_AFTER", 0.0)
    with CutWire(world.database.worker_url) as wire, CutWire(world.database.operator_url) as operator:
        session.configure(wire.url, operator_database_url=operator.url, pool_timeout=1, connect_timeout=1)
        wire.down()
        operator.down()
        fails: Callable[..., Any] = dramatiq.actor(
            broker=world.broker, queue_name=world.deliver.queue_name, actor_name="test.fails", max_retries=0
        )(_fail)
        with world.target.up(), world.working():
            fails.send_with_options(tenant_id=str(A))  # type: ignore[attr-defined]
            eventually(lambda: world.client.exists(f"{SPOOL}.since"))
            # As the scheduler sends it: what Postgres would tell is left for later, and is no failure.
            housekeeping.look_for_alerts.fn()
            eventually(lambda: kinds(world.target.taken) == [("spool_in_use", "begun")])
            housekeeping.send_heartbeat.fn()
            housekeeping.look_for_alerts.fn()
            wire.up()
            operator.up()
            eventually(lambda: not world.client.exists(SPOOL), seconds=60)
            housekeeping.look_for_alerts.fn()
            eventually(lambda: len(world.target.taken) == 3)
    begun, *rest = world.target.taken
    assert begun["title"] == "Postgres is away for workers, and Redis keeps 1 failure"
    assert sorted(kinds(rest), key=str) == [("new_group", None), ("spool_in_use", "over")]
    with psycopg.connect(world.database.admin_url) as admin:
        assert admin.execute("SELECT task_name FROM worker_failed_jobs").fetchall() == [("test.fails",)]


def _fail() -> None:
    raise ValueError("while Postgres is away")


def test_a_heartbeat(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = world.settings.model_copy(update={"alert_heartbeat_url": world.target.url})
    monkeypatch.setattr(housekeeping, "settings", settings)
    with world.target.up():
        housekeeping.send_heartbeat.fn()
        assert world.target.asked == [f"/services/{TOKEN}"]
        # What is asked for much later says nothing any more.
        monkeypatch.setattr(housekeeping, "scheduled_for", lambda: datetime.now(UTC) - timedelta(minutes=3))
        housekeeping.send_heartbeat.fn()
        monkeypatch.undo()
        monkeypatch.setattr(housekeeping, "settings", settings)
        url = f"postgres://nobody@127.0.0.1:{free_port()}/none"
        session.configure(url, operator_database_url=url)
        housekeeping.send_heartbeat.fn()
    assert len(world.target.asked) == 1
    # Nobody there.
    housekeeping.send_heartbeat.fn()


def test_a_test_alert(world: World, worker: CommandLine) -> None:
    said = worker("alerts", "test", status=2)
    assert "ALERT_WEBHOOK_URL is not set" in said.output
    environment: dict[str, Any] = {"ALERT_WEBHOOK_URL": world.target.url}
    away = worker("alerts", "test", status=2, **environment)
    assert "the receiver of alerts cannot be reached: NewConnectionError" in away.output
    with world.target.up():
        done = worker("alerts", "test", ALERT_WEBHOOK_SECRETS=SECRET, **environment)
        world.target.then(403)
        refused = worker("alerts", "test", status=2, **environment)
    first, second = world.target.posts
    assert verify(SECRET, first.headers, first.body)["event"] == "test"
    assert f"alert {first.alert['id']}, signed: the receiver of alerts answered 200" in done.output
    assert "webhook-signature" not in second.headers
    assert "the receiver of alerts answered 403: 403 at /[redacted]/[redacted]" in refused.output
    assert TOKEN not in away.output + done.output + refused.output
    assert worker("alerts", "secret").output.startswith("whsec_")
