"""Cases 4, 8, 11, 12 and 22 of the failure modes: a deployment is told to stop, every process at once and more than
once; and processes that cannot do their work any more."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from subprocess import Popen
from typing import Any

from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from middleware.supervision import EXIT_CODE
from tests.cut_wire import CutWire
from tests.e2e.deployment import Deployment
from tests.integration.nothing_lost import waiting
from tests.servers import Database
from tests.waiting import eventually

QUEUE = "attribution"
#: Seconds after which a host ends what has not ended: https://devcenter.heroku.com/articles/dynos#shutdown
HOST_KILLS_AFTER = 30

OURS = """
import asyncio, os, threading, time
import redis
from dramatiq.middleware import Shutdown
from dramatiq.threading import raise_thread_exception
from dramatiq.worker import WorkerThread
from sqlalchemy import text
from db.session import operator_transaction
from worker.routing import actor, register

register(__name__, "attribution")
client = redis.Redis.from_url(os.environ["REDIS_URL"])
SECOND_TIME = "SECOND_TIME" in os.environ

def job(fn=None, **options):
    def declare(fn):
        # One failure that counts is a row.
        return actor(actor_name="jobs." + fn.__name__, tenant_scoped=False, max_retries=0, **options)(fn)
    return declare(fn) if fn else declare

def begun(name):
    client.rpush("begun", name)
    return not SECOND_TIME

@job
def waits_for_postgres():
    if begun("waits_for_postgres"):
        with operator_transaction() as session:
            session.execute(text("SELECT pg_sleep(60)"))

@job
async def waits_for_postgres_async():
    if begun("waits_for_postgres_async"):
        async with operator_transaction() as session:
            await session.execute(text("SELECT pg_sleep(60)"))

@job(throws=Shutdown)
def busy():
    if begun("busy"):
        while True:
            pass

@job
def sleeps():
    if begun("sleeps"):
        time.sleep(60)

@job
async def awaits():
    if begun("awaits"):
        await asyncio.sleep(60)

@job
def swallows():
    while begun("swallows"):
        try:
            with operator_transaction() as session:
                session.execute(text("SELECT pg_sleep(60)"))
        except BaseException:
            pass

@job(notify_shutdown=True)
def cleans_up():
    if begun("cleans_up"):
        try:
            with operator_transaction() as session:
                session.execute(text("SELECT pg_sleep(60)"))
        except Shutdown:
            with operator_transaction() as session:
                session.execute(text("SELECT pg_sleep(1)"))
            client.rpush("cleaned", 1)
            raise

@job(time_limit=1_000)
def heeds_no_limit():
    while begun("heeds_no_limit"):
        try:
            time.sleep(60)
        except BaseException:
            pass

@job
def kills_a_thread():
    begun("kills_a_thread")
    for thread in threading.enumerate():
        if isinstance(thread, WorkerThread) and thread is not threading.current_thread():
            raise_thread_exception(thread.ident, SystemExit)
    time.sleep(60)

@job
def finishes():
    begun("finishes")
    while not client.exists("finish"):
        time.sleep(0.1)

@job
def follows(*of):
    begun("follows")

@job
def is_told_of_a_failure(message, error):
    client.rpush("told", 1)
"""

STOCK = """
import os, time
import dramatiq, redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Shutdown
dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))
client = redis.Redis.from_url(os.environ["REDIS_URL"])

@dramatiq.actor(queue_name="attribution", actor_name="jobs.sleeps")
def sleeps():
    client.rpush("begun", "sleeps")
    time.sleep(60)

@dramatiq.actor(queue_name="attribution", actor_name="jobs.cleans_up", max_retries=0, notify_shutdown=True)
def cleans_up():
    client.rpush("begun", "cleans_up")
    while True:
        time.sleep(0.1)

@dramatiq.actor(queue_name="attribution", actor_name="jobs.retried", notify_shutdown=True)
def retried():
    client.rpush("begun", "retried")
    while True:
        time.sleep(0.1)
