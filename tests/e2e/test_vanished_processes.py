"""Case 9 of the failure modes: processes that are killed, and what they held."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from tests.waiting import eventually

#: A worker in a process of its own, that says in Redis who has begun a job; the job goes on for ever in some.
WORKER = """
import os, sys, time
import dramatiq
from dramatiq import Worker

kind, redis_url, queues, behaviour = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4]
os.environ.update(REDIS_URL=redis_url, DATABASE_URL="postgres://nobody@127.0.0.1:1/none", EXTRA_QUEUES=",".join(queues))
if kind == "ours":
    from worker.broker import broker
else:
    from dramatiq.brokers.redis import RedisBroker
    broker = RedisBroker(url=redis_url)
import redis
client = redis.Redis.from_url(redis_url)

def job(n):
    client.rpush("ran:" + behaviour, n)
    while behaviour == "hangs":
        time.sleep(1)

for queue in queues:
    options = {"tenant_scoped": False} if kind == "ours" else {}
    dramatiq.actor(job, broker=broker, queue_name=queue, actor_name="test." + queue, **options)
worker = Worker(broker, worker_threads=4, queues=set(queues))
worker.start()
while True:
    time.sleep(60)
"""
QUEUES = [f"quiet{n}" for n in range(5)]


class Processes:
    def __init__(self, redis_url: str, folder: Path, stack: ExitStack) -> None:
        self.redis_url = redis_url
        self.script = folder / "a_worker.py"
        self.script.write_text(WORKER)
        self.stack = stack
        self.client = stack.enter_context(redis.Redis.from_url(redis_url))

    def start(self, kind: str, behaviour: str) -> Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, str(self.script), kind, self.redis_url, ",".join(QUEUES), behaviour]
        process = Popen(command, env=environment, stdout=DEVNULL, stderr=DEVNULL)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def send(self, count: int) -> None:
        producer = RedisBroker(client=self.client)
        for n in range(count):
            queue = QUEUES[n % len(QUEUES)]
            producer.declare_queue(queue)
            producer.enqueue(Message(queue, f"test.{queue}", (n,), {}, {}))

    def ran(self, behaviour: str) -> set[int]:
        return {int(n) for n in self.client.lrange(f"ran:{behaviour}", 0, -1)}

    def held(self) -> int:
        return sum(int(self.client.scard(key)) for key in self.client.scan_iter("dramatiq:__acks__.*"))


@pytest.fixture
def processes(redis_url: str, tmp_path: Path) -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(redis_url, tmp_path, stack)


def test_stock_leaves_it_with_the_dead(processes: Processes) -> None:
    first = processes.start("stock", "hangs")
    processes.send(30)
    eventually(lambda: processes.held() == 30, seconds=30)
    first.send_signal(signal.SIGKILL)
    first.wait()
    processes.start("stock", "works")
    # Twenty more go through the living one while the thirty lie there: it needs a minute of silence to begin with.
    processes.send(20)
    eventually(lambda: len(processes.ran("works")) == 20, seconds=30)
    assert processes.held() == 30


def test_ours_gives_it_back(processes: Processes) -> None:
    first = processes.start("ours", "hangs")
    processes.send(30)
    eventually(lambda: processes.held() == 30, seconds=30)
    processes.start("ours", "works")
    eventually(lambda: processes.client.zcard("dramatiq:__dramaturg__.alive") == 2, seconds=30)
    first.send_signal(signal.SIGKILL)
    first.wait()
    eventually(lambda: processes.ran("works") == set(range(30)), seconds=15)
    eventually(lambda: processes.held() == 0)


def test_ours_gives_it_back_when_all_died_and_were_restarted(processes: Processes) -> None:
    both = [processes.start("ours", "hangs") for _ in range(2)]
    processes.send(30)
    eventually(lambda: processes.held() == 30, seconds=30)
    for process in both:
        process.send_signal(signal.SIGKILL)
        process.wait()
    processes.start("ours", "works")
    eventually(lambda: processes.ran("works") == set(range(30)), seconds=15)
    eventually(lambda: processes.held() == 0)


def test_a_slow_job_of_a_living_process_is_left_to_it(processes: Processes) -> None:
    processes.start("ours", "hangs")
    processes.send(1)
    eventually(lambda: processes.ran("hangs") == {0}, seconds=30)
    processes.start("ours", "works")
    # The server's clock, past the lease.
    alive = "dramatiq:__dramaturg__.alive"
    eventually(lambda: processes.client.zcard(alive) == 2, seconds=30)
    end = time.time() * 1000 + 10_000
    eventually(lambda: min(s for _, s in processes.client.zrange(alive, 0, -1, withscores=True)) > end, seconds=20)
    assert processes.ran("works") == set()
