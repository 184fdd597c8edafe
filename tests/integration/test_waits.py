"""Who waits in Redis for long, with nothing to do, is there at once for all that ends a wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from dramatiq import Worker
from dramatiq.worker import ConsumerThread

from middleware.lossless_consumer import LosslessConsumer
from middleware.waits import Waits
from tests.integration.nothing_lost import QUEUE, Side, in_acks, kept, ours
from tests.waiting import eventually

#: Milliseconds: nobody looks again by himself before a test is over.
NEVER = 600_000


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def one(side: Callable[[Callable[[str], Side], str], Side], redis_url: str) -> Side:
    return side(ours, redis_url)


def waiting(client: redis.Redis) -> int:
    """How many wait."""
    found: Any = client.info("clients")
    return int(found["blocked_clients"])


def said(client: redis.Redis, command: str) -> int:
    """How often Redis was told it."""
    found: Any = client.info("commandstats")
    return int(found.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@contextmanager
def consuming(one: Side, client: redis.Redis) -> Iterator[list[ConsumerThread]]:
    """A worker whose two consumers wait."""
    worker = Worker(one.broker, worker_timeout=20, worker_threads=1, queues={QUEUE})
    worker.start()
    try:
        eventually(lambda: waiting(client) == 2)
        yield list(worker.consumers.values())
    finally:
        worker.stop(timeout=10_000)


class TestWaits:
    @pytest.fixture
    def waits(self, client: redis.Redis, redis_url: str) -> Iterator[Waits]:
        with redis.Redis.from_url(redis_url) as waiting:
            yield Waits(waiting, client)

    def begin(self, waits: Waits, queue: str) -> tuple[threading.Thread, list[Any]]:
        found: list[Any] = []
        words = ("BLMOVE", queue, f"{queue}.taken", "LEFT", "RIGHT", NEVER)
        thread = threading.Thread(target=lambda: found.append(waits.wait(queue, *words)), daemon=True)
        thread.start()
        return thread, found

    def test_one_ends_and_no_other(self, waits: Waits, client: redis.Redis) -> None:
        threads = [self.begin(waits, queue) for queue in ("a", "b")]
        eventually(lambda: waiting(client) == 2)
        waits.end("a")
        threads[0][0].join(15)
        assert (threads[0][1], threads[1][1], waiting(client)) == ([None], [], 1)
        # Nothing is moved for who waits no more.
        client.rpush("a", "1")
        client.rpush("b", "1")
        threads[1][0].join(15)
        assert (threads[1][1], client.llen("a"), client.lrange("b.taken", 0, -1)) == ([b"1"], 1, [b"1"])

    def test_one_that_has_not_begun_ends_too(self, waits: Waits, client: redis.Redis) -> None:
        for _ in range(2):
            waits.end("a")
            thread, found = self.begin(waits, "a")
            thread.join(15)
            assert found == [None]
        # And only that one.
        thread, found = self.begin(waits, "a")
        eventually(lambda: waiting(client) == 1)
        client.rpush("a", "1")
        thread.join(15)
        assert found == [b"1"]

    def test_whenever_it_comes(self, waits: Waits, client: redis.Redis) -> None:
        for n in range(100):
            thread, _ = self.begin(waits, "a")
            if n % 2:
                client.rpush("a", n)
            waits.end("a")
            thread.join(15)
            assert not thread.is_alive()
            # One that comes after the end stays where it is.
            assert client.llen("a") + client.llen("a.taken") == n % 2
            client.delete("a", "a.taken")
            # What was told when it was over would end the next.
            waits._told.clear()

    def test_two_at_one_queue(self, waits: Waits, client: redis.Redis) -> None:
        threads = [self.begin(waits, "a") for _ in range(2)]
        eventually(lambda: waiting(client) == 2)
        client.rpush("a", "1")
        eventually(lambda: sum(not thread.is_alive() for thread, _ in threads) == 1)
        waits.end("a")
        for thread, _ in threads:
            thread.join(15)
        assert sorted(str(found) for _, found in threads) == ["[None]", "[b'1']"]

    def test_a_number_is_its_connections(self, waits: Waits, client: redis.Redis) -> None:
        for _ in range(2):
            thread, found = self.begin(waits, "a")
            eventually(lambda: waiting(client) == 1)
            waits.end("a")
            thread.join(15)
            assert found == [None]
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


class TestConsumers:
    @pytest.fixture(autouse=True)
    def long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("middleware.lossless_consumer.WAIT_TIMES", NEVER)
        monkeypatch.setattr("middleware.lossless_consumer.WAIT_AT_MOST", float(NEVER))
        monkeypatch.setattr("middleware.heartbeat.Heartbeat.stands_for", lambda _: float(NEVER))
        monkeypatch.setattr("middleware.waits.SOONER", -float(NEVER))

    @pytest.mark.parametrize("told", ["stop", "pause"])
    def test_they_heed_what_dramatiq_tells_them(self, one: Side, client: redis.Redis, told: str) -> None:
        with consuming(one, client) as consumers:
            for thread in consumers:
                getattr(thread, told)()
            for thread in consumers:
                if told == "stop":
                    thread.join(15)
                    assert not thread.is_alive()
                else:
                    assert thread.paused_event.wait(15)

    def test_what_another_sorted_who_is_gone_starts_when_it_is_due(self, one: Side, client: redis.Redis) -> None:
        ran: list[int] = []
        job = one.actor(ran.append)
        with consuming(one, client):
            message = one.broker.enqueue(job.message_with_options(args=(1,), tenant_id=f"{0xA:032x}"))
            eventually(lambda: ran == [1])
            eventually(lambda: kept(client) == 0 and waiting(client) == 2)
            (seconds, _), name = client.time(), f"{QUEUE}.DQ"
            later = message.copy(queue_name=name, args=(2,), options={"redis_message_id": "2", "eta": seconds * 1_000})
            client.hset(f"dramatiq:{name}.msgs", "2", later.encode())
            client.zadd(f"dramatiq:__dramaturg__.due.{name}", {"2": seconds * 1_000})
            eventually(lambda: ran == [1, 2])
            eventually(lambda: kept(client) == 0)

    def test_what_is_to_run_alone_is_seen(self, one: Side, client: redis.Redis) -> None:
        ran: list[int] = []
        job = one.actor(ran.append)
        with consuming(one, client):
            message = job.message_with_options(args=(1,), tenant_id=f"{0xA:032x}")
            client.hset(f"dramatiq:{QUEUE}.msgs", "1", message.copy(options={"redis_message_id": "1"}).encode())
            client.hset("dramatiq:__dramaturg__.crashes", f"{QUEUE}:1", '[{"started":1,"silent":2,"facts":{}}]')
            client.rpush(f"dramatiq:__dramaturg__.suspects.{QUEUE}", "1")
            eventually(lambda: ran == [1])
            eventually(lambda: kept(client) == 0)

    def test_what_was_fetched_ahead_of_slow_jobs_goes_back_though_no_more_come(
        self, one: Side, client: redis.Redis
    ) -> None:
        go_on, ran = threading.Event(), list[int]()

        def job(n: int) -> None:
            if n >= 3_000:
                go_on.wait(60)
            ran.append(n)

        actor = one.actor(job)
        one.broker.enqueue_many(  # type: ignore[attr-defined]
            actor.message_with_options(args=(n,), tenant_id=f"{0xA:032x}") for n in range(3_020)
        )
        with one.working(threads=2):
            eventually(lambda: len(ran) == 3_000)
            # Two run, and two are there for when they end.
            eventually(lambda: in_acks(client) <= 4)
            assert kept(client) == 20
            go_on.set()
            eventually(lambda: kept(client) == 0)

    def test_nor_is_it_fetched_again_while_jobs_are_slow(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        go_on, gave_back, held = threading.Event(), threading.Event(), list[int]()
        give_back, reckon = LosslessConsumer._give_back, LosslessConsumer._reckon

        def note_back(consumer: LosslessConsumer, redis_ids: Iterable[str]) -> None:
            give_back(consumer, redis_ids)
            gave_back.set()

        def note_held(consumer: LosslessConsumer) -> None:
            if gave_back.is_set() and not consumer._delayed:
                held.append(consumer._holdings.room_taken)
            reckon(consumer)

        monkeypatch.setattr(LosslessConsumer, "_give_back", note_back)
        monkeypatch.setattr(LosslessConsumer, "_reckon", note_held)

        def job(n: int) -> None:
            if n >= 2_000:
                go_on.wait(60)

        actor = one.actor(job)
        one.broker.enqueue_many(  # type: ignore[attr-defined]
            actor.message_with_options(args=(n,), tenant_id=f"{0xA:032x}") for n in range(3_000)
        )
        with one.working(threads=2):
            try:
                eventually(lambda: len(held) >= 4)
                assert max(held) <= 4
            finally:
                go_on.set()


def test_an_answer_that_is_waited_for_less_long_than_a_message(
    client: redis.Redis,
    redis_url: str,
    side: Callable[[Callable[[str], Side], str], Side],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("middleware.lossless_consumer.WAIT_TIMES", NEVER)
    one = side(ours, f"{redis_url}?socket_timeout=1.1")
    consumers: dict[str, Any] = one.broker._consumers  # type: ignore[attr-defined]
    with consuming(one, client):
        first = dict(consumers)
        eventually(lambda: said(client, "blmove") >= 8)
        assert consumers == first


@pytest.mark.parametrize("rights", ["", "+client|unblock -client|id"])
def test_who_may_end_none_waits_as_long_as_dramatiq_says(
    rights: str, client: redis.Redis, redis_url: str, side: Callable[[Callable[[str], Side], str], Side]
) -> None:
    client.execute_command(
        "ACL", "SETUSER", "guest", "reset", "on", ">guest", *["~*", "+@all", "-@admin", "-@dangerous", *rights.split()]
    )
    try:
        one = side(ours, redis_url.replace("redis://", "redis://guest:guest@"))
        assert one.broker.may_wait(5) == 0  # type: ignore[attr-defined]
        ran: list[int] = []
        with one.working():
            one.send(one.actor(ran.append), 1)
            eventually(lambda: ran == [1])
    finally:
        client.execute_command("ACL", "DELUSER", "guest")
