"""Case 4 of the failure modes: a time limit fires, or a worker is told to stop, while a message is being ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dramatiq import Middleware, Worker
from dramatiq.middleware import SkipMessage, TimeLimitExceeded
from dramatiq.middleware.threading import raise_thread_exception

from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, ours, stock
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]


class Interrupt:
    """Interrupts the thread that asks for it, once, as ``TimeLimit`` does from its own."""

    def __init__(self) -> None:
        self.came = False

    def __call__(self, *_: Any, **__: Any) -> None:
        if self.came or threading.current_thread().__class__.__name__ != "WorkerThread":
            return
        self.came = True
        raise_thread_exception(threading.get_ident(), TimeLimitExceeded)
        # It comes between two instructions.
        for _n in range(1_000):
            pass
        raise AssertionError("it did not come")


def in_hook(name: str, place: int | None = None) -> Callable[[Side, Interrupt], None]:
    """Interrupt a hook: of a middleware that is first in the list (0), or last (None)."""

    def arrange(one: Side, interrupt: Interrupt) -> None:
        middleware = type("Interrupted", (Middleware,), {name: interrupt.__call__})()
        one.broker.middleware.insert(len(one.broker.middleware) if place is None else place, middleware)

    return arrange


def in_log(words: str) -> Callable[[Side, Interrupt], None]:
    """Interrupt Dramatiq while it logs something between two hooks."""

    def arrange(one: Side, interrupt: Interrupt) -> None:
        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if words in record.getMessage():
                    interrupt()

        logging.getLogger("dramatiq").addHandler(Handler())

    return arrange


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    logger = logging.getLogger("dramatiq")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


class Skips(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.args == ("skip",):
            raise SkipMessage("not this one")


class Jobs:
    """A job that ends in each of the ways there are, and what follows from its success."""

    def __init__(self, one: Side) -> None:
        self.ran: list[str] = []
        self.announced: list[str] = []
        # A middleware of a user's, after which all of ours come in after hooks.
        one.broker.add_middleware(Skips())

        def job(how: str) -> str:
            self.ran.append(how)
            if how == "fail":
                raise ValueError("x")
            return how

        self.announce = one.actor(lambda *_: self.announced.append("announced"))
        self.job = one.actor(job, max_retries=1, min_backoff=1, max_backoff=1)
        self._one = one

    def send(self, how: str) -> None:
        options = {"on_success": self.announce.actor_name} if how == "succeed" else {}
        self._one.send(self.job, how, **options)


def worker_threads_live(worker: Worker) -> bool:
    return all(thread.is_alive() for thread in worker.workers)


FAILING = {
    "as the retry is enqueued": in_hook("before_enqueue"),
    "once the retry is enqueued": in_hook("after_enqueue"),
}
ANY = {
    "in the first after hook": in_hook("after_process_message"),
    "in the last after hook": in_hook("after_process_message", 0),
    "between the middleware's": in_hook("after_process_message", 8),
    "in the first hook": in_hook("before_process_message", 0),
    "in the last hook": in_hook("before_process_message"),
    "before it is acknowledged": in_hook("before_ack", 0),
    "before it is rejected": in_hook("before_nack", 0),
    "once it is acknowledged": in_hook("after_ack", 0),
    "once it is rejected": in_hook("after_nack", 0),
}
POINTS = [
    *(("fail", name) for name in [*FAILING, *ANY, "Failed to process message"]),
    *(("succeed", name) for name in [*ANY, "once the next is enqueued"]),
    *(("skip", name) for name in ["was skipped", "in the first after skip hook", "in the last after skip hook"]),
]
ARRANGE = {
    **FAILING,
    **ANY,
    "once the next is enqueued": in_hook("after_enqueue"),
    "Failed to process message": in_log("Failed to process message"),
    "was skipped": in_log("was skipped"),
    "in the first after skip hook": in_hook("after_skip_message"),
    "in the last after skip hook": in_hook("after_skip_message", 0),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestStock:
    @pytest.mark.parametrize(
        ("how", "where"),
        [
            ("fail", "as the retry is enqueued"),
            ("fail", "Failed to process message"),
            ("fail", "in the first after hook"),
            ("skip", "was skipped"),
        ],
    )
    def test_the_message_and_the_thread_are_lost(self, side: Make, redis_url: str, how: str, where: str) -> None:
        one = side(stock, redis_url)
        interrupt = Interrupt()
        jobs = Jobs(one)
        ARRANGE[where](one, interrupt)
        jobs.send(how)
        with one.working(threads=1) as worker:
            eventually(lambda: not worker_threads_live(worker))
            assert kept(one.client) == in_acks(one.client) == one.client.zcard(f"dramatiq:{QUEUE}.XQ") == 0
        assert interrupt.came
        assert jobs.ran == ([] if how == "skip" else [how])


@pytest.mark.parametrize(("how", "where"), POINTS)
def test_ours_ends_it_once_and_goes_on(side: Make, redis_url: str, how: str, where: str) -> None:
    one = side(ours, redis_url)
    interrupt = Interrupt()
    jobs = Jobs(one)
    ARRANGE[where](one, interrupt)
    jobs.send(how)
    with one.working(threads=1) as worker:
        eventually(lambda: kept(one.client) == 0)
        assert worker_threads_live(worker)
        after = len(jobs.announced)
        jobs.send("succeed")
        eventually(lambda: len(jobs.announced) > after)
        eventually(lambda: kept(one.client) == 0)
        assert worker_threads_live(worker)
    never_there = (how, where) in {
        ("succeed", "before it is rejected"),
        ("succeed", "once it is rejected"),
    }
    assert interrupt.came is not never_there
    assert in_acks(one.client) == 0
    assert {f.tenant_id for f in one.failures} <= {TENANT}
    # Rejecting may be begun twice: the table takes the second for the first.
    rows = {(f.task_id, f.delivery_id) for f in one.failures}
    if how == "succeed":
        # A row and nothing that follows from its success, or no row and all of it.
        assert len(rows) + len(jobs.announced) == 2
        assert 1 <= jobs.ran.count("succeed") <= 3
    else:
        assert len(rows) == 1
        assert jobs.ran.count(how) <= 3
