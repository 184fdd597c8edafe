"""A message's last executions travel with it through Redis, from process to process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Shutdown

from db.failures import Failure
from middleware.attempts import OPTION
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, ours
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]
NAME = "test.job"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def delayed(client: redis.Redis) -> dict[str, Any]:
    """Return the options of the one message that waits to be retried."""
    (data,) = client.hvals(f"dramatiq:{QUEUE}.DQ.msgs")
    options: dict[str, Any] = json.loads(data)["options"]
    return options


def messages(failure: Failure) -> list[str]:
    assert failure.attempts is not None
    return [one["message"] for one in failure.attempts]


def fails(text: str) -> Callable[..., None]:
    def job(*_: object) -> None:
        raise ValueError(text)

    return job


def drained(one: Side) -> None:
    with one.working():
        eventually(lambda: kept(one.client) == 0)
    assert in_acks(one.client) == 0


def test_from_process_to_process(side: Make, redis_url: str, client: redis.Redis) -> None:
    first, second = side(ours, redis_url), side(ours, redis_url)
    job = first.actor(fails("number 1 token=hunter2"), actor_name=NAME, max_retries=1, min_backoff=60_000)
    first.send(job)
    with first.working():
        eventually(lambda: client.hlen(f"dramatiq:{QUEUE}.DQ.msgs") == 1 and kept(client) == 1)
    assert first.failures == []
    options = delayed(client)
    assert [one["message"] for one in options[OPTION]] == ["number 1 token=[redacted]"]
    # Dramatiq's own word of it is not redacted, and stays in Redis.
    assert "hunter2" in options["traceback"]
    due(client)
    second.actor(fails("number 2"), actor_name=NAME, max_retries=1)
    drained(second)
    (failure,) = second.failures
    assert messages(failure) == ["number 1 token=[redacted]", "number 2"]
    assert failure.retry_count == 1
    assert failure.fingerprint is not None
    # For operators, as it was fetched.
    assert OPTION.encode() in (failure.original or b"")


def due(client: redis.Redis) -> None:
    """Make the one message that waits to be retried due."""
    ((redis_id, data),) = client.hgetall(f"dramatiq:{QUEUE}.DQ.msgs").items()
    message = json.loads(data)
    message["options"]["eta"] = 1
    client.hset(f"dramatiq:{QUEUE}.DQ.msgs", redis_id, json.dumps(message))
    # It is sorted in anew.
    client.rpush(f"dramatiq:{QUEUE}.DQ", redis_id)


def test_the_last_ten_of_many(side: Make, redis_url: str) -> None:
    one = side(ours, redis_url)
    ran: list[int] = []

    def job() -> None:
        ran.append(1)
        raise ValueError(f"number {len(ran)}")

    one.send(one.actor(job, max_retries=12, min_backoff=1, max_backoff=1))
    drained(one)
    (failure,) = one.failures
    assert messages(failure) == [f"number {n}" for n in range(4, 14)]


def test_what_a_shutdown_gave_back_is_no_attempt(side: Make, redis_url: str, client: redis.Redis) -> None:
    first, second = side(ours, redis_url), side(ours, redis_url)
    began = threading.Event()

    def job() -> None:
        began.set()
        while True:
            time.sleep(0.01)

    first.send(first.actor(job, actor_name=NAME, notify_shutdown=True, max_retries=3))
    with first.working():
        assert began.wait(15)
    (data,) = client.hvals(f"dramatiq:{QUEUE}.msgs")
    assert OPTION not in json.loads(data)["options"]
    second.actor(fails("number 1"), actor_name=NAME)
    drained(second)
    assert messages(second.failures[0]) == ["number 1"]


def test_a_shutdown_outside_of_one_is_an_attempt(side: Make, redis_url: str) -> None:
    one = side(ours, redis_url)

    def job() -> None:
        raise Shutdown

    one.send(one.actor(job, max_retries=1, min_backoff=1))
    drained(one)
    assert len(one.failures[0].attempts or []) == 2


def test_a_retry_that_a_middleware_undoes_is_told_of_once(side: Make, redis_url: str) -> None:
    import dramatiq

    class Enough(dramatiq.Middleware):
        def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
            message.fail()

    one = side(ours, redis_url)
    # First in the list is last in after hooks: the retry is enqueued by then.
    one.broker.middleware.insert(0, Enough())
    one.send(one.actor(fails("number 1"), max_retries=3, min_backoff=1))
    drained(one)
    (failure,) = one.failures
    assert messages(failure) == ["number 1"]
    assert failure.retry_count == 0


def test_lost_starts_follow_what_failed_before(side: Make, redis_url: str, client: redis.Redis) -> None:
    one = side(ours, redis_url)
    ran: list[int] = []
    job = one.actor(lambda: ran.append(1), actor_name=NAME)
    before = {"at": "2025-01-01T00:00:00.000+00:00", "worker": "h/1", "exception_class": "ValueError"}
    entry = {**before, "message": "number 1", "place": None}
    options: dict[str, Any] = {"retries": 1, "requeue_timestamp": 0, OPTION: [entry]}
    one.broker.enqueue(job.message_with_options(tenant_id=str(TENANT), **options))
    # As a process that finds three others gone leaves it.
    redis_id: Any = client.lindex(f"dramatiq:{QUEUE}", 0)
    client.delete(f"dramatiq:{QUEUE}")
    facts = {"worker": "h/2", "peak": 93}
    lost = [{"started": n * 1000, "silent": n * 1000 + 500, "facts": facts} for n in range(1, 4)]
    client.hset("dramatiq:__dramaturg__.crashes", f"{QUEUE}:{redis_id.decode()}", json.dumps(lost))
    client.rpush(f"dramatiq:__dramaturg__.suspects.{QUEUE}", redis_id)
    drained(one)
    (failure,) = one.failures
    assert (failure.error_type, ran) == ("worker_lost", [])
    assert messages(failure)[0] == "number 1"
    assert all(m.startswith("its worker was lost: nothing was heard of it after 1970") for m in messages(failure)[1:])
    assert [a["at"] for a in failure.attempts or []][1:] == [f"1970-01-01T00:00:0{n}.000+00:00" for n in range(1, 4)]
    assert failure.retry_count == 3


@pytest.mark.parametrize("given", ["hunter2", {"a": 1}, [5, {"at": 1}], [{"message": "x" * 1_000_000}] * 3])
def test_what_a_stock_producer_calls_so_harms_nothing(side: Make, redis_url: str, given: Any) -> None:
    one = side(ours, redis_url)
    job = one.actor(fails("number 1"), max_retries=4, min_backoff=1)
    producer = RedisBroker(client=one.client)
    producer.declare_queue(QUEUE)
    options: dict[str, Any] = {"retries": 3, "requeue_timestamp": 0, OPTION: given, "theirs": [1]}
    producer.enqueue(job.message_with_options(tenant_id=str(TENANT), **options))
    drained(one)
    (failure,) = one.failures
    assert messages(failure) == ["number 1", "number 1"]
    original = json.loads(failure.original or b"")
    assert original["options"]["theirs"] == [1]
    assert [one["message"] for one in original["options"][OPTION]] == ["number 1"]
