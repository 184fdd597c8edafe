"""At most one of its kind: what keeps a second away, what becomes of it, and that no lock outlives its message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.common import dq_name

from middleware.crash_guard import CrashGuard
from middleware.unique import NotUnique, Outcome, Unique, outcome
from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, kept, marker_of, ours
from tests.waiting import eventually
from worker.queue_admin.removal import purge

Make = Callable[[Callable[[str], Side], str], Side]
OTHER = "00000000-0000-0000-0000-00000000000b"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A look into Redis past whatever is cut."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def wire(redis_url: str) -> Iterator[CutWire]:
    with CutWire(redis_url) as wire:
        yield wire


@pytest.fixture
def one(side: Make, wire: CutWire) -> Side:
    return side(ours, wire.url)


def locks(client: redis.Redis) -> list[str]:
    return list(client.scan_iter("dramatiq:__dramaturg__.unique.*"))


class Jobs:
    """An actor of one, whose jobs wait until they are told to end."""

    def __init__(self, one: Side, unique: Unique, **options: Any) -> None:
        self.one = one
        self.ran: list[Any] = []
        self.began, self.ends = threading.Semaphore(0), threading.Semaphore(0)
        self.error: Exception | None = None

        def job(window: str, note: str = "") -> None:
            self.ran.append((window, note))
            self.began.release()
            assert self.ends.acquire(timeout=15)
            if self.error is not None:
                raise self.error

        self.actor = one.actor(job, unique=unique, **options)

    def send(self, window: str = "w", note: str = "", tenant: str = str(TENANT), **options: Any) -> Message[Any]:
        return self.actor.send_with_options(args=(window,), kwargs={"note": note}, tenant_id=tenant, **options)

    def run_all(self, count: int, client: redis.Redis) -> None:
        """Let so many jobs run, and wait until nothing is left."""
        for _ in range(count):
            self.ends.release()
        with self.one.working():
            eventually(lambda: kept(client) == 0)


class TestWhatIsTheSame:
    def test_arguments_tell_and_tenants_and_how_they_are_given_does_not(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique())
        jobs.send("a")
        for same in ({"args": ("a",)}, {"args": ("a", "")}, {"kwargs": {"note": "", "window": "a"}}):
            with pytest.raises(NotUnique):
                jobs.actor.send_with_options(tenant_id=str(TENANT), **same)
        jobs.send("b")
        jobs.send("a", note="other")
        jobs.send("a", tenant=OTHER)
        assert client.llen(f"dramatiq:{QUEUE}") == 4

    def test_chosen_arguments_alone(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(by=("window",)))
        jobs.send("a", note="x")
        with pytest.raises(NotUnique, match="is waiting"):
            jobs.send("a", note="y")
        jobs.send("b", note="x")
        assert client.llen(f"dramatiq:{QUEUE}") == 2

    def test_of_many_who_send_at_once_one_does(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(second="ignore"))
        start, sent = threading.Barrier(8), list[Outcome]()

        def send() -> None:
            start.wait()
            sent.append(outcome(jobs.send()))

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(o.sent for o in sent) == 1
        assert client.llen(f"dramatiq:{QUEUE}") == 1


class TestHowLong:
    def test_until_its_end(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique())
        first = jobs.send()
        with one.working():
            assert jobs.began.acquire(timeout=15)
            with pytest.raises(NotUnique, match=f"message {first.message_id} is running") as raised:
                jobs.send()
            assert (raised.value.because_of, raised.value.state) == (first.message_id, "running")
            jobs.ends.release()
            eventually(lambda: kept(client) == 0)
        assert locks(client) == []
        jobs.send()
        jobs.run_all(1, client)
        assert len(jobs.ran) == 2

    def test_until_its_start(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(until="start"))
        jobs.send()
        with pytest.raises(NotUnique):
            jobs.send()
        with one.working(threads=1):
            assert jobs.began.acquire(timeout=15)
            jobs.send()
            jobs.ends.release(2)
            eventually(lambda: kept(client) == 0)
        assert len(jobs.ran) == 2
        assert locks(client) == []

    def test_its_retries_included(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(), max_retries=1, min_backoff=3_600_000, max_backoff=3_600_000)
        jobs.error = ValueError("again")
        first = jobs.send()
        jobs.ends.release()
        with one.working():
            eventually(lambda: client.hlen(f"dramatiq:{dq_name(QUEUE)}.msgs") == 1)
        with pytest.raises(NotUnique, match=f"message {first.message_id} is waiting"):
            jobs.send()
        # It is due now.
        eventually(lambda: client.zcard(f"dramatiq:__dramaturg__.due.{dq_name(QUEUE)}") == 1)
        (due,) = client.hkeys(f"dramatiq:{dq_name(QUEUE)}.msgs")
        client.zadd(f"dramatiq:__dramaturg__.due.{dq_name(QUEUE)}", {str(due): 1})
        with one.working():
            assert jobs.began.acquire(timeout=15)
            assert jobs.began.acquire(timeout=15)
            with pytest.raises(NotUnique, match="is running"):
                jobs.send()
            jobs.ends.release()
            eventually(lambda: kept(client) == 0)
        # It is a failed job, which keeps nobody away.
        assert [failure.task_id for failure in one.failures] == [first.message_id]
        assert locks(client) == []

    def test_for_a_period(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(period=3600))
        first = jobs.send()
        jobs.run_all(1, client)
        with pytest.raises(NotUnique, match=f"message {first.message_id} is recent"):
            jobs.send()
        (lock,) = locks(client)
        assert 3_590_000 < int(client.pttl(lock)) <= 3_600_000
        client.hset(lock, "until", 1)
        jobs.send()

    def test_a_failure_ends_its_period(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(period=3600))
        jobs.error = ValueError("no")
        jobs.send()
        jobs.run_all(1, client)
        assert len(one.failures) == 1
        jobs.send()
        assert client.llen(f"dramatiq:{QUEUE}") == 1

    def test_no_longer_than_its_message_is_there(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique())
        jobs.send()
        one.broker.flush(QUEUE)
        jobs.send()
        assert client.llen(f"dramatiq:{QUEUE}") == 1

    def test_what_an_operator_removes_leaves_no_lock(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(period=3600))
        jobs.send("a")
        jobs.send("b", delay=3_600_000)
        purge(one.client, QUEUE, by="me")
        assert locks(client) == []
        # Nor does one whose message is gone in another way keep anybody away for a period.
        jobs.send("a")
        one.broker.flush(QUEUE)
        jobs.send("a")
        assert client.llen(f"dramatiq:{QUEUE}") == 1

    def test_a_message_that_is_given_back_still_holds_it(self, one: Side, side: Make, wire: CutWire) -> None:
        jobs = Jobs(one, Unique())
        first = jobs.send()
        other = side(ours, wire.url)
        consumer = other.broker.consume(QUEUE, timeout=1)
        held = next(consumer)
        assert held is not None
        with pytest.raises(NotUnique, match="is running"):
            jobs.send()
        consumer.requeue([held])
        with pytest.raises(NotUnique, match=f"message {first.message_id} is waiting"):
            jobs.send()
        consumer.close()


class TestWhatBecomesOfTheSecond:
    def test_it_is_ignored_and_its_sender_told(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(second="ignore"))
        first = jobs.send()
        assert outcome(first) == Outcome(sent=True)
        second = jobs.send()
        assert outcome(second) == Outcome(sent=False, because_of=first.message_id, state="waiting")
        # What was told is not part of the message.
        one.broker.enqueue(second.copy(options={"tenant_id": OTHER}))
        jobs.run_all(2, client)
        assert one.failures == []

    def test_it_takes_the_place_of_the_first(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(by=("window",), second="replace"))
        first = jobs.send("a", note="1")
        jobs.send("b", note="1")
        second = jobs.send("a", note="2")
        third = jobs.send("a", note="3")
        assert outcome(second) == Outcome(sent=True, replaced=first.message_id, state=None)
        assert outcome(third).replaced == second.message_id
        jobs.ends.release(2)
        with one.working(threads=1):
            eventually(lambda: kept(client) == 0)
        assert jobs.ran == [("a", "3"), ("b", "1")]
        assert locks(client) == []

    def test_not_literally_where_the_first_may_be_recorded_as_failed(self, one: Side, client: redis.Redis) -> None:
        """As when its worker was lost between its row and its end: whatever has its id is finished, not run."""
        jobs = Jobs(one, Unique(by=("window",), second="replace"))
        first = jobs.send(note="1")
        (recorded,) = client.hkeys(f"dramatiq:{QUEUE}.msgs")
        client.sadd("dramatiq:__dramaturg__.begun_before", f"{QUEUE}:{recorded!s}")
        (guard,) = (m for m in one.broker.middleware if isinstance(m, CrashGuard))
        guard._is_recorded = lambda redis_id: redis_id == recorded
        assert outcome(jobs.send(note="2")).replaced == first.message_id
        jobs.run_all(1, client)
        assert jobs.ran == [("w", "2")]
        assert locks(client) == []

    def test_not_while_that_is_running(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(second="replace"))
        jobs.send()
        with one.working():
            assert jobs.began.acquire(timeout=15)
            with pytest.raises(NotUnique, match="is running"):
                jobs.send()
            jobs.ends.release()
            eventually(lambda: kept(client) == 0)

    @pytest.mark.parametrize(("first", "second"), [(3_600_000, None), (None, 100), (3_600_000, 100)])
    def test_also_where_one_of_them_is_delayed(
        self, one: Side, client: redis.Redis, first: int | None, second: int | None
    ) -> None:
        jobs = Jobs(one, Unique(by=("window",), second="replace"))
        jobs.send(note="first", delay=first)
        if first is not None:
            # It is sorted among the delayed ones.
            with one.working():
                eventually(lambda: client.zcard(f"dramatiq:__dramaturg__.due.{dq_name(QUEUE)}") == 1)
        jobs.send(note="second", delay=second)
        assert kept(client) == 1
        jobs.run_all(1, client)
        assert jobs.ran == [("w", "second")]
        assert locks(client) == []

    def test_an_answer_that_is_lost_changes_nothing(self, one: Side, wire: CutWire, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique(by=("window",), second="replace"))
        first = jobs.send(note="1")
        wire.lose_answer_to(marker_of(one, "enqueue_unique"))
        second = jobs.send(note="2")
        assert wire.lost.is_set()
        assert outcome(second) == Outcome(sent=True, replaced=first.message_id)
        jobs.run_all(1, client)
        assert jobs.ran == [("w", "2")]

    def test_among_many(self, one: Side, client: redis.Redis) -> None:
        jobs = Jobs(one, Unique())
        plain = one.actor(print)
        given = [jobs.actor.message_with_options(args=(w,), tenant_id=str(TENANT)) for w in ("a", "b", "a")]
        given.append(plain.message_with_options(tenant_id=str(TENANT)))
        sent = one.broker.enqueue_many(given)  # type: ignore[attr-defined]
        assert [outcome(message).sent for message in sent] == [True, True, False, True]
        assert outcome(sent[2]).because_of == sent[0].message_id
        assert client.llen(f"dramatiq:{QUEUE}") == 3


def test_a_follow_up_is_sent_whether_or_not_there_is_one(one: Side, client: redis.Redis) -> None:
    jobs = Jobs(one, Unique())
    target = jobs.actor.message_with_options(args=("w",), pipe_ignore=True, tenant_id=str(TENANT))
    parent = one.actor(lambda: None)
    jobs.send()
    one.broker.enqueue(parent.message_with_options(tenant_id=str(TENANT), pipe_target=target.asdict()))
    jobs.run_all(2, client)
    assert len(jobs.ran) == 2
    assert locks(client) == []


def test_a_group_refuses_it(one: Side) -> None:
    jobs = Jobs(one, Unique())
    member = jobs.actor.message_with_options(args=("w",), tenant_id=str(TENANT), group_completion_uuid="u")
    with pytest.raises(dramatiq.middleware.MiddlewareError, match="cannot be a member of a group"):
        one.broker.enqueue(member)
