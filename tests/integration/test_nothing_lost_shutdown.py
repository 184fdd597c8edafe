"""Cases 8, 11 and 22 of the failure modes: a worker stops, and what becomes of the jobs that this interrupts."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import AsyncIO, Shutdown
from dramatiq.middleware.threading import raise_thread_exception

from middleware.graceful_shutdown import GracefulShutdown
from middleware.supervision import EXIT_CODE, Supervision
from tests.integration.nothing_lost import QUEUE, Side, in_acks, kept, ours, stock
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def messages(client: redis.Redis) -> dict[Any, Any]:
    found: dict[Any, Any] = client.hgetall(f"dramatiq:{QUEUE}.msgs")
    return found


def waiting(client: redis.Redis) -> int:
    return int(client.llen(f"dramatiq:{QUEUE}"))


def release(worker: Worker) -> None:
    """Let go the threads that wait for an event loop which has died."""
    for thread in worker.workers:
        assert thread.ident is not None
        raise_thread_exception(thread.ident, Shutdown)


class Interruptible:
    """A job that runs until it is interrupted, and says what it is interrupted by."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.came: list[str] = []

    def __call__(self, *_: object) -> None:
        self.began.set()
        end = threading.Event()
        try:
            while True:
                end.wait(0.01)
        except Shutdown as e:
            self.came.append(type(e).__name__)
            raise


def stop_while(side: Side, job: threading.Event) -> None:
    with side.working():
        assert job.wait(15)


