"""Workers in this process, an actor that fails when it is told to, and runners of replays: on real servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
import redis
from dramatiq import Broker, Worker
from dramatiq.middleware import CurrentMessage
from psycopg.rows import dict_row

from db.failed import Filter
from db.replays import runs
from db.replays.runs import Replay, ReplaySettings
from db.session import operator_transaction
from db.tenancy import current_tenant
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
        message = CurrentMessage.get_current_message()
        assert message is not None
        with self._lock:
            self.ran.append((what, current_tenant(), message.message_id))
        if what in self.fails:
            raise ValueError(f"no {what}")

    @contextmanager
    def working(self, threads: int = 4) -> Iterator[Worker]:
        worker = Worker(self.broker, worker_timeout=20, worker_threads=threads, queues={"attribution"})
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

    def items(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM worker_replay_items ORDER BY claimed_at, id")

    def status(self, row_id: UUID) -> str:
        return next(str(row["status"]) for row in self.rows() if row["id"] == row_id)

    def sql(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.database.admin_url, autocommit=True) as connection:
            connection.execute(statement.encode(), values)

    def assert_counts_are_right(self) -> None:
        """Each group counts its rows."""
        kept = self.rows(
            "SELECT pending, in_progress, resolved, abandoned FROM worker_failed_job_groups"
            " ORDER BY tenant_id, fingerprint"
        )
        counted = self.rows(
            """
            SELECT
                count(job.id) FILTER (WHERE job.status = 'pending') AS pending,
                count(job.id) FILTER (WHERE job.status = 'in_progress') AS in_progress,
                count(job.id) FILTER (WHERE job.status = 'resolved') AS resolved,
                count(job.id) FILTER (WHERE job.status = 'abandoned') AS abandoned
            FROM worker_failed_job_groups own
            LEFT JOIN worker_failed_job_details details ON details.fingerprint = own.fingerprint
                AND details.tenant_id IS NOT DISTINCT FROM own.tenant_id
            LEFT JOIN worker_failed_jobs job ON job.id = details.failed_job_id
            GROUP BY own.id ORDER BY own.tenant_id, own.fingerprint
            """
        )
        assert kept == counted


@contextmanager
def deployed(database: Database, redis_url: str) -> Iterator[Deployment]:
    settings = Settings.load(
        {"DATABASE_URL": database.worker_url, "REDIS_URL": redis_url, "MIN_BACKOFF": "1", "MAX_BACKOFF": "1"}
    )
    broker = make_broker(settings)
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES (%s, 'A'), (%s, 'B')", [A, B])
    try:
        yield Deployment(broker, settings, database)
    finally:
        broker.close()
