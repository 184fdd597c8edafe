"""What a message takes of Redis, from which SCALING.md reckons how many one Redis carries: processor time to send and
to run it, bytes while it waits or is delayed, and bytes on the wire.

No-op jobs whose argument is a text of 10 or of 1,000 bytes, so that yours lie between or beyond.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any
from uuid import UUID

import dramatiq
import redis
from dramatiq import Worker
from loguru import logger

from tests.servers import running_redis

MESSAGES = 50_000
SIZES = (10, 1_000)
TENANT = UUID(int=0xA)
DAY = 86_400_000


def used(client: redis.Redis) -> dict[str, float]:
    """Return what Redis has used by now."""
    about = client.info()
    return {
        "processor, µs": (float(about["used_cpu_user"]) + float(about["used_cpu_sys"])) * 1e6,
        "memory, bytes": float(about["used_memory"]),
        "in, bytes": float(about["total_net_input_bytes"]),
        "out, bytes": float(about["total_net_output_bytes"]),
    }


def child(size: int) -> None:
    """Send one at a time, in bulk and delayed, run what is due, and print what each took of Redis a message."""
    logging.disable(logging.CRITICAL)
    from worker.broker import broker
    from worker.sending import enqueue_many

    logger.remove()
    client: redis.Redis = broker.client  # type: ignore[attr-defined]
    done = threading.Semaphore(0)
    actor = dramatiq.actor(broker=broker, queue_name="attribution", actor_name="bench.capacity")(
        lambda _text: done.release()
    )
    sent: dict[str, Any] = {"args": ("x" * size,), "tenant_id": str(TENANT)}
    found: dict[str, dict[str, float]] = {}

    def note(what: str, run: Any) -> None:
        before = used(client)
        run()
        found[what] = {name: (value - before[name]) / MESSAGES for name, value in used(client).items()}

    def work() -> None:
        worker = Worker(broker, worker_threads=8, queues={"attribution"})
        worker.start()
        for _ in range(2 * MESSAGES):
            done.acquire()
        worker.stop()

    actor.send_with_options(**sent)
    note("sent one at a time", lambda: [actor.send_with_options(**sent) for _ in range(MESSAGES)])
    note("sent in bulk", lambda: enqueue_many(actor.message_with_options(**sent) for _ in range(MESSAGES)))
    note("run, two of them", work)
    note("delayed", lambda: enqueue_many((actor.message_with_options(**sent) for _ in range(MESSAGES)), delay=DAY))
    broker.close()
    print(json.dumps(found))


def main() -> None:
    """Measure each size in a process of its own, and print it."""
    with running_redis() as url:
        for size in SIZES:
            with redis.Redis.from_url(url) as client:
                client.flushall()
            environment = {**os.environ, "REDIS_URL": url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none"}
            command = [sys.executable, "-m", "tests.benchmarks.capacity", str(size)]
            said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
            found = json.loads(said.splitlines()[-1])
            found["run"] = {name: value / 2 for name, value in found.pop("run, two of them").items()}
            print(f"an argument of {size:,} bytes, of Redis a message:")
            for what, figures in found.items():
                print(f"  {what}: {', '.join(f'{name} {value:,.0f}' for name, value in figures.items())}")


if __name__ == "__main__":
    child(int(sys.argv[1])) if len(sys.argv) > 1 else main()
