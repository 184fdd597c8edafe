"""Failures recorded per second by one worker process of 8 threads, every message failing at its only try.

Against stock Dramatiq, which records none, and against a middleware that opens a connection for each failure, as the
Celery system did.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import psycopg
from dramatiq import Broker, MessageProxy, Middleware, Worker
from dramatiq.brokers.redis import RedisBroker
from loguru import logger
from psycopg.types.json import Jsonb

from tests.benchmarks.report import interleave, show
from tests.servers import running_cluster, running_redis

MESSAGES = 4_000
THREADS = 8
ROUNDS = 5
TENANT = UUID(int=0xA)


class ConnectionPerFailure(Middleware):
    """What a handler without a pool does."""

    def before_nack(self, broker: Broker, message: MessageProxy) -> None:
        with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
            connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(TENANT)])
            connection.execute(
                """
                INSERT INTO worker_failed_jobs
                (id, task_id, task_name, queue, task_args, task_kwargs, tenant_id, error_type, exception_class,
                 error_message)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
                """,
                [
                    *(uuid4(), message.message_id, message.actor_name, message.queue_name),
                    *(Jsonb(message.args), Jsonb(message.kwargs), TENANT, "validation_error", "ValueError", "x"),
                ],
            )


def make(variant: str) -> Broker:
    """Return the variant's broker."""
    if variant == "ours":
        from worker.broker import broker

        return broker
    stock = RedisBroker(url=os.environ["REDIS_URL"])
    if variant == "connection per failure":
        stock.add_middleware(ConnectionPerFailure())
    stock.declare_queue("attribution")
    return stock


def child(variant: str) -> None:
    """Drain the queue once and print messages a second."""
    logging.disable(logging.CRITICAL)
    broker = make(variant)
    logger.remove()

    def fail(n: int, window: str) -> None:
        raise ValueError(f"number {n} of {window}")

    actor = dramatiq.actor(broker=broker, queue_name="attribution", max_retries=0)(fail)
    options: dict[str, Any] = {"tenant_id": str(TENANT)}
    ids = {actor.send_with_options(args=(n, "2025-01"), **options).message_id for n in range(MESSAGES)}
    worker = Worker(broker, worker_threads=THREADS, queues={"attribution"})
    start = time.perf_counter()
    worker.start()
    broker.join("attribution", interval=10)  # type: ignore[call-arg]
    took = time.perf_counter() - start
    worker.stop()
    with psycopg.connect(os.environ["ADMIN_URL"]) as connection:
        recorded = {row[0] for row in connection.execute("SELECT task_id FROM worker_failed_jobs")}
        connection.execute("TRUNCATE worker_failed_jobs CASCADE")
    if variant != "stock, none recorded" and recorded != ids:
        raise SystemExit(f"{variant}: {len(ids - recorded)} of {len(ids)} failures are missing")
    print(json.dumps(MESSAGES / took))


def main() -> None:
    """Run all variants and print the table."""
    from worker import migrate

    durable = {"fsync": "on", "synchronous_commit": "on"}
    with running_cluster(durable) as cluster, running_redis() as redis_url, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        environment = {**os.environ, **database.environment(), "REDIS_URL": redis_url}
        environment["ADMIN_URL"] = database.admin_url

        def run(variant: str) -> float:
            command = [sys.executable, "-m", "tests.benchmarks.failures", variant]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            return float(json.loads(done.stdout))

        names = ["stock, none recorded", "ours", "connection per failure"]
        figures = interleave({name: partial(run, name) for name in names}, ROUNDS)
    show(
        f"Failures a second, one process of {THREADS} threads, {MESSAGES:,} messages",
        "per second",
        figures,
        against="stock, none recorded",
    )


if __name__ == "__main__":
    child(sys.argv[1]) if len(sys.argv) > 1 else main()