class TestAnActorThatAsksForIt:
    def test_of_stock_is_dead_by_the_deploy(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(stock, redis_url)
        job = Interruptible()
        one.send(one.actor(job, notify_shutdown=True))
        stop_while(one, job.began)
        assert job.came == ["Shutdown"]
        assert client.zcard(f"dramatiq:{QUEUE}.XQ") == 1
        assert waiting(client) == in_acks(client) == 0

    @pytest.mark.parametrize("options", [{}, {"max_retries": 3}, {"throws": Shutdown}, {"retry_when": lambda *_: True}])
    def test_of_ours_is_back_as_it_was(
        self, side: Make, redis_url: str, client: redis.Redis, options: dict[str, Any]
    ) -> None:
        one = side(ours, redis_url)
        job, told = Interruptible(), list[object]()
        after = one.actor(lambda *of: told.append(of))
        actor = one.actor(job, notify_shutdown=True, on_retry_exhausted=after.actor_name, **options)
        one.send(actor, on_failure=after.actor_name, on_success=after.actor_name)
        before = messages(client)
        stop_while(one, job.began)
        assert job.came == ["Shutdown"]
        assert messages(client) == before
        assert waiting(client) == 1
        assert in_acks(client) == 0
        assert one.failures == []

    def test_may_go_on_to_its_end(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)
        job, done = Interruptible(), list[str]()

        def finishes() -> None:
            try:
                job()
            except Shutdown:
                done.append("finished")

        one.send(one.actor(finishes, notify_shutdown=True))
        stop_while(one, job.began)
        assert done == ["finished"]
        assert kept(client) == 0
        assert one.failures == []

    def test_gets_its_message_back_with_whatever_it_raises_instead(
        self, side: Make, redis_url: str, client: redis.Redis
    ) -> None:
        one = side(ours, redis_url)
        job = Interruptible()

        def wraps() -> None:
            try:
                job()
            except Shutdown as e:
                raise ValueError("interrupted") from e

        one.send(one.actor(wraps, notify_shutdown=True))
        stop_while(one, job.began)
        assert waiting(client) == 1
        assert one.failures == []

    def test_goes_back_though_redis_is_away_just_then(
        self, side: Make, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = side(ours, redis_url)
        job = Interruptible()
        run = one.broker.run  # type: ignore[attr-defined]

        def fails(name: str, *arguments: Any) -> Any:
            if name == "requeue":
                raise ConnectionClosed("away")
            return run(name, *arguments)

        monkeypatch.setattr(one.broker, "run", fails)
        one.send(one.actor(job, notify_shutdown=True))
        stop_while(one, job.began)
        assert in_acks(client) == 1
        one.broker.close()
        assert in_acks(client) == 0
        assert waiting(client) == 1


class TestShutdownThatAnActorRaisesItself:
    def test_gives_it_back_while_the_worker_stops(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)
        began, stopping = threading.Event(), threading.Event()

        class Tells(dramatiq.Middleware):
            def before_worker_shutdown(self, *_: Any) -> None:
                stopping.set()

        # Behind the one that notes that the worker stops.
        one.broker.add_middleware(Tells(), after=GracefulShutdown)

        def job() -> None:
            began.set()
            assert stopping.wait(15)
            raise Shutdown

        one.send(one.actor(job))
        stop_while(one, began)
        assert waiting(client) == 1
        assert one.failures == []

    def test_is_a_failure_otherwise(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)

        def job() -> None:
            raise Shutdown

        one.send(one.actor(job))
        with one.working():
            eventually(lambda: one.failures)
            eventually(lambda: kept(client) == 0)
        assert [failure.exception_class for failure in one.failures] == ["dramatiq.middleware.shutdown.Shutdown"]


def test_what_waits_in_a_worker_that_stops_is_not_begun(side: Make, redis_url: str, client: redis.Redis) -> None:
    one = side(ours, redis_url)
    ran: list[int] = []
    actor = one.actor(ran.append)
    with one.working() as worker:
        for thread in worker.workers:
            thread.pause()
        for thread in worker.workers:
            thread.paused_event.wait()
        for n in range(4):
            one.send(actor, n)
        eventually(lambda: worker.work_queue.qsize() == 4)
        # As a signal that comes while a thread takes a message.
        one.broker.emit_before("worker_shutdown", worker)
        for thread in worker.workers:
            thread.resume()
        eventually(lambda: worker.work_queue.qsize() == 0)
        eventually(lambda: waiting(client) + in_acks(client) == 4)
    assert ran == []
    assert waiting(client) == 4
    assert one.failures == []


class TestAsyncActors:
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_stock_loses_its_event_loop_to_an_exit(self, side: Make, redis_url: str) -> None:
        one = side(stock, redis_url)
        one.broker.add_middleware(AsyncIO())

        async def exits() -> None:
            sys.exit(1)

        one.send(one.actor(exits))
        with one.working() as worker:
            loop = get_event_loop_thread()
            assert loop is not None
            eventually(lambda: not loop.is_alive())
            assert in_acks(one.client) == 1
            release(worker)

    @pytest.mark.parametrize("where", ["in the coroutine", "in a task of it", "in a task that nobody awaits"])
    @pytest.mark.parametrize("what", [SystemExit, KeyboardInterrupt])
    def test_ours_keeps_its_event_loop(
        self, side: Make, redis_url: str, client: redis.Redis, where: str, what: type[BaseException]
    ) -> None:
        one = side(ours, redis_url)
        began, go_on, done = threading.Event(), threading.Event(), list[str]()

        async def neighbour() -> None:
            began.set()
            while not go_on.is_set():
                await asyncio.sleep(0.01)
            done.append("neighbour")

        async def raises() -> None:
            raise what

        async def exits() -> None:
            assert began.is_set()
            if where == "in the coroutine":
                raise what
            task = asyncio.create_task(raises())
            if where == "in a task of it":
                await task
            await asyncio.sleep(0.01)
            assert isinstance(task.exception(), what)

        one.send(one.actor(neighbour))
        actor = one.actor(exits)
        with one.working():
            assert began.wait(15)
            one.send(actor)
            eventually(lambda: kept(client) == 1)
            go_on.set()
            eventually(lambda: done == ["neighbour"])
            one.send(one.actor(neighbour))
            eventually(lambda: done == ["neighbour"] * 2)
            eventually(lambda: kept(client) == 0)
        failed = [] if where == "in a task that nobody awaits" else [what.__name__]
        assert [failure.exception_class for failure in one.failures] == failed

    def test_ours_gives_it_back_when_its_coroutine_has_ended(
        self, side: Make, redis_url: str, client: redis.Redis
    ) -> None:
        one = side(ours, redis_url)
        began, cancelled, clean_up, done = (threading.Event() for _ in range(4))

        async def job() -> None:
            began.set()
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
                while not clean_up.is_set():
                    await asyncio.sleep(0.01)
                done.set()

        one.send(one.actor(job, notify_shutdown=True))
        with one.working() as worker:
            assert began.wait(15)
            stopping = threading.Thread(target=worker.stop)
            stopping.start()
            assert cancelled.wait(15)
            # Longer than Dramatiq waits for a coroutine to heed its cancellation.
            stopping.join(1.5)
            assert in_acks(client) == 1
            clean_up.set()
            stopping.join()
            assert done.is_set()
        assert waiting(client) == 1
        assert one.failures == []


def test_a_process_whose_event_loop_dies_ends(
    side: Make, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is for good, and this process goes on.
    monkeypatch.setattr("db.session.close_for_good", lambda _: None)
    one = side(ours, redis_url)
    supervision = next(m for m in one.broker.middleware if isinstance(m, Supervision))
    statuses: list[int] = []
    supervision._exit_process = statuses.append
    supervision.after_process_boot(one.broker)
    began = threading.Event()

    async def job() -> None:
        began.set()
        await asyncio.sleep(60)

    one.send(one.actor(job))
    with one.working() as worker:
        assert began.wait(15)
        loop = get_event_loop_thread()
        assert loop is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.loop, "_run_once", lambda: 1 / 0)
            loop.loop.call_soon_threadsafe(lambda: None)
            eventually(lambda: not loop.is_alive())
        eventually(lambda: statuses == [EXIT_CODE])
        assert waiting(client) == 1
        assert in_acks(client) == 0
        release(worker)


def test_a_process_that_has_left_fetches_nothing_and_does_not_try_for_ever(side: Make, redis_url: str) -> None:
    one = side(ours, redis_url)
    broker: Any = one.broker
    broker.consume(QUEUE, 1, 100)
    one.send(one.actor(lambda: None))
    broker.give_back_all()
    with pytest.raises(ConnectionClosed, match="this process has left"):
        broker.fetch("fetch", QUEUE, 1)
    assert kept(one.client) == 1
