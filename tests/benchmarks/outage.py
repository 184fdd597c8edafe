"""An outage of Postgres while every job fails: failures spooled a second by one process of 8 threads, and the time from
Postgres' return to an empty spool of 10,000.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from typing import Any
from uuid import UUID

import dramatiq
import psycopg
from dramatiq import Worker
from loguru import logger

from db import session
from tests.benchmarks.report import show
from tests.servers import running_cluster, running_redis

FAILURES = 10_000
THREADS = 8
ROUNDS = 3
TENANTS = [UUID(int=n) for n in range(1, 11)]


def child() -> None:
    """Let everything fail with Postgres away, bring it back, and print both figures."""
    logging.disable(logging.CRITICAL)
    url, os.environ["DATABASE_URL"] = os.environ["DATABASE_URL"], "postgres://nobody@127.0.0.1:1/none"
    from worker.broker import broker

    logger.remove()

    def fail(n: int, window: str) -> None:
        raise ValueError(f"number {n} of {window}")

    actor = dramatiq.actor(broker=broker, queue_name="attribution", max_retries=0)(fail)
    ids = set()
    for n in range(FAILURES):
        options: dict[str, Any] = {"tenant_id": str(TENANTS[n % len(TENANTS)])}
        ids.add(actor.send_with_options(args=(n, "2025-01"), **options).message_id)
    worker = Worker(broker, worker_threads=THREADS, queues={"attribution"})
    start = time.perf_counter()
    worker.start()
    broker.join("attribution", interval=50)  # type: ignore[call-arg]
    spooled = time.perf_counter() - start
    client, spool = broker.client, "dramatiq:__dramaturg__.spool"  # type: ignore[attr-defined]
    held = client.hlen(spool)
    start = time.perf_counter()
    session.configure(url)
    while client.exists(spool):
        time.sleep(0.05)
    drained = time.perf_counter() - start
    worker.stop()
    with psycopg.connect(os.environ["ADMIN_URL"]) as connection:
        recorded = {row[0] for row in connection.execute("SELECT task_id FROM worker_failed_jobs")}
        connection.execute("TRUNCATE worker_failed_jobs CASCADE")
    if recorded != ids or held != FAILURES:
        raise SystemExit(f"{len(ids - recorded)} of {len(ids)} failures are missing; the spool held {held}")
    print(json.dumps({"spooled a second": FAILURES / spooled, "seconds to an empty spool": drained}))


def main() -> None:
    """Run and print the table."""
    from worker import migrate

    durable = {"fsync": "on", "synchronous_commit": "on"}
    figures: dict[str, list[float]] = {}
    with running_cluster(durable) as cluster, running_redis() as redis_url, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        environment = {**os.environ, **database.environment(), "REDIS_URL": redis_url, "ADMIN_URL": database.admin_url}
        for _ in range(ROUNDS):
            command = [sys.executable, "-m", "tests.benchmarks.outage", "child"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            for name, value in json.loads(done.stdout).items():
                figures.setdefault(name, []).append(value)
    for name, values in figures.items():
        show(
            f"Postgres away, {FAILURES:,} failures of {len(TENANTS)} tenants",
            name,
            {"ours": values},
            against="ours",
            digits=1,
        )


if __name__ == "__main__":
    child() if len(sys.argv) > 1 else main()