"""


class Jobs:
    """A deployment whose workers run the jobs of one of the modules above."""

    def __init__(self, deployment: Deployment, folder: Path, code: str) -> None:
        self.deployment = deployment
        self.client = deployment.client
        self.folder = folder / "jobs"
        self.folder.mkdir()
        (self.folder / "jobs_to_stop.py").write_text(code)
        # Dramatiq's own: it sends to actors that this process does not know.
        self._producer = RedisBroker(client=self.client)
        self._producer.declare_queue(QUEUE)

    def start(self, threads: int, processes: int = 1, **environment: str) -> tuple[Popen[bytes], Path]:
        """Start ``dramatiq`` with room for one message more than it has threads in each process."""
        command = ("dramatiq", "jobs_to_stop", "--processes", str(processes), "--threads", str(threads))
        environment = {"dramatiq_queue_prefetch": str(threads + 1), **environment}
        root = str(Path(__file__).parents[2])
        log = self.deployment.start(*command, cwd=self.folder, PYTHONPATH=f"{root}:{self.folder}", **environment)
        return self.deployment.processes[-1], log

    def send(self, name: str, count: int = 1, delay: int | None = None, **options: object) -> None:
        for _ in range(count):
            self._producer.enqueue(Message(QUEUE, f"jobs.{name}", (), {}, dict(options)), delay=delay)

    def begun(self, name: str | None = None) -> int:
        every: list[Any] = self.client.lrange("begun", 0, -1)
        return len(every) if name is None else every.count(name.encode())

    def messages(self, queue: str = QUEUE) -> dict[bytes, bytes]:
        """Everything that Redis keeps of a queue, as it is."""
        found: dict[Any, Any] = self.client.hgetall(f"dramatiq:{queue}.msgs")
        return found

    def waiting(self) -> list[bytes]:
        """The Redis ids of what waits in the queue for a worker."""
        return waiting(self.client, QUEUE)


def tell_all(process: Popen[bytes]) -> None:
    """Signal every process of ``dramatiq`` at once, as Heroku does."""
    os.killpg(process.pid, signal.SIGTERM)


def gone(process: Popen[bytes]) -> bool:
    """Tell whether all its processes are."""
    try:
        process.poll()
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def names(messages: Iterable[tuple[bytes, bytes]]) -> list[str]:
    return sorted(Message.decode(data).actor_name.removeprefix("jobs.") for _, data in messages)


def test_stock_counts_or_kills_what_it_interrupts_and_leaves_the_rest(deployment: Deployment, tmp_path: Path) -> None:
    jobs = Jobs(deployment, tmp_path, STOCK)
    process, log = jobs.start(threads=3)
    for name in ("cleans_up", "retried", "sleeps"):
        jobs.send(name)
    eventually(lambda: jobs.begun() == 3, seconds=30)
    jobs.send("sleeps")
    eventually(lambda: deployment.held() == 4)
    # Told once, as by systemd: the deploy is the end of one, and counts as a failure of another.
    process.send_signal(signal.SIGTERM)
    eventually(lambda: deployment.client.zcard(f"dramatiq:{QUEUE}.XQ") == 1)
    eventually(lambda: jobs.messages(f"{QUEUE}.DQ"))
    (retried,) = jobs.messages(f"{QUEUE}.DQ").values()
    assert Message.decode(retried).options["retries"] == 1
    # It is enqueued again first, acknowledged then; and the delay queue's consumer may have it by now.
    eventually(lambda: deployment.held(QUEUE) == 2)
    # Told twice, as by Heroku, and it leaves at once, with what runs and what waits there.
    tell_all(process)
    eventually(lambda: gone(process), seconds=HOST_KILLS_AFTER)
    assert deployment.held(QUEUE) == 2, log.read_text()
    assert jobs.waiting() == []


LONG = ("waits_for_postgres", "waits_for_postgres_async", "busy", "sleeps", "awaits", "swallows", "cleans_up")


def test_ours_gives_back_all_that_it_does_not_finish(deployment: Deployment, tmp_path: Path) -> None:
    jobs = Jobs(deployment, tmp_path, OURS)
    process, log = jobs.start(threads=8, processes=2, STOP_WITHIN="10")
    jobs.send("finishes", 2, on_success="jobs.follows")
    eventually(lambda: jobs.begun() == 2, seconds=60)
    for name in LONG * 3:
        jobs.send(name, on_failure="jobs.is_told_of_a_failure")
    jobs.send("follows", 3, delay=600_000)
    # All threads run, one message more waits in each process, and the rest in the queue or for its time.
    eventually(lambda: jobs.begun() == 16 and deployment.held() == 18, seconds=30)
    eventually(lambda: deployment.statements() > 0)
    assert all(jobs.begun(name) for name in LONG)
    before = {**jobs.messages(), **jobs.messages(f"{QUEUE}.DQ")}
    assert len(before) == 2 + 21 + 3

    tell_all(process)
    # What has not begun is back before anything that runs has ended.
    eventually(lambda: deployment.held() == 16)
    assert len(jobs.waiting()) == 23 - 16
    tell_all(process)
    jobs.client.set("finish", 1)
    eventually(lambda: jobs.client.llen("cleaned") == jobs.begun("cleans_up"))
    tell_all(process)
    eventually(lambda: gone(process), seconds=HOST_KILLS_AFTER)

    text = log.read_text()
    assert deployment.held() == 0, text
    assert deployment.statements() == 0
    assert deployment.failures() == []
    after = {**jobs.messages(), **jobs.messages(f"{QUEUE}.DQ")}
    # As they were: no retry is counted. New is only what followed from the two that finished.
    assert names(before.items() & after.items()) == sorted([*LONG * 3, *["follows"] * 3])
    assert names(after.items() - before.items()) == ["follows"] * 2
    assert sorted(jobs.waiting()) == sorted(jobs.messages())
    assert jobs.client.llen("told") == 0

    # And they run again.
    jobs.client.delete("begun")
    jobs.start(threads=8, SECOND_TIME="yes")
    eventually(lambda: jobs.messages() == {}, seconds=60)
    assert {name: jobs.begun(name) for name in LONG} == dict.fromkeys(LONG, 3)
    assert jobs.begun("follows") == 2
    assert deployment.failures() == []
    assert jobs.client.llen("told") == 0


def test_it_is_in_time_while_redis_is_away(
    database: Database, redis_url: str, tmp_path: Path, deployment_on: Callable[[Database, str], Deployment]
) -> None:
    with CutWire(redis_url) as wire:
        jobs = Jobs(deployment_on(database, redis_url), tmp_path, OURS)
        process, log = jobs.start(threads=2, STOP_WITHIN="5", REDIS_URL=wire.url)
        jobs.send("busy")
        jobs.send("sleeps", 2)
        eventually(lambda: jobs.begun() == 2 and jobs.deployment.held() == 3, seconds=60)
        wire.down()
        tell_all(process)
        eventually(lambda: gone(process), seconds=HOST_KILLS_AFTER)
    assert "given back while it runs" in log.read_text()
    # It is the lease that ends.
    jobs.start(threads=3, SECOND_TIME="yes")
    eventually(lambda: jobs.messages() == {}, seconds=60)
    assert jobs.deployment.failures() == []


def test_a_job_that_heeds_no_limit_costs_its_process_and_is_left_with_it(
    deployment: Deployment, tmp_path: Path
) -> None:
    jobs = Jobs(deployment, tmp_path, OURS)
    process, log = jobs.start(threads=3, processes=2, STOP_WITHIN="5", OVERTIME="3000")
    jobs.send("heeds_no_limit")
    (culprit,) = jobs.messages()
    jobs.send("waits_for_postgres", 2)
    jobs.send("awaits", 6)
    eventually(lambda: gone(process), seconds=60)
    text = log.read_text()
    assert process.returncode == EXIT_CODE, text
    assert f"message {Message.decode(jobs.messages()[culprit]).message_id} for actor jobs.heeds_no_limit" in text
    assert "CRITICAL" in text
    # It alone is left for the lease to end, which counts it.
    (acks,) = jobs.client.scan_iter("dramatiq:__acks__.*")
    assert jobs.client.smembers(acks) == {culprit}
    assert sorted(jobs.waiting()) == sorted(set(jobs.messages()) - {culprit})
    assert len(jobs.waiting()) == 8
    assert deployment.statements() == 0
    assert deployment.failures() == []


def test_a_process_with_a_dead_thread_ends(deployment: Deployment, tmp_path: Path) -> None:
    jobs = Jobs(deployment, tmp_path, OURS)
    process, log = jobs.start(threads=3, STOP_WITHIN="5")
    jobs.send("kills_a_thread")
    eventually(lambda: gone(process), seconds=60)
    text = log.read_text()
    assert process.returncode == EXIT_CODE, text
    assert "has died: this process exits" in text
    assert deployment.held() == 0
    assert sorted(jobs.waiting()) == sorted(jobs.messages())
    assert len(jobs.waiting()) == 1
    assert deployment.failures() == []


def test_a_process_whose_main_process_is_gone_stops(deployment: Deployment, tmp_path: Path) -> None:
    jobs = Jobs(deployment, tmp_path, OURS)
    process, _ = jobs.start(threads=3, STOP_WITHIN="5")
    jobs.send("sleeps")
    eventually(lambda: jobs.begun() == 1, seconds=60)
    process.kill()
    # Itself it is a zombie by then, so what is gone are those it had started.
    eventually(lambda: gone(process), seconds=30)
    assert deployment.held() == 0
    assert len(jobs.waiting()) == 1
