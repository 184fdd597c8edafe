"""What it costs to lose nothing: no-op throughput of one process of 8 threads and its calls to Redis, the time from an
idle queue's send to the job's start, and how long what a killed process held stays away.

Against stock Dramatiq, except for the last: there it is minutes.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from functools import partial
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import dramatiq
import redis
from dramatiq import Broker, Worker
from dramatiq.brokers.redis import RedisBroker
from loguru import logger

from tests.benchmarks.report import interleave, show
from tests.servers import running_redis

MESSAGES = 10_000
THREADS = 8
ROUNDS = 5
IDLE_SENDS = 40
TENANT = UUID(int=0xA)
QUEUES = [f"quiet{n}" for n in range(20)]


def make(variant: str) -> tuple[Broker, redis.Redis]:
    """Return the variant's broker and its client."""
    logging.disable(logging.CRITICAL)
    if variant == "ours":
        from worker.broker import broker
    else:
        broker = RedisBroker(url=os.environ["REDIS_URL"])
    logger.remove()
    return broker, broker.client  # type: ignore[attr-defined]


def calls(client: redis.Redis) -> int:
    """Return how many scripts, waits and looks clients have asked for. What scripts call is not among them."""
    stats = client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "blmove", "smembers"))


def drain(variant: str) -> dict[str, float]:
    """Return messages a second and calls a message."""
    broker, client = make(variant)
    done = threading.Semaphore(0)
    actor = dramatiq.actor(broker=broker, queue_name="attribution", actor_name="test.noop")(lambda: done.release())
    options: dict[str, Any] = {"tenant_id": str(TENANT)}
    for _ in range(MESSAGES):
        actor.send_with_options(**options)
    worker = Worker(broker, worker_threads=THREADS, queues={"attribution"})
    before, start = calls(client), time.perf_counter()
    worker.start()
    for _ in range(MESSAGES):
        done.acquire()
    took = time.perf_counter() - start
    broker.join("attribution", interval=10)  # type: ignore[call-arg]
    made = calls(client) - before
    worker.stop()
    broker.close()
    return {"rate": MESSAGES / took, "calls": made / MESSAGES}


def idle(variant: str) -> dict[str, float]:
    """Return p50 and p95 of the milliseconds from send to start, and an idle process' calls a second for a queue."""
    broker, client = make(variant)
    started: list[float] = []
    event = threading.Event()

    def job() -> None:
        started.append(time.perf_counter())
        event.set()

    actor = dramatiq.actor(broker=broker, queue_name="attribution", actor_name="test.idle")(job)
    options: dict[str, Any] = {"tenant_id": str(TENANT)}
    worker = Worker(broker, worker_threads=THREADS, queues={"attribution"})
    worker.start()
    time.sleep(2)
    before = calls(client)
    time.sleep(10)
    a_second = (calls(client) - before) / 10
    took = []
    for _ in range(IDLE_SENDS):
        event.clear()
        time.sleep(random.uniform(0.5, 2.5))  # noqa: S311
        sent = time.perf_counter()
        actor.send_with_options(**options)
        event.wait(10)
        took.append((started[-1] - sent) * 1000)
    worker.stop()
    broker.close()
    return {"p50": median(took), "p95": quantiles(took, n=20)[-1], "calls a second": a_second}


def hold(behaviour: str) -> dict[str, float]:
    """Work on the quiet queues until killed, saying when each job began; the jobs of ``hang`` do not end."""
    broker, client = make("ours")

    def job(name: str) -> None:
        client.rpush(f"began:{behaviour}", json.dumps([name, time.time()]))
        while behaviour == "hang":
            time.sleep(60)

    for queue in QUEUES:
        dramatiq.actor(broker=broker, queue_name=queue, actor_name=f"test.{queue}", tenant_scoped=False)(job)
    Worker(broker, worker_threads=THREADS, queues=set(QUEUES)).start()
    threading.Event().wait()
    return {}


def child(what: str, redis_url: str, variant: str, module: str = "tests.benchmarks.drain") -> subprocess.Popen[str]:
    """Start a process that does one of the above."""
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "EXTRA_QUEUES": ",".join(QUEUES),
    }
    command = [sys.executable, "-m", module, what, variant]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def figures_of(what: str, redis_url: str, variant: str) -> dict[str, float]:
    """Run one to its end on an empty Redis."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        client.config_resetstat()
    output, _ = child(what, redis_url, variant).communicate()
    figures: dict[str, float] = json.loads(output)
    return figures


def after_sigkill(redis_url: str, *, all_die: bool) -> list[float]:
    """Return the seconds from the kill to each message's new start."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        first = child("hold", redis_url, "hang")
        second = None if all_die else child("hold", redis_url, "take")
        while int(client.zcard("dramatiq:__dramaturg__.alive")) < (1 if all_die else 2):
            time.sleep(0.1)
        producer = RedisBroker(client=client)
        if second is not None:
            second.send_signal(19)  # SIGSTOP, so that it is the other that takes the messages
        for queue in QUEUES:
            producer.declare_queue(queue)
            producer.enqueue(dramatiq.Message(queue, f"test.{queue}", (queue,), {}, {}))
        while sum(int(client.scard(key)) for key in client.scan_iter("dramatiq:__acks__.*")) < len(QUEUES):
            time.sleep(0.01)
        if second is not None:
            second.send_signal(18)
            time.sleep(random.uniform(0, 2))  # noqa: S311
        first.kill()
        killed = time.time()
        first.wait()
        second = second or child("hold", redis_url, "take")
        while int(client.llen("began:take")) < len(QUEUES):
            time.sleep(0.05)
        second.kill()
        second.wait()
        return [json.loads(said)[1] - killed for said in client.lrange("began:take", 0, -1)]


def main() -> None:
    """Run everything and print the tables."""
    with running_redis() as url:
        made: dict[str, list[float]] = {"stock": [], "ours": []}

        def run(variant: str) -> float:
            figures = figures_of("drain", url, variant)
            made[variant].append(figures["calls"])
            return figures["rate"]

        rates = interleave({name: partial(run, name) for name in made}, ROUNDS)
        title = f"one process of {THREADS} threads, {MESSAGES:,} messages that do nothing"
        show(f"Messages a second, {title}", "per second", rates, against="stock")
        show(f"Client calls to Redis per message, {title}", "calls", made, against="stock", digits=3)
        for variant in made:
            print(f"idle, {variant}:", {k: round(v, 2) for k, v in figures_of("idle", url, variant).items()})
        for all_die in (False, True):
            took = [seconds for _ in range(3) for seconds in after_sigkill(url, all_die=all_die)]
            what = "every process killed, one restarted" if all_die else "one of two killed"
            print(f"seconds to run again, {what}: p50 {median(took):.1f}, max {max(took):.1f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps({"drain": drain, "idle": idle, "hold": hold}[sys.argv[1]](sys.argv[2])))
    else:
        main()
