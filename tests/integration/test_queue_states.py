"""What is said of queues."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.integration.nothing_lost import QUEUE, TENANT, Side, ours, put
from tests.servers import free_port
from tests.waiting import eventually
from worker.queue_admin import QueueState, count_messages, list_queues, pause, pauses, resume
from worker.queues import Queue


@pytest.fixture
def make(side: Callable[..., Side], redis_url: str) -> Callable[[], Side]:
    return lambda: side(ours, redis_url)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def by_name(client: redis.Redis, *declared: str) -> dict[str, QueueState]:
    return {state.name: state for state in list_queues(client, declared)}


def now(client: redis.Redis) -> int:
    found: Any = client.time()
    return int(found[0] * 1000 + found[1] / 1000)


def test_declared_ones_are_there_though_empty(client: redis.Redis) -> None:
    states = list_queues(client, ("emails", QUEUE))
    assert [state.name for state in states] == [*Queue, "emails"]
    assert {state for state in states if state.name == "llm"} == {QueueState("llm", 0, 0, 0, 0, None, None, (), 0)}
    assert all(state.empty for state in states)
    # Looking leaves nothing behind.
    assert client.keys("*") == []


def test_others_that_hold_messages_are_paused_or_are_consumed(make: Callable[[], Side], client: redis.Redis) -> None:
    put(client, "one", "data", "b-strange")
    put(client, "two", "data", "a-delayed.DQ")
    put(client, "dead", "data", "llm.XQ")
    pause(client, "c-paused", by="ann")
    client.sadd("dramatiq:__dramaturg__.queues.gone", "d-gone")
    one: Any = make().broker
    one._heartbeat.cover("e-consumed")
    states = list_queues(client)
    assert [state.name for state in states] == [*Queue, "a-delayed", "b-strange", "c-paused", "e-consumed"]
    assert [state.delayed for state in states[-4:]] == [1, 0, 0, 0]
    assert [state.waiting for state in states[-4:]] == [0, 1, 0, 0]


def test_every_message_is_counted_once_wherever_it_is(make: Callable[[], Side], client: redis.Redis) -> None:
    one: Any = make()
    broker = one.broker
    job = one.actor(lambda: None, actor_name="test.job")
    for _ in range(4):
        one.send(job)
    for delay in (1, 10**7, 10**7):
        one.send(job, delay=delay)
    assert (by_name(client)[QUEUE].waiting, by_name(client)[QUEUE].delayed) == (4, 3)
    consumer = broker.consume(QUEUE, prefetch=2, timeout=100)
    delayed = broker.consume(f"{QUEUE}.DQ", prefetch=2, timeout=100)
    assert next(consumer) is not None
    eventually(lambda: next(delayed) is not None)
    one.send(job)
    client.lmove(f"dramatiq:{QUEUE}", f"dramatiq:__dramaturg__.suspects.{QUEUE}", "RIGHT", "RIGHT")
    one.send(job)
    client.lmove(f"dramatiq:{QUEUE}", f"dramatiq:__dramaturg__.taking.{broker.broker_id}.{QUEUE}", "RIGHT", "RIGHT")
    state = by_name(client)[QUEUE]
    # Two are fetched, if one is not handed out yet, and two in their tenant's lane; of the delayed ones one moves, and
    # two wait to be due.
    assert (state.waiting, state.delayed, state.running, state.suspects) == (3, 3, 2, 1)


def test_the_oldest_is_the_one_at_the_head(client: redis.Redis) -> None:
    def add(seconds: float, key: str = QUEUE) -> None:
        sent = now(client) - int(seconds * 1000)
        client.hset(f"dramatiq:{QUEUE}.msgs", str(sent), Message(QUEUE, "a", (), {}, {}, "m", sent).encode())
        client.rpush(f"dramatiq:{key}", str(sent))

    add(100)
    add(200)
    assert by_name(client)[QUEUE].oldest == pytest.approx(100, abs=5)
    add(300, f"__dramaturg__.suspects.{QUEUE}")
    assert by_name(client)[QUEUE].oldest == pytest.approx(300, abs=5)
    client.delete(f"dramatiq:{QUEUE}", f"dramatiq:__dramaturg__.suspects.{QUEUE}")
    # Its sender's clock is ahead.
    add(-100)
    assert by_name(client)[QUEUE].oldest == 0


@pytest.mark.parametrize("data", ["{", "[]", "null", '{"message_timestamp": "x"}', '{"message_timestamp": 1e300}'])
def test_a_head_that_does_not_say_how_old_it_is(client: redis.Redis, data: str) -> None:
    put(client, "one", data)
    assert by_name(client)[QUEUE].oldest is None
    assert by_name(client)[QUEUE].waiting == 1


def test_who_consumes_it(make: Callable[[], Side], client: redis.Redis, redis_url: str) -> None:
    processes: list[Any] = [make().broker for _ in range(3)]
    for process in processes:
        process.consume(QUEUE, prefetch=2, timeout=100)
    processes[1].consume("llm", prefetch=2, timeout=100)
    names = {process.broker_id: json.loads(process._heartbeat._facts())["worker"] for process in processes}
    # One that is silent, and one whose facts are gone.
    client.zadd("dramatiq:__dramaturg__.alive", {processes[0].broker_id: now(client) - 60_000})
    client.hdel("dramatiq:__dramaturg__.facts", processes[2].broker_id)
    states = by_name(client)
    assert states[QUEUE].consumers == tuple(sorted([names[processes[1].broker_id], processes[2].broker_id]))
    assert states["llm"].consumers == (names[processes[1].broker_id],)
    assert states["maintenance"].consumers == ()

    stock = RedisBroker(url=redis_url, middleware=[])
    stock.declare_queue("maintenance")
    stock.enqueue(Message("maintenance", "a", (), {}, {"tenant_id": str(TENANT)}))
    assert by_name(client)["maintenance"].stock_consumers == 0
    assert next(stock.consume("maintenance", prefetch=1, timeout=1000)) is not None
    state = by_name(client)["maintenance"]
    assert (state.stock_consumers, state.running, state.waiting) == (1, 1, 0)
    client.zadd("dramatiq:__heartbeats__", {stock.broker_id: 1})
    state = by_name(client)["maintenance"]
    assert (state.stock_consumers, state.running) == (0, 1)
    stock.client.close()


def test_a_redis_that_cannot_be_asked_is_one_kind_of_error() -> None:
    with redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)) as away:
        for ask in (
            lambda: list_queues(away),
            lambda: pauses(away),
            lambda: pause(away, QUEUE, by="ann"),
            lambda: resume(away, QUEUE, by="ann"),
            lambda: count_messages(away, queues=[QUEUE]),
        ):
            with pytest.raises(ConnectionClosed, match="Redis: "):
                ask()
