"""What goes on at this moment: who works on what, and how much ends."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from dramatiq import Message
from dramatiq.errors import ConnectionClosed
from redis.backoff import NoBackoff
from redis.retry import Retry

from middleware.heartbeat import Heartbeat
from middleware.lua_scripts import Scripts
from middleware.process_facts import process_facts
from middleware.tally import FAILED, RETRIED, SUCCEEDED, Tally
from tests.integration.nothing_lost import QUEUE, TENANT, Side, ours, put
from tests.servers import free_port
from tests.waiting import eventually
from worker.live import (
    RunningMessage,
    SpooledGroup,
    Throughput,
    WorkerState,
    list_workers,
    spool_groups,
    spool_state,
    throughput,
)
from worker.live import workers as workers_module

OWN = "dramatiq:__dramaturg__."


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def ended(client: redis.Redis, queue: str = QUEUE) -> tuple[int, int, int]:
    """Succeeded, failed and retried."""
    of = throughput(client, queues=[queue])[queue]
    return sum(of.succeeded), sum(of.failed), sum(of.retried)


def server_minute(client: redis.Redis) -> int:
    found: Any = client.time()
    return int(found[0] // 60)


def in_one_minute(client: redis.Redis, do: Callable[[int], None]) -> None:
    """Do what needs the minute to stay the same; again where it did not."""
    while True:
        minute = server_minute(client)
        with suppress(AssertionError):
            do(minute)
            return
        assert server_minute(client) != minute, "it fails, and not because the minute went by"
        client.flushall()


class TestWithAWorker:
    @pytest.fixture
    def one(self, side: Callable[..., Side], redis_url: str) -> Any:
        return side(ours, redis_url)

    def test_each_message_that_ends_is_counted_once_by_how_it_ends(self, one: Any, client: redis.Redis) -> None:
        gate = threading.Event()

        def fail() -> None:
            raise ValueError("no")

        good = one.actor(lambda: None)
        held = one.actor(lambda: bool(gate.wait(30)) and None)
        bad = one.actor(fail)
        worse = one.actor(fail, max_retries=2, min_backoff=1, max_backoff=1)
        one.broker._heartbeat._interval = 0.05
        with one.working(4):
            for _ in range(3):
                one.send(good)
            # Only moved by the delay queue, and by whoever finds it in the other.
            one.send(good, delay=1)
            eta = {"redis_message_id": "eta", "tenant_id": str(TENANT), "eta": 1}
            put(client, "eta", Message(QUEUE, good.actor_name, (), {}, eta).encode())
            one.send(bad)
            one.send(worse)
            put(client, "none", "{")
            eventually(lambda: ended(client) == (5, 3, 2))
            waiting = one.send(held)
            eventually(lambda: any(w.running for w in list_workers(client)))
            (state,) = list_workers(client)
            assert (state.queues, state.threads, state.more, state.stopping) == ((QUEUE,), 4, 0, False)
            assert state.name == f"{state.host}/{state.pid}"
            assert state.resident is not None
            assert state.peak is not None
            assert state.since is not None
            assert 0 < state.resident <= state.peak + 1
            assert state.since <= state.running[0].since
            (running,) = state.running
            assert running == RunningMessage(
                QUEUE,
                waiting.options["redis_message_id"],
                running.since,
                waiting.message_id,
                waiting.actor_name,
                TENANT,
                UUID(waiting.message_id),
            )
            # The others are over, though Redis may not have heard of it when their start was noted.
            gate.set()
            eventually(lambda: not list_workers(client)[0].running)
            eventually(lambda: ended(client) == (6, 3, 2))
        assert set(throughput(client)) == {QUEUE}

    def test_what_ended_last_is_told_when_the_process_leaves(self, one: Any, client: redis.Redis) -> None:
        one.broker._heartbeat._interval = 3600
        job = one.actor(lambda: None)
        with one.working():
            for _ in range(20):
                one.send(job)
            one.broker.join(QUEUE)
        assert ended(client) == (0, 0, 0)
        one.broker.close()
        assert ended(client) == (20, 0, 0)
        assert list_workers(client) == []

    def test_what_is_given_back_has_not_ended(self, one: Any, client: redis.Redis) -> None:
        job = one.actor(lambda: None)
        one.send(job)
        consumer = one.broker.consume(QUEUE, prefetch=1, timeout=100)
        message = next(consumer)
        message.give_back = True
        consumer.ack(message)
        one.broker.close()
        assert ended(client) == (0, 0, 0)


class TestTelling:
    def test_what_could_not_be_told_is_told_with_the_next_sign_of_life(self) -> None:
        told: list[list[Any]] = []
        away = True

        def run(_: str, *arguments: Any) -> Any:
            if away:
                raise ConnectionClosed("away")
            told.append(list(arguments))
            return [1, 1, 0, [], 0, [], [], [0, 0, 1]]

        tally = Tally()
        one: Any = Heartbeat(run, "one", lease=1, grace=1, interval=3600, tally=tally)  # type: ignore[arg-type]
        tally.count(SUCCEEDED, "q")
        with pytest.raises(ConnectionClosed):
            one.beat()
        away = False
        tally.count(SUCCEEDED, "q")
        tally.count(FAILED, "q")
        one.beat()
        one.beat()
        assert [arguments[6:] for arguments in told] == [[2, "succeeded:q", 2, "failed:q", 1], [0]]

    def test_redis_keeps_it_for_three_hours_and_no_longer(self, client: redis.Redis) -> None:
        tally = Tally()
        one = Heartbeat(Scripts(client, "dramatiq"), "one", lease=8000, grace=1, interval=3600, tally=tally)
        one.cover("q")
        assert client.keys(f"{OWN}ended.*") == []
        for leave in (False, True):
            tally.count(RETRIED, "q")
            if leave:
                one.stop()
            else:
                one.beat()
            keys: Any = client.keys(f"{OWN}ended.*")
            assert all(180 * 60 < int(client.ttl(key)) <= 190 * 60 for key in keys)
        assert ended(client, "q") == (0, 0, 2)
        assert sum(Counter(int(v) for key in keys for v in client.hgetall(key).values()).elements()) == 2

    def test_threads_count_at_once(self) -> None:
        tally = Tally()

        def work() -> None:
            for _ in range(2_000):
                tally.count(SUCCEEDED, "q")

        threads = [threading.Thread(target=work) for _ in range(4)]
        found: Counter[str] = Counter()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            found += tally.take()
        assert (found + tally.take()) == {"succeeded:q": 8_000}


class TestThroughput:
    def test_minute_by_minute_with_a_rate_of_the_full_ones(self, client: redis.Redis) -> None:
        def look(now: int) -> None:
            minutes: dict[int, dict[Any, Any]] = {
                0: {"succeeded:a": 1000},
                1: {"succeeded:a": 8, "failed:a": 2, "retried:a": 100},
                5: {"succeeded:a": 5},
                # Before the five.
                6: {"succeeded:a": 7000},
                2: {"failed:b.c": 3, "nonsense": 1, "other:a": 1},
            }
            for ago, counts in minutes.items():
                client.hset(f"{OWN}ended.{now - ago}", mapping=counts)
            found = throughput(client, 4, queues=["idle"])
            since = datetime.fromtimestamp((now - 3) * 60, UTC)
            assert found == {
                "a": Throughput("a", since, (0, 0, 8, 1000), (0, 0, 2, 0), (0, 0, 100, 0), 3.0),
                "b.c": Throughput("b.c", since, (0,) * 4, (0, 3, 0, 0), (0,) * 4, 0.6),
                "idle": Throughput("idle", since, (0,) * 4, (0,) * 4, (0,) * 4, 0.0),
            }
            assert list(found) == ["a", "b.c", "idle"]
            assert found["a"].ended == (0, 0, 10, 1000)
            assert sum(throughput(client, 180)["a"].succeeded) == 8013
            assert len(throughput(client, 180)["a"].failed) == 180

        in_one_minute(client, look)

    @pytest.mark.parametrize("minutes", [0, 181, -1])
    def test_minutes_that_are_not_kept_are_refused(self, client: redis.Redis, minutes: int) -> None:
        with pytest.raises(ValueError, match=rf"minutes must be 1 to 180, not {minutes}"):
            throughput(client, minutes)


class TestWorkers:
    def live(self, client: redis.Redis, name: str, facts: str = "{}", queue: str = QUEUE) -> Heartbeat:
        run = Scripts(client, "dramatiq")
        heartbeat = Heartbeat(run, name, lease=8_000, grace=1, interval=3600, facts=lambda: facts)
        heartbeat.cover(queue)
        return heartbeat

    def run_(
        self, client: redis.Redis, broker: str, redis_id: bytes | str, data: bytes | str, since: float = 1_000
    ) -> None:
        redis_id = redis_id.encode() if isinstance(redis_id, str) else redis_id
        client.hset(f"{OWN}started.{broker}", QUEUE.encode() + b":" + redis_id, str(int(since * 1000)))
        client.sadd(f"dramatiq:__acks__.{broker}.{QUEUE}", redis_id)
        client.hset(f"dramatiq:{QUEUE}.msgs", redis_id, data)

    def message(self, **changes: Any) -> bytes:
        options = {"tenant_id": str(TENANT), "correlation_id": str(UUID(int=7))}
        fields: dict[str, Any] = {"actor_name": "a.b", "message_id": "m", "options": options, **changes}
        return json.dumps({"queue_name": QUEUE, "args": ["secret"], "kwargs": {}, **fields}).encode()

    def test_those_that_live_by_name_with_what_they_say(self, client: redis.Redis) -> None:
        self.live(client, "z", process_facts("here", stopping=True))
        self.live(client, "a", "[", queue="llm")
        self.live(client, "silent")
        client.zincrby(f"{OWN}alive", -9_000, "silent")
        unknown, known = list_workers(client)
        last = unknown.last_sign
        assert unknown == WorkerState(
            "a", "a", None, None, ("llm",), None, last, stopping=False, threads=None, resident=None, peak=None,
            running=(), more=0,
        )  # fmt: skip
        assert (known.name.split("/")[0], known.stopping, known.queues) == ("here", True, (QUEUE,))
        assert abs(last - known.last_sign) < timedelta(seconds=8)
        # The same at each look.
        assert list_workers(client) == [unknown, known]

    def test_times_are_the_servers_whatever_a_process_thinks(self, client: redis.Redis) -> None:
        now = time.time()
        right = {"at": now, "since": now - 100}
        self.live(client, "right", json.dumps(right))
        self.live(client, "wrong", json.dumps({name: value + 3600 for name, value in right.items()}))
        self.run_(client, "right", "1", self.message(), now - 50)
        self.run_(client, "wrong", "2", self.message(), now - 50 + 3600)
        first, second = list_workers(client)
        for state in (first, second):
            assert state.since is not None
            assert abs(state.since.timestamp() - (now - 100)) < 5
            assert abs(state.running[0].since.timestamp() - (now - 50)) < 5

    @pytest.mark.parametrize(
        "facts", ['{"at": 1e300, "since": 1e300}', '{"at": "x", "since": []}', '{"at": NaN, "since": Infinity}', "[]"]
    )
    def test_a_process_that_says_nonsense_is_there_all_the_same(self, client: redis.Redis, facts: str) -> None:
        self.live(client, "one", facts)
        self.run_(client, "one", "1", self.message())
        (state,) = list_workers(client)
        assert [message.message_id for message in state.running] == ["m"]

    def test_of_a_message_that_cannot_be_read_the_ids_alone_are_known(self, client: redis.Redis) -> None:
        self.live(client, "one")
        data: dict[str | bytes, bytes] = {
            "1": b"{",
            "2": b"[]",
            "3": b"{}",
            "4": b"\xff",
            b"\xff5": self.message(),
            "6": self.message(options=None),
            "7": self.message(options={"tenant_id": "x", "correlation_id": 3}, actor_name=5),
            "8": self.message(actor_name="a\ud800" + "b" * 300),
            "9": b"[" * 100_000,
        }
        for n, (redis_id, raw) in enumerate(data.items()):
            self.run_(client, "one", redis_id, raw, since=1_000 + n)
        (state,) = list_workers(client)
        found = {message.redis_id: message for message in state.running}
        said = {name: (m.message_id, m.actor, m.tenant_id, m.correlation_id) for name, m in found.items()}
        unread = (None, None, None, None)
        long = said.pop("8")
        assert said == {
            "1": unread,
            "2": unread,
            "3": unread,
            "4": unread,
            "\ufffd5": ("m", "a.b", TENANT, UUID(int=7)),
            "6": ("m", "a.b", None, None),
            "7": ("m", None, None, None),
            "9": unread,
        }
        assert long[1] is not None
        assert long[1].startswith("a?bbb")
        assert len(long[1]) < 300
        assert "secret" not in repr(state)

    def test_what_has_ended_or_was_removed_is_not_running(self, client: redis.Redis) -> None:
        self.live(client, "one")
        for redis_id in ("ended", "removed", "runs"):
            self.run_(client, "one", redis_id, self.message())
        client.srem(f"dramatiq:__acks__.one.{QUEUE}", "ended")
        client.hdel(f"dramatiq:{QUEUE}.msgs", "removed")
        (state,) = list_workers(client)
        assert [message.redis_id for message in state.running] == ["runs"]

    def test_only_so_many_are_read_the_longest_first(
        self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, sinces in (("one", (5, 1, 9)), ("two", (2, 8)), ("three", (7,))):
            self.live(client, name)
            for since in sinces:
                self.run_(client, name, f"{name}{since}", self.message(), since)
        found = {
            state.name: ([message.redis_id for message in state.running], state.more)
            for state in list_workers(client, read_at_most=3)
        }
        assert found == {"one": (["one1", "one5"], 1), "two": (["two2"], 1), "three": ([], 1)}
        # Nor so many bytes: a message that is too large keeps none that is not from being read.
        self.run_(client, "one", "one1", self.message(args=["x" * 2_000]), 1)
        monkeypatch.setattr(workers_module, "BYTES_AT_MOST", 1_900)
        (one,) = [state for state in list_workers(client) if state.name == "one"]
        assert [(m.redis_id, m.actor) for m in one.running] == [("one1", None), ("one5", "a.b"), ("one9", "a.b")]


def test_the_spool(client: redis.Redis) -> None:
    assert spool_state(client).size == len(spool_groups(client)) == 0
    assert spool_state(client).since is None
    failure = {"task_name": "a", "error_type": "timeout"}
    other = {**failure, "task_name": "b"}
    for n, said in enumerate([json.dumps(failure), json.dumps(failure), json.dumps(other), "{", "[]"]):
        client.hset(f"{OWN}spool", str(n), said)
    client.set(f"{OWN}spool.since", 1_735_732_800)
    state = spool_state(client)
    assert (state.size, state.since) == (5, datetime(2025, 1, 1, 12, tzinfo=UTC))
    assert spool_groups(client)[0] in (SpooledGroup("a", "timeout", 2), SpooledGroup("(unreadable)", "-", 2))
    assert SpooledGroup("b", "timeout", 1) in spool_groups(client)


def test_a_redis_that_cannot_be_asked_is_one_kind_of_error() -> None:
    with redis.Redis(port=free_port(), retry=Retry(NoBackoff(), 0)) as away:
        for ask in (list_workers, throughput, spool_state, spool_groups):
            with pytest.raises(ConnectionClosed, match="Redis: "):
                ask(away)
