"""How deep queues were, minute by minute, on a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.errors import ConnectionClosed

from tests.integration.nothing_lost import QUEUE, Side, ours, put
from tests.servers import free_port
from worker.housekeeping import sample_queues
from worker.live import depth_samples, samples
from worker.queues import Queue

PREFIX = "dramatiq:__dramaturg__.depths."


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def minute_of(client: redis.Redis) -> int:
    found: Any = client.time()
    return int(found[0]) // 60


def keep(client: redis.Redis, minute: int, data: str) -> None:
    client.hset(f"{PREFIX}{minute // 60}", str(minute), data)


def test_the_actor_keeps_one_a_minute(
    side: Callable[..., Side], redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = side(ours, redis_url)
    monkeypatch.setattr(dramatiq, "get_broker", lambda: one.broker)
    put(client, "a", "data")
    put(client, "b", "data", f"{QUEUE}.DQ")
    while True:
        began = minute_of(client)
        sample_queues.fn()
        put(client, "c", "data")
        sample_queues.fn()
        if minute_of(client) == began:
            break
        # Another minute has begun meanwhile.
        client.lpop(f"dramatiq:{QUEUE}")
        client.delete(*client.keys(f"{PREFIX}*"))
    assert sum(client.hlen(key) for key in client.scan_iter(f"{PREFIX}*")) == 1
    found = depth_samples(client, 5)
    # Others that tests in this process have declared are sampled, too.
    assert set(found) >= set(Queue)
    kept = found[QUEUE]
    assert [n for n in kept.waiting if n is not None][-1:] == [1]
    assert [n for n in kept.delayed if n is not None] == [1]
    assert len(kept.waiting) == len(kept.oldest) == 5
    (key,) = client.keys(f"{PREFIX}*")
    assert 24 * 3_600 < client.ttl(key) <= 25 * 3_600


def test_one_that_has_waited_does_not_look(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a day without workers there are a thousand, and each would read the names of all keys."""

    def look(*_: Any, **__: Any) -> Any:
        raise AssertionError

    now = minute_of(client)
    for minute in (now, now + 1):
        keep(client, minute, "{}")
    monkeypatch.setattr(samples, "list_queues", look)
    assert not samples.keep_sample(client)


def test_they_are_read_in_order_with_what_is_missing(client: redis.Redis) -> None:
    now = minute_of(client)
    for ago in (200, 62, 61, 1):
        keep(client, now - ago, f'{{"llm":[{ago},0,1,{ago}.5]}}')
    keep(client, now - 2, "nonsense")
    keep(client, now - 3, '{"llm":[1,2],"other":"x","emails":[1,2,3,null]}')
    found = depth_samples(client, 64)
    later = minute_of(client) - now
    assert set(found) == {"emails", "llm"}
    llm = found["llm"]
    assert len(llm.waiting) == 64
    assert {63 - n + later: depth for n, depth in enumerate(llm.waiting) if depth is not None} == {
        ago: ago for ago in (62, 61, 1)
    }
    assert [depth for depth in llm.oldest if depth is not None] == [62.5, 61.5, 1.5]
    assert [depth for depth in found["emails"].running if depth is not None] == [3]
    assert llm.since.timestamp() == (now + later - 63) * 60
    assert depth_samples(client, 1) == {}
    assert depth_samples(client, 64, namespace="other") == {}


def test_a_sample_is_bounded(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "QUEUES_AT_MOST", 6)
    for n in range(9):
        put(client, "a", "data", f"queue-{n}")
    assert samples.keep_sample(client, ("emails",))
    assert set(depth_samples(client, 2)) == {*Queue, "emails", "queue-0"}


@pytest.mark.parametrize("minutes", [0, 1_441])
def test_minutes_that_cannot_be(client: redis.Redis, minutes: int) -> None:
    with pytest.raises(ValueError, match=f"^minutes must be 1 to 1440, not {minutes}$"):
        depth_samples(client, minutes)


def test_redis_that_is_away() -> None:
    with redis.Redis(port=free_port()) as client:
        for ask in (depth_samples, samples.keep_sample):
            with pytest.raises(ConnectionClosed):
                ask(client)
