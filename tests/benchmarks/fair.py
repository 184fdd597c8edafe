"""What turns cost, and what they save: how long a tenant's one job waits behind a million of another's, and how many
jobs are done a second with 1, 100 and 10,000 tenants waiting, with ``FAIR`` and without.

``python -m tests.benchmarks.fair`` runs all of it, in about ten minutes; without turns behind a tenth of the million,
because that takes as long as its jobs do.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from functools import partial
from statistics import median, quantiles
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import redis
from dramatiq import Message, Worker

from middleware.redis_ids import redis_id_of
from tests.benchmarks.drain import THREADS, make
from tests.benchmarks.report import interleave, show
from tests.servers import running_redis

QUEUE = "attribution"
FLOOD, SMALL = 1_000_000, 300
MESSAGES, TENANTS, ROUNDS = 20_000, (1, 100, 10_000), 5
BIG, LITTLE = UUID(int=0xA), UUID(int=0xB)


def fill(client: redis.Redis, count: int, tenants: int, actor: str, *, stock: bool = False) -> None:
    """Let messages of many tenants wait, one after the other."""
    pipeline = client.pipeline(transaction=False)
    for n in range(count):
        options: dict[str, Any] = {"tenant_id": str(BIG if tenants == 1 else UUID(int=1 + n % tenants))}
        redis_id = str(uuid4()) if stock else redis_id_of(str(uuid4()), options)
        options["redis_message_id"] = redis_id
        pipeline.hset(f"dramatiq:{QUEUE}.msgs", redis_id, Message(QUEUE, actor, (), {}, options).encode())
        pipeline.rpush(f"dramatiq:{QUEUE}", redis_id)
        if n % 5_000 == 4_999:
            pipeline.execute()
    pipeline.execute()


def drain(tenants: int) -> dict[str, float]:
    """Return jobs a second, and the processor time of Redis and of the process for each, in microseconds."""
    broker, client = make("ours")
    done = threading.Semaphore(0)
    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="test.noop")(lambda: done.release())
    fill(client, MESSAGES, tenants, "test.noop")
    worker = Worker(broker, worker_threads=THREADS, queues={QUEUE})
    before, start, began = _processor_time(client), time.perf_counter(), time.process_time()
    worker.start()
    for _ in range(MESSAGES):
        done.acquire()
    took, spent = time.perf_counter() - start, time.process_time() - began
    after = _processor_time(client)
    worker.stop()
    broker.close()
    each = 1e6 / MESSAGES
    return {"rate": MESSAGES / took, "redis": (after - before) * each, "process": spent * each}


def _processor_time(client: redis.Redis) -> float:
    cpu = client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


def wait(flood: int, stock: bool) -> dict[str, float]:
    """Return how long jobs of a small tenant take from ``send()`` to their start behind a flood, in milliseconds: the
    first of them sent before any worker has looked at what waits, the others while it is worked on.
    """
    broker, client = make("ours")
    began: dict[int, float] = {}
    all_began = threading.Event()

    def job(n: int) -> None:
        began[n] = time.perf_counter()
        if len(began) == SMALL:
            all_began.set()

    dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="test.noop")(lambda: None)
    actor = dramatiq.actor(broker=broker, queue_name=QUEUE, actor_name="test.job")(job)
    fill(client, flood, 1, "test.noop", stock=stock)
    worker = Worker(broker, worker_threads=THREADS, queues={QUEUE})
    sent: dict[int, float] = {}
    options: dict[str, Any] = {"tenant_id": str(LITTLE)}

    def send(n: int) -> None:
        sent[n] = time.perf_counter()
        actor.send_with_options(args=(n,), **options)

    send(0)
    worker.start()
    for n in range(1, SMALL):
        time.sleep(random.expovariate(20))
        send(n)
    all_began.wait(900)
    took = [(began[n] - sent[n]) * 1000 for n in range(SMALL)]
    # It is not waited for what is left.
    os._exit(_say({"first": took[0], "p50": median(took[1:]), "p99": quantiles(took[1:], n=100)[-1]}))


def _say(figures: dict[str, float]) -> int:
    print(json.dumps(figures), flush=True)
    return 0


def child(what: str, redis_url: str, *words: str, fair: bool) -> dict[str, float]:
    """Run one of the above in a process of its own, on an empty Redis."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    environment = {
        **os.environ,
        "REDIS_URL": redis_url,
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "FAIR": "yes" if fair else "no",
    }
    command = [sys.executable, "-m", "tests.benchmarks.fair", what, *words]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def main() -> None:
    """Run everything and print the tables."""
    with running_redis() as url:
        for tenants in TENANTS:
            spent: dict[str, list[dict[str, float]]] = {"in one line": [], "in turns": []}

            def run(variant: str, tenants: int = tenants, spent: Any = spent) -> float:
                figures = child("drain", url, str(tenants), fair=variant == "in turns")
                spent[variant].append(figures)
                return figures["rate"]

            rates = interleave({name: partial(run, name) for name in spent}, ROUNDS)
            show(f"Jobs a second, {tenants:,} tenants with {MESSAGES:,}", "per second", rates, against="in one line")
            for variant, found in spent.items():
                means = {what: round(median(one[what] for one in found), 1) for what in ("redis", "process")}
                print(f"{variant}: microseconds of processor time for each", means)
        for fair, flood, stock in ((True, FLOOD, False), (True, FLOOD, True), (False, FLOOD // 10, False)):
            figures = child("wait", url, str(flood), str(int(stock)), fair=fair)
            how = f"{'in turns' if fair else 'in one line'}, behind {flood:,}{' of a stock producer' if stock else ''}"
            print(f"milliseconds to the start, {how}:", {name: round(ms, 1) for name, ms in figures.items()})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["drain", tenants]:
            _say(drain(int(tenants)))
        case ["wait", flood, stock]:
            wait(int(flood), stock == "1")
        case _:
            main()
