"""How a worker process ended, as its keeper saw it: evidence in the row of a message that kills, and no more."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from subprocess import Popen

import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from tests.e2e.deployment import Deployment
from tests.e2e.test_shutdown import gone, tell_all
from tests.processes import children_of, workers_of
from tests.waiting import eventually

JOBS = """
import ctypes, os, signal, time
import redis
from worker.routing import actor

client = redis.Redis.from_url(os.environ["REDIS_URL"])

def job(fn, queue):
    actor(actor_name="jobs." + fn.__name__, queue_name=queue, tenant_scoped=False, max_retries=0)(fn)

def exits():
    os._exit(3)

def faults():
    ctypes.string_at(0)

def is_killed():
    # More than any sign of life could have told of.
    memory = b"x" * (200 << 20)
    os.kill(os.getpid(), signal.SIGKILL)

def sleeps():
    client.rpush("begun", os.getpid())
    while not client.exists("finish"):
        time.sleep(0.1)

for fn, queue in ((exits, "attribution"), (faults, "llm"), (is_killed, "maintenance"), (sleeps, "housekeeping")):
    job(fn, queue)
"""
DIES_EARLY = """
import os
from dramatiq.middleware import Middleware
from worker.broker import broker

class Dies(Middleware):
    def after_worker_boot(self, broker, worker):
        os._exit(3)

