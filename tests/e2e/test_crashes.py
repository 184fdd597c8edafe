"""Cases 10 and 21 of the failure modes: messages that kill their worker, and processes that were frozen."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from psycopg.rows import dict_row

from db import failed_jobs
from tests.integration.test_failed_jobs import a_failure
from tests.servers import Database
from tests.waiting import eventually

TENANT = UUID(int=0xA)

#: A worker in a process of its own, which the message "poison" kills; what begins and ends is said in Redis.
WORKER = """
import os, sys, time
import dramatiq
from dramatiq import Worker

kind, redis_url = sys.argv[1], sys.argv[2]
os.environ.update(REDIS_URL=redis_url, MIN_BACKOFF="1", MAX_BACKOFF="1")
if kind == "ours":
    from worker.broker import broker
else:
    from dramatiq.brokers.redis import RedisBroker
    broker = RedisBroker(url=redis_url)
import redis
client = redis.Redis.from_url(redis_url)

def job(what, seconds=0.0):
    client.rpush("began", f"{what} {os.getpid()} {int(time.time() * 1000)}")
    if what == "poison":
        time.sleep(seconds)
        os._exit(11)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        if what == "waits" and client.get(f"go on {os.getpid()}"):
            break
    client.rpush("ended", f"{what} {os.getpid()} {int(time.time() * 1000)}")
    if what == "waits" and client.get("fails") == str(os.getpid()).encode():
        raise ValueError("after all")

dramatiq.actor(job, broker=broker, queue_name="attribution", actor_name="test.job", max_retries=0)
worker = Worker(broker, worker_threads=4, queues={"attribution"})
worker.start()
while True:
    time.sleep(60)
