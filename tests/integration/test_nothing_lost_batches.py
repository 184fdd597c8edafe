"""What is told to Redis in batches is told, once, whatever happens between an end and that; and what was fetched ahead
of need waits for nobody."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed

from middleware.lua_scripts import Scripts
from middleware.shared_starts import PLACES, SIZE, SharedStarts
from middleware.start_marks import StartMarks
from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, marker_of, ours, put
from tests.waiting import eventually
from worker.queue_admin.shares import share

Make = Callable[[Callable[[str], Side], str], Side]
NEVER = 3600.0


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def one(side: Make, redis_url: str) -> Side:
    return side(ours, redis_url)


class TestEnds:
    def test_a_hundred_ends_are_few_calls(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Until it is urgent, because a consumer waits for it.
        monkeypatch.setattr("middleware.journal.INTERVAL", NEVER)
        ended: list[int] = []
        end = one.broker._end  # type: ignore[attr-defined]

        def spy(queue: str, epoch: int, messages: Any) -> None:
            ended.append(len(messages))
            end(queue, epoch, messages)

        monkeypatch.setattr(one.broker.journal, "_end", spy)  # type: ignore[attr-defined]
        ran: list[int] = []
        job = one.actor(ran.append)
        for n in range(100):
            one.send(job, n)
        with one.working(threads=8):
            eventually(lambda: len(ran) == 100)
        assert (kept(client), sum(ended)) == (0, 100)
        # Sixteen are fetched at first.
        assert len(ended) <= 30

    def test_a_worker_that_stops_tells_what_has_ended(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("middleware.journal.INTERVAL", NEVER)
        ran: list[int] = []
        job = one.actor(ran.append)
        one.send(job, 1)
        with one.working(threads=8):
            eventually(lambda: ran == [1])
            assert kept(client) == in_acks(client) == 1
        assert kept(client) == in_acks(client) == 0

    def test_a_process_that_gives_everything_back_tells_what_has_ended_first(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("middleware.journal.INTERVAL", NEVER)
        ran: list[int] = []
        job = one.actor(ran.append)
        one.send(job, 1)
        with one.working(threads=8):
            eventually(lambda: ran == [1])
            one.broker.give_back_all()  # type: ignore[attr-defined]
            assert kept(client) == 0

    def test_while_redis_is_away_they_wait(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        with CutWire(redis_url) as wire:
            one, sender = side(partial(ours, REDIS_TIMEOUT="1"), wire.url), side(ours, redis_url)
            ran: list[int] = []
            job = one.actor(ran.append)
            sender.actor(ran.append, actor_name=job.actor_name)
            one.send(job, 0)
            with one.working():
                eventually(lambda: kept(client) == 0)
                wire.down_at(marker_of(one, "finish_many"))
                for n in range(1, 4):
                    sender.send(sender.broker.get_actor(job.actor_name), n)
                assert wire.lost.wait(15)
                wire.up()
                eventually(lambda: kept(client) == 0)
            assert Counter(ran) == {0: 1, 1: 1, 2: 1, 3: 1}

    @pytest.mark.parametrize("limited", [False, True], ids=["a full room", "a tenant's limit"])
    def test_who_waits_for_an_end_is_not_kept_waiting(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, limited: bool
    ) -> None:
        monkeypatch.setattr("middleware.journal.INTERVAL", NEVER)
        monkeypatch.setattr("dramatiq.worker.QUEUE_PREFETCH", 8 if limited else 1)
        one.broker.prefetch_is_set = True  # type: ignore[attr-defined]
        if limited:
            share(client, QUEUE, TENANT, limit=1, by="ann", audit=lambda *_, **__: None)
        ran: list[int] = []
        job = one.actor(ran.append)
        for n in range(50):
            one.send(job, n)
        with one.working():
            eventually(lambda: len(ran) == 50)

    def test_where_no_thread_can_be_started_each_tells_its_own(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "journal":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        job = one.actor(lambda: None)
        for _ in range(5):
            one.send(job)
        with one.working():
            eventually(lambda: kept(client) == 0)

    def test_whatever_goes_wrong_with_one_round_the_next_comes(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("middleware.journal.AGAIN_AFTER", 0.05)
        wrong: list[str] = []

        def fail_once() -> None:
            if not wrong:
                wrong.append("once")
                raise MemoryError

        monkeypatch.setattr(one.broker.journal._marks, "send", fail_once)  # type: ignore[attr-defined]
        one.send(one.actor(lambda: None))
        with one.working():
            eventually(lambda: kept(client) == 0)
        assert wrong == ["once"]

    def test_a_process_that_leaves_waits_for_what_is_being_told(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told, may = threading.Event(), threading.Event()
        end = one.broker._end  # type: ignore[attr-defined]

        def slowly(*args: Any) -> None:
            told.set()
            assert may.wait(30)
            end(*args)

        monkeypatch.setattr(one.broker.journal, "_end", slowly)  # type: ignore[attr-defined]
        one.send(one.actor(lambda: None))
        with one.working():
            assert told.wait(30)
            leaving = threading.Thread(target=one.broker.close)
            leaving.start()
            leaving.join(0.2)
            may.set()
            leaving.join()
        assert kept(client) == 0


class TestNobodyHolds:
    """What left this process' hands, though Redis does not know, is found by the next consumer."""

    @pytest.fixture
    def failing(self, one: Side, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
        def fail_once(script: str) -> list[str]:
            run, failed = one.broker.run, list[str]()  # type: ignore[attr-defined]

            class Run:
                def __call__(self, name: str, *arguments: Any) -> Any:
                    if name == script and not failed:
                        failed.append(name)
                        raise ConnectionClosed("away")
                    return run(name, *arguments)

                def __getattr__(self, name: str) -> Any:
                    return getattr(run, name)

            monkeypatch.setattr(one.broker, "run", Run())
            return failed

        return fail_once

    def test_a_message_of_an_ordinary_queue_that_is_delayed(
        self, one: Side, client: redis.Redis, failing: Callable[[str], list[str]]
    ) -> None:
        failed = failing("finish")
        ran: list[int] = []
        job = one.actor(ran.append)
        early = job.message_with_options(args=(1,), tenant_id=str(TENANT), eta=current_millis() + 100)
        put(client, "early", early.copy(options={"redis_message_id": "early"}).encode())
        with one.working():
            eventually(lambda: ran == [1] and kept(client) == 0)
        assert failed == ["finish"]

    def test_what_was_fetched_ahead_and_goes_back(
        self, one: Side, client: redis.Redis, failing: Callable[[str], list[str]]
    ) -> None:
        go_on = threading.Event()
        ran: list[int] = []

        def job(n: int) -> None:
            if n >= 2_000:
                go_on.wait(60)
            ran.append(n)

        actor = one.actor(job)
        one.broker.enqueue_many(  # type: ignore[attr-defined]
            actor.message_with_options(args=(n,), tenant_id=str(TENANT)) for n in range(2_100)
        )
        failed = failing("requeue")
        with one.working(threads=2):
            eventually(lambda: failed)
            go_on.set()
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == list(range(2_100))


class TestScript:
    def prepare(self, client: redis.Redis, lease: int = 7) -> Scripts:
        own = "dramatiq:__dramaturg__."
        client.hset(f"{own}leases", "me", lease)
        for n in range(4):
            client.hset(f"dramatiq:{QUEUE}.msgs", f"m{n}", "{}")
            client.sadd(f"dramatiq:__acks__.me.{QUEUE}", f"m{n}")
            client.hset(f"{own}started.me", f"{QUEUE}:m{n}", 1)
            client.hset(f"{own}crashes", f"{QUEUE}:m{n}", "[]")
            client.sadd(f"{own}begun_before", f"{QUEUE}:m{n}")
        return Scripts(client, "dramatiq")

    def left(self, client: redis.Redis) -> list[int]:
        own = "dramatiq:__dramaturg__."
        counts: list[Any] = [
            client.hlen(f"dramatiq:{QUEUE}.msgs"),
            client.scard(f"dramatiq:__acks__.me.{QUEUE}"),
            client.hlen(f"{own}started.me"),
            client.hlen(f"{own}crashes"),
            client.scard(f"{own}begun_before"),
        ]
        return [int(count) for count in counts]

    def test_it_ends_what_is_held_and_names_what_is_anothers(self, client: redis.Redis) -> None:
        run = self.prepare(client)
        # One was given to somebody else, one has been ended by a call whose answer was lost.
        client.srem(f"dramatiq:__acks__.me.{QUEUE}", "m1", "m2")
        client.hdel(f"dramatiq:{QUEUE}.msgs", "m2")
        assert run("finish_many", QUEUE, "me", 7, "m0", "m1", "m2", "m3") == [2]
        assert self.left(client) == [1, 0, 2, 2, 2]
        assert run("finish_many", QUEUE, "me", 7, "m0", "m3") == []

    def test_under_another_lease_it_ends_nothing(self, client: redis.Redis) -> None:
        run = self.prepare(client, lease=8)
        assert run("finish_many", QUEUE, "me", 7, "m0", "m1") == [1, 2]
        assert self.left(client) == [4, 4, 4, 4, 4]

    def test_as_many_as_a_process_may_hold(self, client: redis.Redis) -> None:
        run = self.prepare(client)
        ids = [f"x{n}" for n in range(1000)]
        client.hset(f"dramatiq:{QUEUE}.msgs", mapping=dict.fromkeys(ids, "{}"))
        client.sadd(f"dramatiq:__acks__.me.{QUEUE}", *ids)
        assert run("finish_many", QUEUE, "me", 7, *ids) == []
        assert self.left(client)[:2] == [4, 4]


class TestAhead:
    def test_a_fetch_of_large_messages_takes_few(self, one: Side, client: redis.Redis) -> None:
        actor = one.actor(lambda _: None)
        large = "x" * 1_500_000
        one.broker.enqueue_many(  # type: ignore[attr-defined]
            actor.message_with_options(args=(large,), tenant_id=str(TENANT)) for _ in range(8)
        )
        broker: Any = one.broker
        broker._heartbeat.cover(QUEUE)
        _, (there, *found) = broker.fetch("fetch", QUEUE, 100)
        # It says that there are more.
        assert (len(found), there) == (3 * 3, 1)

    def test_what_was_fetched_ahead_of_slow_jobs_goes_back(self, one: Side, client: redis.Redis) -> None:
        given_back: list[int] = []
        take_back = one.broker.take_back_last  # type: ignore[attr-defined]

        def spy(queue: str, count: int) -> Any:
            given_back.append(count)
            return take_back(queue, count)

        one.broker.take_back_last = spy  # type: ignore[attr-defined]
        go_on = threading.Event()
        ran: list[int] = []

        def job(n: int) -> None:
            if n >= 3_000:
                go_on.wait(60)
            ran.append(n)

        actor = one.actor(job)
        one.broker.enqueue_many(  # type: ignore[attr-defined]
            actor.message_with_options(args=(n,), tenant_id=str(TENANT)) for n in range(3_200)
        )
        with one.working(threads=2) as worker:
            eventually(lambda: len(ran) == 3_000)
            # Two run, and two are there for when they end.
            eventually(lambda: in_acks(client) <= 4)
            assert kept(client) == 200
            go_on.set()
            eventually(lambda: kept(client) == 0)
            worker.join()
        assert sorted(ran) == list(range(3_200))
        # It had been more, else nothing is shown here.
        assert sum(given_back) > 4

    def test_as_many_as_were_done_of_late(self, one: Side, monkeypatch: pytest.MonkeyPatch) -> None:
        consumer: Any = one.broker.consume(QUEUE, prefetch=16, timeout=20)
        now, holdings = time.monotonic(), consumer._holdings
        monkeypatch.setattr("middleware.lossless_consumer.time.monotonic", lambda: now)

        def after(seconds: float, done: int) -> int:
            nonlocal now
            now += seconds
            holdings.let_go += done
            consumer._reckon()
            return int(consumer._prefetch)

        # Idle, and then quick ones: no more than double at a time, and what takes 40 ms.
        assert [after(60, 0), after(0.002, 16), after(0.004, 32), after(0.02, 64)] == [16, 32, 64, 128]
        assert [after(0.02, 100), after(0.004, 30)] == [128, 216]
        # Slow ones: of 50 ms, run by eight threads.
        assert [after(0.05, 8), after(0.05, 8)] == [16, 16]
        assert [after(0.001, 8), after(0.049, 8), after(0.05, 8), after(0, 16)] == [16, 16, 16, 16]

    def test_what_was_quick_before_a_wait_may_be_slow_after_it(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        consumer: Any = one.broker.consume(QUEUE, prefetch=2, timeout=20)
        assert next(consumer) is None
        monkeypatch.setattr("middleware.lossless_consumer.RECKON_OVER", 0.0)
        consumer._prefetch = 500
        monkeypatch.setattr(consumer, "_wait", lambda: True)
        actor = one.actor(lambda: None)
        for _ in range(5):
            one.send(actor)
        assert next(consumer) is not None
        assert in_acks(client) == 2
        consumer.close()

    def test_not_where_the_environment_says_how_many(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one.broker.prefetch_is_set = True  # type: ignore[attr-defined]
        counts: list[int] = []
        fetch = one.broker.fetch  # type: ignore[attr-defined]

        def spy(script: str, queue: str, count: int) -> Any:
            counts.append(count)
            return fetch(script, queue, count)

        monkeypatch.setattr(one.broker, "fetch", spy)
        actor = one.actor(lambda: None)
        one.broker.enqueue_many(  # type: ignore[attr-defined]
            actor.message_with_options(tenant_id=str(TENANT)) for _ in range(1_000)
        )
        with one.working(threads=2):
            eventually(lambda: kept(client) == 0)
        assert max(count for count in counts if count < 100) <= 4


class TestStarts:
    def test_places_hold_what_each_thread_runs(self) -> None:
        starts = SharedStarts()
        assert starts.note(b"q:1", 5)
        other = threading.Thread(target=starts.note, args=(b"q:2", 6))
        other.start()
        other.join()
        assert starts.running() == {b"q:1": 5, b"q:2": 6}
        assert starts.note(b"q:three", 7)
        starts.clear()
        assert starts.running() == {b"q:2": 6}

    def test_what_has_no_place_is_said_so(self) -> None:
        starts = SharedStarts()
        assert not starts.note(b"x" * SIZE, 5)
        starts._taken = PLACES
        elsewhere: list[bool] = []
        other = threading.Thread(target=lambda: elsewhere.append(starts.note(b"q:1", 5)))
        other.start()
        other.join()
        assert elsewhere == [False]
        assert starts.running() == {}

    def test_what_runs_on_is_sent_and_what_has_ended_is_not(self, client: redis.Redis) -> None:
        marks = StartMarks(client, "dramatiq:__dramaturg__.started.me")
        starts = SharedStarts()
        marks.share(starts)
        assert marks.mark(b"q:short")
        marks.forget(b"q:short")
        assert not marks.unsent()
        assert marks.mark(b"q:long")
        assert client.hkeys("dramatiq:__dramaturg__.started.me") == []
        marks.send()
        eventually(lambda: client.hkeys("dramatiq:__dramaturg__.started.me") == [b"q:long"])
        # What has no place is sent at once.
        assert not marks.mark(b"q:" + b"x" * SIZE)
        eventually(lambda: client.hlen("dramatiq:__dramaturg__.started.me") == 2)
        assert set(starts.running()) == {b"q:long"}
        marks.close()