broker.add_middleware(Dies())
"""
#: By queue, what is sent to it, and what is said of the process that had it; its main process exits with that status.
ENDS = {
    "attribution": ("exits", "which exited with status 3;", 3),
    "llm": ("faults", "which was killed by SIGSEGV, a fault in C code;", 1),
    "maintenance": (
        "is_killed",
        "which was killed by SIGKILL, as the kernel's out-of-memory killer does, or a person;",
        1,
    ),
}


class Entries:
    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment = deployment
        self.client = deployment.client
        self.folder = folder / "jobs"
        self.folder.mkdir()
        (self.folder / "jobs_that_end.py").write_text(JOBS)
        # Dramatiq's own: it sends to actors that this process does not know.
        self._producer = RedisBroker(client=self.client)

    def start(self, queue: str, *, module: str = "jobs_that_end", **environment: str) -> tuple[Popen[bytes], Path]:
        root = str(Path(__file__).parents[2])
        command = ("dramatiq", module, "--processes", "1", "--threads", "2", "--queues", queue)
        log = self.deployment.start(*command, cwd=self.folder, PYTHONPATH=f"{root}:{self.folder}", **environment)
        return self.deployment.processes[-1], log

    def send(self, queue: str, name: str) -> str:
        self._producer.declare_queue(queue)
        return self._producer.enqueue(Message(queue, f"jobs.{name}", (), {}, {})).message_id

    def begun(self) -> list[int]:
        return [int(pid) for pid in self.client.lrange("begun", 0, -1)]


@pytest.fixture
def entries(deployment: Deployment, tmp_path: Path) -> Entries:
    return Entries(deployment, tmp_path)


@pytest.mark.timeout(400)
def test_the_row_of_a_message_that_kills_says_how_its_workers_ended(entries: Entries) -> None:
    # Somebody lives all the time, who gives back what the dead leave.
    entries.start("housekeeping", MAX_STARTS="2")
    sent = {entries.send(queue, name): queue for queue, (name, _, _) in ENDS.items()}
    for _ in range(2):
        started = {queue: entries.start(queue, MAX_STARTS="2")[0] for queue in ENDS}
        for queue, process in started.items():
            assert process.wait(60) == ENDS[queue][2]
    for queue in ENDS:
        entries.start(queue, MAX_STARTS="2")
    eventually(lambda: len(entries.deployment.failures()) == 3, seconds=60)
    for row in entries.deployment.failures():
        assert row["error_type"] == "worker_lost"
        first, *losses = row["error_message"].splitlines()
        assert first == "its worker was lost 2 times while it ran, so it is not started again"
        assert len(losses) == 2
        queue = sent[row["task_id"]]
        for loss in losses:
            assert ENDS[queue][1] in loss
            peak = re.search(r"; peak memory (\d+) MiB$", loss)
            assert peak is not None
            assert (int(peak[1]) >= 200) == (queue == "maintenance")


def test_without_a_keeper_the_row_says_that_nobody_saw_it(entries: Entries) -> None:
    off = {"MAX_STARTS": "2", "KEEPER": "no"}
    entries.start("housekeeping", **off)
    entries.send("attribution", "exits")
    for _ in range(2):
        assert entries.start("attribution", **off)[0].wait(60) == 3
    entries.start("attribution", **off)
    eventually(entries.deployment.failures, seconds=60)
    (row,) = entries.deployment.failures()
    assert row["error_message"].count("nobody saw how it ended") == 2


def test_a_worker_whose_keeper_is_killed_gives_back_what_it_holds_and_ends(entries: Entries) -> None:
    process, _ = entries.start("housekeeping", STOP_WITHIN="5")
    entries.send("housekeeping", "sleeps")
    eventually(entries.begun, seconds=60)
    (keeper,) = children_of(process.pid)
    assert (workers_of(process.pid), children_of(keeper)) == (entries.begun(), entries.begun())
    os.kill(keeper, signal.SIGKILL)
    # Dramatiq's main process does not wait for it.
    eventually(lambda: gone(process), seconds=30)
    assert entries.deployment.held() == 0
    assert len(entries.client.lrange("dramatiq:housekeeping", 0, -1)) == 1
    assert entries.client.exists("dramatiq:__dramaturg__.crashes", "dramatiq:__dramaturg__.suspects.housekeeping") == 0
    assert entries.deployment.failures() == []


def test_a_worker_ends_as_told_when_only_its_keeper_is_told(entries: Entries) -> None:
    process, log = entries.start("housekeeping")
    entries.send("housekeeping", "sleeps")
    eventually(entries.begun, seconds=60)
    (keeper,) = children_of(process.pid)
    for _ in range(3):
        os.kill(keeper, signal.SIGTERM)
    eventually(lambda: "Stopping worker process" in log.read_text())
    entries.client.set("finish", 1)
    assert process.wait(30) == 0, log.read_text()
    assert entries.client.exists("dramatiq:housekeeping.msgs") == 0
    # Its end was no surprise to anybody of ours.
    assert "kept by" not in log.read_text()


def test_a_worker_that_is_killed_while_its_keeper_is_frozen_is_reported_when_that_wakes(entries: Entries) -> None:
    process, log = entries.start("housekeeping")
    eventually(lambda: "ready for action" in log.read_text(), seconds=60)
    (keeper,), (worker,) = children_of(process.pid), workers_of(process.pid)
    os.kill(keeper, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    # Nobody else takes it for ended.
    assert process.poll() is None
    os.kill(keeper, signal.SIGCONT)
    # What Dramatiq's main process itself says of it, it may not print: it stops reading its logs first.
    assert process.wait(30) == 1
    assert f"worker process {worker}, kept by {keeper}, was killed by SIGKILL" in log.read_text()


def test_dramatiq_does_not_wait_for_a_worker_that_died_as_it_booted(entries: Entries) -> None:
    (entries.folder / "dies_early.py").write_text(DIES_EARLY)
    process, log = entries.start("housekeeping", module="dies_early")
    # Dramatiq alone would be half a minute late, or hang.
    assert process.wait(25) == 3, log.read_text()


def test_everybody_told_at_once_is_no_surprise(entries: Entries) -> None:
    process, log = entries.start("housekeeping", STOP_WITHIN="5")
    entries.send("housekeeping", "sleeps")
    eventually(entries.begun, seconds=60)
    tell_all(process)
    tell_all(process)
    eventually(lambda: gone(process), seconds=30)
    assert "kept by" not in log.read_text()
    assert entries.deployment.held() == 0
    assert len(entries.client.lrange("dramatiq:housekeeping", 0, -1)) == 1
    assert entries.client.exists("dramatiq:__dramaturg__.crashes") == 0
