"""The lease on what a process holds, script by script."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from middleware.heartbeat import Heartbeat
from middleware.lua_scripts import Scripts
from middleware.process_facts import process_facts
from tests.integration.nothing_lost import QUEUE, Side, in_acks, kept, ours
from tests.waiting import eventually

GRACE = "dramatiq:__dramaturg__.grace"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def broker(client: redis.Redis, name: str, *, lease: int = 200, grace: int = 100) -> Heartbeat:
    """A broker that says it lives only when told to."""
    heartbeat = Heartbeat(Scripts(client, "dramatiq"), name, lease=lease, grace=grace, interval=3600)
    heartbeat.cover("q")
    return heartbeat


def give(client: redis.Redis, name: str, count: int = 3) -> None:
    """Let a broker hold messages, and have one more on its way."""
    for n in range(count):
        client.hset("dramatiq:q.msgs", f"{name}{n}", "{}")
        client.sadd(f"dramatiq:__acks__.{name}.q", f"{name}{n}")
    client.hset("dramatiq:q.msgs", f"{name}-taking", "{}")
    client.rpush(f"dramatiq:__dramaturg__.taking.{name}.q", f"{name}-taking")


def queued(client: redis.Redis) -> int:
    return int(client.llen("dramatiq:q"))


def test_what_a_silent_broker_holds_goes_back_and_what_a_living_one_holds_does_not(client: redis.Redis) -> None:
    living, silent = broker(client, "living"), broker(client, "silent")
    give(client, "living")
    give(client, "silent")

    def back() -> bool:
        living.beat()
        return queued(client) > 0

    eventually(back)
    assert queued(client) == 4
    assert client.scard("dramatiq:__acks__.living.q") == 3
    assert client.exists("dramatiq:__acks__.silent.q", "dramatiq:__dramaturg__.taking.silent.q") == 0
    living.stop()
    silent.stop()


def test_what_was_done_does_not_come_back(client: redis.Redis) -> None:
    one, silent = broker(client, "one"), broker(client, "silent")
    give(client, "silent", 1)
    client.hdel("dramatiq:q.msgs", "silent0")

    def back() -> bool:
        one.beat()
        return queued(client) > 0

    eventually(back)
    assert client.lrange("dramatiq:q", 0, -1) == [b"silent-taking"]
    one.stop()
    silent.stop()


def test_after_silence_of_all_everybody_gets_time_to_come_back(client: redis.Redis) -> None:
    first = broker(client, "first", lease=200, grace=60_000)
    second = broker(client, "second", lease=200, grace=60_000)
    give(client, "second")
    # Nobody says anything for longer than a lease, as when Redis is away.
    alive = "dramatiq:__dramaturg__.alive"
    for name in ("first", "second"):
        client.zincrby(alive, -10_000, name)
    first.beat()
    assert queued(client) == 0
    assert client.pttl(GRACE) > 0
    second.beat()
    client.delete(GRACE)
    first.beat()
    assert queued(client) == 0
    first.stop()
    second.stop()


def test_leaving_gives_back_at_once(client: redis.Redis) -> None:
    one = broker(client, "one")
    give(client, "one")
    one.stop()
    assert queued(client) == 4
    # For an hour, because a wait may outlive its process.
    assert list(client.scan_iter("*one*")) == [b"dramatiq:__dramaturg__.queues.one"]
    assert client.zcard("dramatiq:__dramaturg__.alive") == 0


class TestAFrozenProcessThatWakes:
    """21: it fetches before it knows that it was given up."""

    @pytest.fixture
    def frozen(self, side: Callable[[Callable[[str], Side], str], Side], redis_url: str) -> Any:
        one = side(ours, redis_url).broker
        one._heartbeat._interval = 3600  # type: ignore[attr-defined]
        return one

    @pytest.fixture
    def give_up(
        self, frozen: Any, side: Callable[[Callable[[str], Side], str], Side], redis_url: str, client: redis.Redis
    ) -> Callable[[], None]:
        other: Any = side(ours, redis_url).broker
        other._heartbeat.cover(QUEUE)

        def give_up() -> None:
            client.zadd("dramatiq:__dramaturg__.alive", {frozen.broker_id: 0})
            other._heartbeat.beat()
            assert client.zscore("dramatiq:__dramaturg__.alive", frozen.broker_id) is None

        return give_up

    def put(self, client: redis.Redis) -> None:
        client.hset(f"dramatiq:{QUEUE}.msgs", "one", "no message, but one to end")
        client.rpush(f"dramatiq:{QUEUE}", "one")

    def test_what_it_fetches_is_its_own(self, frozen: Any, give_up: Callable[[], None], client: redis.Redis) -> None:
        consumer = frozen.consume(QUEUE, prefetch=2, timeout=100)
        give_up()
        self.put(client)
        message = next(consumer)
        # Were it killed now, somebody would give the message back.
        assert client.zscore("dramatiq:__dramaturg__.alive", frozen.broker_id) is not None
        frozen._heartbeat.beat()
        assert frozen.still_holds(message)
        consumer.nack(message)
        assert kept(client) == in_acks(client) == 0

    def test_what_comes_to_it_again_is_told_from_what_it_had(
        self, frozen: Any, give_up: Callable[[], None], client: redis.Redis
    ) -> None:
        consumer = frozen.consume(QUEUE, prefetch=2, timeout=100)
        self.put(client)
        before = next(consumer)
        give_up()
        again = next(consumer)
        assert (before.redis_id, frozen.still_holds(before)) == (again.redis_id, False)
        consumer.nack(before)
        assert frozen.still_holds(again)
        # A new consumer, as after any error of Redis, gives back what nobody here holds.
        frozen.consume(QUEUE, prefetch=2, timeout=100)
        assert in_acks(client) == 1
        consumer.nack(again)
        assert kept(client) == in_acks(client) == 0

    def test_a_suspect_and_what_is_due_are_taken_under_a_lease_only(
        self, frozen: Any, give_up: Callable[[], None], client: redis.Redis
    ) -> None:
        frozen.consume(QUEUE, prefetch=2, timeout=100)
        for script in ("take_suspect", "fetch_due"):
            before = frozen._heartbeat.epoch
            give_up()
            epoch, _ = frozen.fetch(script, QUEUE, 1)
            assert epoch == frozen._heartbeat.epoch > before


class TestLeavings:
    def test_what_came_into_the_hands_of_one_that_had_left(self, client: redis.Redis) -> None:
        broker(client, "gone").stop()
        client.hset("dramatiq:q.msgs", "late", "data")
        # A wait that outlived its process.
        client.rpush("dramatiq:__dramaturg__.taking.gone.q", "late")
        broker(client, "lives")
        assert client.lrange("dramatiq:q", 0, -1) == [b"late"]

    def test_leavings_that_are_broken_cost_nobody_a_lease(self, client: redis.Redis) -> None:
        broker(client, "gone")
        give(client, "gone")
        client.delete("dramatiq:__dramaturg__.taking.gone.q")
        client.set("dramatiq:__dramaturg__.taking.gone.q", "not a list")
        client.zadd("dramatiq:__dramaturg__.alive", {"gone": 1})
        lives = broker(client, "lives")
        lives.beat()
        assert lives.holds(lives.epoch)

    def test_a_start_that_was_not_noted_is_with_the_next_sign_of_life(self, client: redis.Redis) -> None:
        closed: list[int] = []
        running = {b"q:one": 5, b"q:ended": 6}
        lives = Heartbeat(
            Scripts(client, "dramatiq"),
            "lives",
            lease=200,
            grace=100,
            interval=3600,
            running=lambda: running,
            on_missing=lambda: closed.append(1),
        )
        client.sadd("dramatiq:__acks__.lives.q", "one")
        lives.cover("q")
        assert client.hgetall("dramatiq:__dramaturg__.started.lives") == {b"q:one": b"5"}
        lives.beat()
        assert closed == [1]

    def test_after_it_has_left_a_process_holds_nothing(self, client: redis.Redis) -> None:
        one = broker(client, "one")
        assert one.holds(one.epoch)
        one.stop()
        assert not one.holds(one.epoch)
        assert not one.is_fresh()
        one.beat()
        assert client.zscore("dramatiq:__dramaturg__.alive", "one") is None

    def test_who_was_told_to_stop_and_killed_leaves_no_suspects(self, client: redis.Redis) -> None:
        facts = process_facts("w", stopping=True)
        gone = Heartbeat(Scripts(client, "dramatiq"), "gone", lease=200, grace=100, interval=3600, facts=lambda: facts)
        gone.cover("q")
        client.hset("dramatiq:q.msgs", "ran", "data")
        client.sadd("dramatiq:__acks__.gone.q", "ran")
        client.hset("dramatiq:__dramaturg__.started.gone", "q:ran", 1)
        client.zadd("dramatiq:__dramaturg__.alive", {"gone": 1})
        lives = broker(client, "lives")
        # At first it finds that nobody has beaten for long, and lets all come back in.
        eventually(lambda: lives.beat() or client.llen("dramatiq:q"))  # type: ignore[func-returns-value]
        assert client.lrange("dramatiq:q", 0, -1) == [b"ran"]
        assert client.smembers("dramatiq:__dramaturg__.begun_before") == {b"q:ran"}
        assert client.exists("dramatiq:__dramaturg__.crashes", "dramatiq:__dramaturg__.suspects.q") == 0

    def test_how_it_ended_is_evidence_and_of_one_that_left_nothing_it_is_not_kept(self, client: redis.Redis) -> None:
        run = Scripts(client, "dramatiq")
        gone = Heartbeat(run, "gone", lease=200, grace=100, interval=3600, facts=lambda: process_facts("w"))
        gone.cover("q")
        client.hset("dramatiq:q.msgs", "ran", "data")
        client.sadd("dramatiq:__acks__.gone.q", "ran")
        client.hset("dramatiq:__dramaturg__.started.gone", "q:ran", 1)
        assert run("obituary", "gone", '{"status": -9, "peak": 5}') == 1
        client.zadd("dramatiq:__dramaturg__.alive", {"gone": 1})
        lives = broker(client, "lives")
        eventually(lambda: lives.beat() or client.llen("dramatiq:__dramaturg__.suspects.q"))  # type: ignore[func-returns-value]
        (loss,) = json.loads(client.hget("dramatiq:__dramaturg__.crashes", "q:ran") or "")
        assert loss["facts"]["end"] == {"status": -9, "peak": 5}
        assert loss["facts"]["worker"].startswith("w/")
        assert run("obituary", "gone", '{"status": -9, "peak": 5}') == 0
        assert not client.hexists("dramatiq:__dramaturg__.facts", "gone")


def test_a_connection_has_its_socket_where_starts_are_sent(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        connection: Any = client.connection_pool.make_connection()
        connection.connect()
        try:
            assert type(connection._sock) is socket.socket
        finally:
            connection.disconnect()
