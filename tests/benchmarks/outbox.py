"""What it costs to send with the transaction: the time from the commit to the job's start, transactions a second, a
thousand messages in one, and how fast what waited through an outage goes to Redis.

Beside them, what telling others of each commit by NOTIFY would cost. Postgres syncs to disk.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
from dramatiq import Message, Worker
from loguru import logger
from sqlalchemy import text

from tests.benchmarks.report import interleave, show
from tests.servers import Database, running_cluster, running_redis

SECONDS = 3.0
ROUNDS = 3
IDLE_SENDS = 60
MANY = 1_000
WAITED = 50_000
TENANT = UUID(int=0xA)

INSERT = text("INSERT INTO orders (tenant_id) VALUES (CAST(current_setting('app.current_tenant_id') AS uuid))")
NOTIFY = text("SELECT pg_notify('outbox', '')")


def throughput(run: Callable[[], object], threads: int) -> float:
    """Return how often a second ``run`` is done by so many threads."""
    end = time.perf_counter() + SECONDS
    counts = [0] * threads

    def work(n: int) -> None:
        from db.tenancy import tenant_context

        with tenant_context(TENANT):
            while time.perf_counter() < end:
                run()
                counts[n] += 1

    workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / SECONDS


def latency(actor: dramatiq.Actor[..., Any], started: list[float], event: threading.Event) -> None:
    """Print p50 and p95 of milliseconds from the commit, and from ``send()`` outside of one, to the job's start."""
    from db.session import transaction
    from db.tenancy import tenant_context
    from middleware.outbox import Outbox

    committed = []
    deliver = Outbox.committed

    def noted(self: Outbox, things: Any) -> None:
        committed.append(time.perf_counter())
        deliver(self, things)

    Outbox.committed = noted  # type: ignore[method-assign]
    found: dict[str, list[float]] = {"commit to start": [], "send() to start": []}
    for n in range(2 * IDLE_SENDS):
        time.sleep(random.uniform(0.05, 0.4))  # noqa: S311
        event.clear()
        with tenant_context(TENANT):
            if n % 2:
                with transaction() as session:
                    session.execute(INSERT)
                    actor.send()
                event.wait(10)
                found["commit to start"].append((started[-1] - committed[-1]) * 1_000)
            else:
                sent = time.perf_counter()
                actor.send()
                event.wait(10)
                found["send() to start"].append((started[-1] - sent) * 1_000)
    Outbox.committed = deliver  # type: ignore[method-assign]
    for name, values in found.items():
        print(f"{name}: p50 {median(values):.1f} ms, p95 {quantiles(values, n=20)[-1]:.1f} ms")


def after_an_outage(database: Database, actor_name: str) -> float:
    """Return how many messages a second go to Redis that waited."""
    from worker.broker import broker

    with (
        psycopg.connect(database.admin_url) as admin,
        admin.cursor() as cursor,
        cursor.copy("COPY worker_outbox (tenant_id, queue, redis_id, message_id, actor, message) FROM STDIN") as copy,
    ):
        for n in range(WAITED):
            redis_id = str(UUID(int=random.getrandbits(128)))
            options = {"redis_message_id": redis_id, "tenant_id": str(TENANT)}
            message: Message[Any] = Message("maintenance", actor_name, (n,), {}, options)
            copy.write_row(
                (
                    TENANT,
                    "maintenance",
                    redis_id,
                    message.message_id,
                    actor_name,
                    message.encode().hex().join(["\\x", ""]),
                )
            )
    began = time.perf_counter()
    broker.outbox.relay.relay_all(grace=0)  # type: ignore[attr-defined]
    return WAITED / (time.perf_counter() - began)


def measure(database: Database) -> None:
    """Measure all of it."""
    from db.session import transaction
    from db.tenancy import tenant_context
    from worker.broker import broker

    logging.disable(logging.CRITICAL)
    logger.remove()
    started: list[float] = []
    event = threading.Event()

    def job(*_: object) -> None:
        started.append(time.perf_counter())
        event.set()

    idle = dramatiq.actor(broker=broker, queue_name="attribution", actor_name="test.idle")(job)
    quiet = dramatiq.actor(broker=broker, queue_name="maintenance", actor_name="test.quiet")(job)
    worker = Worker(broker, worker_threads=4, queues={"attribution"})
    worker.start()
    latency(idle, started, event)

    def none() -> None:
        with transaction() as session:
            session.execute(INSERT)

    def inside() -> None:
        with transaction() as session:
            session.execute(INSERT)
            quiet.send()

    def afterwards() -> None:
        with transaction() as session:
            session.execute(INSERT)
        quiet.send()

    def notified() -> None:
        with transaction() as session:
            session.execute(INSERT)
            quiet.send()
            session.execute(NOTIFY)

    variants = {"none": none, "send inside": inside, "commit, then send": afterwards, "inside, and NOTIFY": notified}
    for threads in (1, 8):
        figures = interleave(
            {name: lambda run=run, threads=threads: throughput(run, threads) for name, run in variants.items()},  # type: ignore[misc]
            ROUNDS,
        )
        show(f"transactions of one INSERT, {threads} threads", "a second", figures, against="none")

    def many(send_inside: bool) -> float:
        began = time.perf_counter()
        with tenant_context(TENANT):
            with transaction() as session:
                session.execute(INSERT)
                for n in range(MANY if send_inside else 0):
                    quiet.send(n)
            for n in range(0 if send_inside else MANY):
                quiet.send(n)
        return (time.perf_counter() - began) * 1_000

    figures = interleave({"inside": lambda: many(True), "after the commit": lambda: many(False)}, 2 * ROUNDS)
    show(f"{MANY:,} messages of one transaction, until Redis has them", "ms", figures, against="after the commit")
    rates = [after_an_outage(database, "test.quiet") for _ in range(ROUNDS)]
    print(f"after an outage: {median(rates):,.0f} messages a second go to Redis")
    worker.stop()
    broker.close()


def main() -> None:
    """Run it on servers of its own."""
    from worker import migrate

    synced = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    with running_cluster(synced) as cluster, cluster.database() as database, running_redis() as url:
        migrate.upgrade(database.owner_url)
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("CREATE TABLE orders (tenant_id uuid NOT NULL)")
            admin.execute("GRANT INSERT ON orders TO app_user")
        os.environ.update(database.environment(), REDIS_URL=url)
        measure(database)


if __name__ == "__main__":
    main()