"""


class Processes:
    def __init__(self, redis_url: str, database: Database, folder: Path, stack: ExitStack) -> None:
        self.redis_url = redis_url
        self.database = database
        self.script = folder / "a_worker.py"
        self.script.write_text(WORKER)
        self.stack = stack
        self.logs: dict[int, Path] = {}
        self.client = stack.enter_context(redis.Redis.from_url(redis_url))
        self.producer = RedisBroker(client=self.client)
        self.producer.declare_queue("attribution")

    def start(self, kind: str = "ours") -> Popen[bytes]:
        environment = {**os.environ, **self.database.environment(), "PYTHONPATH": str(Path(__file__).parents[2])}
        log = self.script.parent / f"{len(self.logs)}.log"
        command = [sys.executable, str(self.script), kind, self.redis_url]
        with log.open("wb") as output:
            process = Popen(command, env=environment, stdout=DEVNULL, stderr=output)
        self.logs[process.pid] = log
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def log(self, process: Popen[bytes]) -> str:
        return self.logs[process.pid].read_text("utf-8", "replace")

    def send(self, *args: Any) -> str:
        options = {"tenant_id": str(TENANT)}
        return self.producer.enqueue(Message("attribution", "test.job", args, {}, options)).message_id

    def said(self, what: str) -> list[tuple[str, int, int]]:
        """What began or ended, in which process, and when."""
        lines = (line.decode().split() for line in self.client.lrange(what, 0, -1))
        return [(name, int(pid), int(when)) for name, pid, when in lines]

    def count(self, what: str) -> Counter[str]:
        return Counter(name for name, _, _ in self.said(what))

    def left(self) -> int:
        return int(self.client.hlen("dramatiq:attribution.msgs"))

    def rows(self) -> list[dict[str, Any]]:
        with psycopg.connect(self.database.admin_url, row_factory=dict_row) as connection:
            return connection.execute("SELECT * FROM worker_failed_jobs").fetchall()


@pytest.fixture
def processes(redis_url: str, database: Database, tmp_path: Path) -> Iterator[Processes]:
    with ExitStack() as stack:
        yield Processes(redis_url, database, tmp_path, stack)


def test_a_message_that_kills_is_stopped_and_who_ran_beside_it_is_not_condemned(processes: Processes) -> None:
    poison = processes.send("poison", 1.0)
    for n in range(3):
        processes.send(f"beside{n}", 2.0)
    for n in range(5):
        processes.send(f"waits{n}")
    # What restarts processes is the host's.
    for _ in range(3):
        assert processes.start().wait(60) == 11
    processes.start()
    eventually(lambda: processes.left() == 0, seconds=60)
    assert processes.count("began")["poison"] == 3
    assert set(processes.count("ended")) == {*(f"beside{n}" for n in range(3)), *(f"waits{n}" for n in range(5))}
    # Every one that was in flight began once more, and alone.
    assert {processes.count("began")[f"beside{n}"] for n in range(3)} == {2}
    assert {processes.count("began")[f"waits{n}"] for n in range(5)} == {1}
    (row,) = processes.rows()
    assert (row["task_id"], row["task_name"], row["error_type"]) == (poison, "test.job", "worker_lost")
    assert (row["tenant_id"], row["task_args"], row["retry_count"]) == (TENANT, ["poison", 1.0], 2)
    assert row["exception_class"] == "middleware.errors.WorkerLost"
    lines = row["error_message"].splitlines()
    assert lines[0] == "its worker was lost 3 times while it ran, so it is not started again"
    killed = [pid for name, pid, _ in processes.said("began") if name == "poison"]
    for line, pid in zip(lines[1:], killed, strict=True):
        assert f"/{pid}; of which nothing was heard after 20" in line
        assert "peak memory" in line
    assert processes.client.hlen("dramatiq:__dramaturg__.crashes") == 0


def test_what_ran_at_a_crash_runs_alone(processes: Processes) -> None:
    for n in range(4):
        processes.send(f"suspect{n}", 0.5)
    first = processes.start()
    eventually(lambda: len(processes.said("began")) == 4, seconds=30)
    first.kill()
    first.wait()
    processes.client.delete("began", "ended")
    processes.start()
    # More than there are threads, all the time.
    for n in range(200):
        processes.send(f"other{n}", 0.3)
    eventually(lambda: sum(processes.count("ended")[f"suspect{n}"] for n in range(4)) == 4, seconds=60)
    ended = {(name, pid): when for name, pid, when in processes.said("ended")}
    spans = [(name, when, ended.get((name, pid), when)) for name, pid, when in processes.said("began")]
    for suspect, began, until in (s for s in spans if s[0].startswith("suspect")):
        assert [n for n, b, e in spans if n != suspect and b < until and e > began] == []


def test_a_process_that_was_frozen_ends_nothing(processes: Processes) -> None:
    frozen = processes.start()
    processes.send("waits", 60.0)
    eventually(lambda: processes.count("began")["waits"] == 1, seconds=30)
    os.kill(frozen.pid, signal.SIGSTOP)
    other = processes.start()
    eventually(lambda: processes.count("began")["waits"] == 2, seconds=60)
    processes.client.set("fails", frozen.pid)
    processes.client.set(f"go on {frozen.pid}", 1)
    os.kill(frozen.pid, signal.SIGCONT)
    eventually(lambda: "its end here counts for nothing" in processes.log(frozen), seconds=30)
    assert (processes.rows(), processes.left()) == ([], 1)
    processes.client.set(f"go on {other.pid}", 1)
    eventually(lambda: processes.left() == 0)
    assert processes.rows() == []
    assert processes.client.exists("dramatiq:__dramaturg__.spool") == 0


def test_a_message_whose_row_exists_is_ended_and_not_run(processes: Processes) -> None:
    processes.send("waits", 60.0)
    first = processes.start()
    eventually(lambda: processes.count("began")["waits"] == 1, seconds=30)
    # As if it had been lost between the row and the end of the message.
    first.kill()
    first.wait()
    (redis_id,) = processes.client.hkeys("dramatiq:attribution.msgs")
    failed_jobs.record(a_failure(tenant_id=TENANT, delivery_id=redis_id.decode()))
    processes.start()
    eventually(lambda: processes.left() == 0, seconds=60)
    assert processes.count("began")["waits"] == 1
    assert len(processes.rows()) == 1


def test_stock_runs_poison_for_ever(processes: Processes) -> None:
    processes.send("poison")
    for starts in range(1, 5):
        assert processes.start("stock").wait(30) == 11
        assert processes.count("began")["poison"] == starts
        # What its maintenance does after a minute of silence, or at once when the clock of a producer is ahead.
        ahead = RedisBroker(client=processes.client, maintenance_chance=1_000_000, heartbeat_timeout=0)
        ahead.declare_queue("attribution")
        eventually(lambda ahead=ahead: ahead.do_qsize("attribution") and processes.client.llen("dramatiq:attribution"))  # type: ignore[misc]
    assert processes.left() == 1
