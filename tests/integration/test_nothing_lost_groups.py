"""Groups with completion callbacks: case 26 of the failure modes, and children that are delivered twice."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import dramatiq
import pytest
import redis
from dramatiq import Broker, Message, MessageProxy
from dramatiq.errors import ConnectionFailed
from dramatiq.middleware import GroupCallbacks, Middleware, MiddlewareError
from dramatiq.rate_limits.backends import RedisBackend
from loguru import logger

from db.tenancy import current_tenant, tenant_context
from middleware.errors import TenantNotGiven, TenantNotValid, UnknownFollowUp
from middleware.lua_scripts import Scripts
from middleware.safe_groups import KEEP, GroupCounts
from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, kept, ours, put, settled, stock
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]
Actor = dramatiq.Actor[..., Any]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A look into Redis past whatever is cut."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wire(redis_url: str) -> Iterator[CutWire]:
    with CutWire(redis_url) as wire:
        yield wire


def stock_with_groups(redis_url: str) -> Side:
    """Dramatiq as it comes, with the middleware that groups with callbacks need."""
    one = stock(redis_url)
    one.broker.add_middleware(GroupCallbacks(RedisBackend(client=one.client)))
    return one


def run(one: Side, children: list[Any], *callbacks: Actor, delay: int | None = None) -> None:
    """Run a group for the tenant; stock Dramatiq's messages carry it, too."""
    group = dramatiq.group(children, broker=one.broker)
    for callback in callbacks:
        group.add_completion_callback(callback.message())
    with tenant_context(TENANT):
        group.run(delay=delay)


def groups(client: redis.Redis) -> list[bytes]:
    return list(client.scan_iter("dramatiq:__dramaturg__.group.*"))


class Cuts(Middleware):
    """Lets Redis go away when a message of this actor is about to be enqueued, once."""

    def __init__(self, wire: CutWire, actor: Actor) -> None:
        self._wire: CutWire | None = wire
        self._actor_name = actor.actor_name

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        if self._wire is not None and message.actor_name == self._actor_name:
            self._wire.down()
            self._wire = None


class TestRedisAwayAtTheEnd:
    def through(self, one: Side, wire: CutWire, client: redis.Redis, when: str) -> list[str]:
        ran: list[str] = []

        def child() -> None:
            ran.append("child")
            if when == "while the last child runs":
                wire.down()

        callback = one.actor(lambda: ran.append("callback"))
        run(one, [one.actor(child).message()], callback)
        if when == "between count and callback":
            one.broker.add_middleware(Cuts(wire, callback))
        done = settled(one)
        with one.working():
            assert done.wait(15)
            wire.up()
            eventually(lambda: kept(client) == 0)
        return ran

    @pytest.mark.parametrize("when", ["while the last child runs", "between count and callback"])
    def test_stock_loses_the_callback(self, side: Make, wire: CutWire, client: redis.Redis, when: str) -> None:
        assert self.through(side(stock_with_groups, wire.url), wire, client, when) == ["child"]

    @pytest.mark.parametrize("when", ["while the last child runs", "between count and callback"])
    def test_ours_enqueues_it(self, side: Make, wire: CutWire, client: redis.Redis, when: str) -> None:
        one = side(ours, wire.url)
        assert self.through(one, wire, client, when) == ["child", "callback"]
        assert one.failures == []


class FrozenBeforeAck(Middleware):
    """Its process freezes after the hooks of a child, before it is acknowledged."""

    def __init__(self, child: Actor) -> None:
        self._child = child.actor_name
        self._redis_id = ""
        self.frozen, self.go_on = threading.Event(), threading.Event()

    def before_ack(self, broker: Broker, message: MessageProxy) -> None:
        if message.actor_name == self._child:
            self._redis_id = message.options["redis_message_id"]
            self.frozen.set()
            assert self.go_on.wait(30)

    def give_back(self, client: redis.Redis, broker: Broker) -> None:
        """Do as other processes do with what a silent one holds."""
        acks = f"dramatiq:__acks__.{broker.broker_id}.{QUEUE}"  # type: ignore[attr-defined]
        assert client.srem(acks, self._redis_id) == 1
        client.lpush(f"dramatiq:{QUEUE}", self._redis_id)


class Ended(Middleware):
    """Tells when a message of this actor was acknowledged."""

    def __init__(self, actor: Actor) -> None:
        self._actor_name = actor.actor_name
        self.event = threading.Event()

    def after_ack(self, broker: Broker, message: MessageProxy) -> None:
        if message.actor_name == self._actor_name:
            self.event.set()


class TestAChildIsDeliveredTwice:
    def through(
        self, make: Make, kind: Callable[[str], Side], redis_url: str, client: redis.Redis
    ) -> tuple[list[str], list[str]]:
        """Return what had run while the other child was still to come, and what in the end."""
        ran: list[str] = []
        other_may_end = threading.Event()
        first, second = make(kind, redis_url), make(kind, redis_url)

        def waits() -> None:
            other_may_end.wait(30)
            ran.append("other")

        actors = []
        for one in (first, second):
            child = one.actor(lambda: ran.append("child"), actor_name="test.child")
            other = one.actor(waits, actor_name="test.other")
            callback = one.actor(lambda: ran.append("callback"), actor_name="test.callback")
            actors.append((child, other, callback))
        child, other, callback = actors[0]
        frozen, ended = FrozenBeforeAck(child), Ended(actors[1][0])
        first.broker.add_middleware(frozen)
        second.broker.add_middleware(ended)
        run(first, [child.message(), other.message()], callback)
        with first.working() as worker:
            assert frozen.frozen.wait(15)
            for consumer in worker.consumers.values():
                consumer.pause()
                assert consumer.paused_event.wait(15)
            frozen.give_back(client, first.broker)
            with second.working():
                assert ended.event.wait(15)
                # What this delivery led to, if anything, is there by now; the other child is what remains.
                eventually(lambda: kept(client) == 1)
                early = list(ran)
                frozen.go_on.set()
                other_may_end.set()
                eventually(lambda: kept(client) == 0)
        return early, ran

    def test_stock_calls_back_early_and_twice(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        early, ran = self.through(side, stock_with_groups, redis_url, client)
        assert early == ["child", "child", "callback"]
        assert ran == ["child", "child", "callback", "other", "callback"]

    def test_ours_calls_back_once_at_the_end(self, side: Make, redis_url: str, client: redis.Redis) -> None:
        early, ran = self.through(side, ours, redis_url, client)
        assert early == ["child", "child"]
        assert ran == ["child", "child", "other", "callback"]

    def test_ours_counts_once_when_the_answer_is_lost(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        one = side(ours, wire.url)
        ran: list[str] = []
        child = one.actor(lambda: ran.append("child"))
        callback = one.actor(lambda: ran.append("callback"))
        one.send(child)
        with one.working():
            # The scripts are known to the server from here on.
            eventually(lambda: kept(client) == 0)
        run(one, [child.message(), child.message()], callback)
        finish: str = one.broker.run._scripts["finish"].sha  # type: ignore[attr-defined]
        wire.lose_answer_to(finish.encode())
        with one.working(threads=1):
            assert wire.lost.wait(15)
            eventually(lambda: kept(client) == 0)
        assert ran == ["child", "child", "child", "callback"]


class TestTwoProcesses:
    @pytest.mark.parametrize("delay", [None, 50])
    def test_twenty_children_call_back_once_for_their_tenant(
        self, side: Make, redis_url: str, client: redis.Redis, delay: int | None
    ) -> None:
        ran: Counter[int] = Counter()
        called: list[tuple[str, UUID | None, int]] = []

        def job(n: int) -> None:
            ran[n] += 1
            if n % 5 == 0 and ran[n] == 1:
                raise ValueError("at the first try")

        sides = [side(ours, redis_url), side(ours, redis_url)]
        for one in sides:
            one.actor(job, actor_name="test.job", max_retries=1, min_backoff=1, max_backoff=1)
            for name in ("test.first", "test.second"):
                one.actor(lambda name=name: called.append((name, current_tenant(), ran.total())), actor_name=name)
        actors = sides[0].broker.actors
        with sides[0].working(), sides[1].working():
            run(
                sides[0],
                [actors["test.job"].message(n) for n in range(20)],
                actors["test.first"],
                actors["test.second"],
                delay=delay,
            )
            eventually(lambda: kept(client) == 0)
        assert ran.total() == 24
        assert sorted(called) == [("test.first", TENANT, 24), ("test.second", TENANT, 24)]
        assert sides[0].failures == sides[1].failures == []
        # Of a complete group is kept that it is complete.
        (group,) = groups(client)
        assert client.hgetall(group) == {b"left": b"0"}
        assert 0 < client.pttl(group) <= KEEP


@pytest.fixture
def one(side: Make, redis_url: str) -> Side:
    return side(ours, redis_url)


class TestChildren:
    def test_a_pipelines_last_message_is_the_child(self, one: Side, client: redis.Redis) -> None:
        ran: list[str] = []

        def names(name: str) -> Actor:
            return one.actor(lambda *_: ran.append(name), actor_name=f"test.{name}")

        first, second, third, callback = map(names, ("first", "second", "third", "callback"))
        pipe = dramatiq.pipeline([first.message(), second.message(), third.message()], broker=one.broker)
        run(one, [pipe, first.message()], callback)
        with one.working():
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == ["callback", "first", "first", "second", "third"]
        assert ran[-1] == "callback"

    def test_one_message_several_times_is_several_children(self, one: Side, client: redis.Redis) -> None:
        ran: list[str] = []
        child = one.actor(lambda: ran.append("child")).message()
        before = one.actor(lambda: ran.append("pipe")).message()
        pipe = dramatiq.pipeline([before, child.copy(options={"pipe_ignore": True})], broker=one.broker)
        run(one, [child, child, pipe, pipe, child], one.actor(lambda: ran.append("callback")))
        with one.working():
            eventually(lambda: kept(client) == 0)
        assert sorted(ran) == ["callback", *["child"] * 5, "pipe", "pipe"]
        assert ran[-1] == "callback"

    def test_one_that_failed_keeps_the_group_open_until_it_succeeds(self, one: Side, client: redis.Redis) -> None:
        ran: list[str] = []
        broken = threading.Event()
        broken.set()

        def child() -> None:
            if broken.is_set():
                raise ValueError("broken")
            ran.append("mended")

        good, bad = one.actor(lambda: ran.append("good")), one.actor(child)
        run(one, [good.message(), bad.message()], one.actor(lambda: ran.append("callback")))
        messages = [Message.decode(d) for d in client.hvals(f"dramatiq:{QUEUE}.msgs") if isinstance(d, bytes)]
        (again,) = [m for m in messages if m.actor_name == bad.actor_name]
        with one.working():
            eventually(lambda: kept(client) == 0)
            assert ran == ["good"]
            (failure,) = one.failures
            assert failure.task_id == again.message_id
            (group,) = groups(client)
            assert client.hget(group, "left") == b"1"
            broken.clear()
            one.broker.enqueue(again)
            eventually(lambda: kept(client) == 0)
        assert ran == ["good", "mended", "callback"]

    def test_one_whose_success_failed_does_not_count(self, one: Side, client: redis.Redis) -> None:
        child = one.actor(object)
        target = one.actor(lambda _: None).message_with_options(tenant_id=str(TENANT)).asdict()
        # What it returned is no JSON, so that its other follow-up cannot be enqueued.
        run(one, [child.message_with_options(pipe_target=target)], one.actor(lambda: None))
        with one.working():
            eventually(lambda: kept(client) == 0)
        (failure,) = one.failures
        assert "pipe_target of message" in failure.error_message
        (group,) = groups(client)
        assert client.hget(group, "left") == b"1"

    def test_one_whose_callback_cannot_be_enqueued_is_a_failure(self, one: Side, client: redis.Redis) -> None:
        callback = one.actor(lambda: None)
        run(one, [one.actor(lambda: None).message()], callback)

        class Refuses(Middleware):
            def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
                if message.actor_name == callback.actor_name:
                    raise MiddlewareError("not today")

        one.broker.add_middleware(Refuses())
        with one.working():
            eventually(lambda: kept(client) == 0)
        (failure,) = one.failures
        assert failure.exception_class == "middleware.errors.FollowUpNotSent"
        assert "group_completion_callbacks of message" in failure.error_message
        assert "not today" in failure.error_message

    def test_one_of_a_group_that_is_not_known_ends_and_says_so(self, one: Side, client: redis.Redis) -> None:
        run(one, [one.actor(lambda: None).message()], one.actor(lambda: None))
        client.delete(*groups(client))
        said: list[str] = []
        handler = logger.add(said.append, level="ERROR", format="{message}")
        try:
            with one.working():
                eventually(lambda: kept(client) == 0)
        finally:
            logger.remove(handler)
        assert any("its callbacks will not come" in line for line in said)
        assert one.failures == []
        assert groups(client) == []

    @pytest.mark.parametrize("option", ["group_completion_uuid", "group_completion_child"])
    def test_options_of_another_kind_are_a_failure(self, one: Side, client: redis.Redis, option: str) -> None:
        child = one.actor(lambda: None)
        options: dict[str, Any] = {"tenant_id": str(TENANT), "redis_message_id": "bad", option: {"no": "string"}}
        put(client, "bad", child.message_with_options(**options).encode())
        with one.working():
            eventually(lambda: kept(client) == 0)
        (failure,) = one.failures
        assert f"option '{option}' must be a string" in failure.error_message

    def test_a_lone_surrogate_stops_no_worker(self, one: Side, client: redis.Redis) -> None:
        callback = one.actor(lambda: None).message_with_options(tenant_id=str(TENANT)).asdict()
        options: dict[str, Any] = {"group_completion_uuid": "\ud800", "group_completion_callbacks": [callback]}
        child = one.actor(lambda: None).message_with_options(**options, tenant_id=str(TENANT), redis_message_id="odd")
        put(client, "odd", child.copy(message_id="\ud800").encode())
        with one.working():
            eventually(lambda: kept(client) == 0)
        assert one.failures == []


class TestAtRun:
    def test_without_redis_it_says_so_and_nothing_is_enqueued(
        self, side: Make, wire: CutWire, client: redis.Redis
    ) -> None:
        one = side(ours, wire.url)
        child, callback = one.actor(lambda: None), one.actor(lambda: None)
        wire.down()
        with pytest.raises(ConnectionFailed, match=r"group [0-9a-f-]{36} of 2 children was not begun, and none"):
            run(one, [child.message(), child.message()], callback)
        assert kept(client) == 0
        assert groups(client) == []

    def test_an_answer_that_is_lost_changes_nothing(self, side: Make, wire: CutWire, client: redis.Redis) -> None:
        one = side(ours, wire.url)
        child, callback = one.actor(lambda: None), one.actor(lambda: None)
        run(one, [child.message()], callback)
        begin: str = Scripts(client, "dramatiq")._scripts["begin_group"].sha
        wire.lose_answer_to(begin.encode())
        run(one, [child.message(), child.message()], callback)
        assert wire.lost.is_set()
        assert {client.hget(group, "left") for group in groups(client)} == {b"1", b"2"}

    def test_a_callback_that_nobody_knows_is_refused(self, one: Side, client: redis.Redis) -> None:
        child = one.actor(lambda: None)
        for made in (child.message(), dramatiq.pipeline([child.message(), child.message()], broker=one.broker)):
            group = dramatiq.group([made], broker=one.broker)
            group.add_completion_callback(child.message().copy(actor_name="nobody"))
            said = "option 'group_completion_callbacks' names actor 'nobody'"
            with tenant_context(TENANT), pytest.raises(UnknownFollowUp, match=said):
                group.run()
        assert kept(client) == 0

    def test_a_callback_without_a_tenant_or_for_another_is_refused(self, one: Side, client: redis.Redis) -> None:
        child, scoped = one.actor(lambda: None, tenant_scoped=False), one.actor(lambda: None)
        cases = [
            (None, child, scoped.message(), TenantNotGiven),
            (TENANT, scoped, scoped.message_with_options(tenant_id=UUID(int=0xB)), TenantNotValid),
        ]
        for tenant_id, actor, callback, error in cases:
            group = dramatiq.group([actor.message()], broker=one.broker)
            group.add_completion_callback(callback)
            with tenant_context(tenant_id), pytest.raises(error, match=scoped.actor_name):
                group.run()
        assert kept(client) == 0

    def test_counts_are_no_rate_limiters_backend(self, client: redis.Redis) -> None:
        with pytest.raises(NotImplementedError):
            GroupCounts(Scripts(client, "dramatiq")).decr("key", 1, 0, 1_000)


class TestCalls:
    def test_a_group_costs_one_call_more_than_its_messages(self, one: Side, client: redis.Redis) -> None:
        child, callback = one.actor(lambda: None), one.actor(lambda: None)

        def calls() -> int:
            return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])

        def cost(what: Callable[[], object]) -> int:
            before = calls()
            what()
            return calls() - before

        run(one, [child.message()], callback)  # the scripts are known to the server from here on
        assert cost(lambda: [one.send(child) for _ in range(5)]) == 5
        assert cost(lambda: run(one, [child.message() for _ in range(5)], callback)) == 6

    def test_ending_a_message_is_one_call_in_a_group_and_fewer_else(
        self, one: Side, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        names: list[str] = []
        scripts: Scripts = one.broker.run  # type: ignore[attr-defined]

        def spy(name: str, *arguments: Any) -> Any:
            names.append(name)
            return scripts(name, *arguments)

        child, callback = one.actor(lambda: None), one.actor(lambda: None)
        for _ in range(5):
            one.send(child)
        run(one, [child.message() for _ in range(5)], callback)
        monkeypatch.setattr(one.broker, "run", spy)
        with one.working():
            eventually(lambda: kept(client) == 0)
        assert names.count("finish") == 5
        assert 1 <= names.count("finish_many") <= 6
        # What else a worker asks for belongs to no message.
        assert {*names} <= {"finish", "finish_many", "held", "requeue", "sort", "tell"}


def finish(run: Scripts, child: str, group: str = "g", ours: bool = True) -> Any:
    """End a delivery of a child whose callback is a message on queue ``c``."""
    redis_id = uuid.uuid4().hex
    return run(
        "finish",
        "q",
        "b",
        redis_id if not ours else f"held-{child}",
        "",
        0,
        "",
        7,
        1,
        "q",
        f"next-{redis_id}",
        "{}",
        group,
        child,
        1_000_000,
        "c",
        f"callback-{redis_id}",
        "{}",
    )


class TestTheScript:
    def test_each_child_counts_once_and_the_last_brings_the_callbacks(self, client: redis.Redis) -> None:
        run, key = Scripts(client, "dramatiq"), "dramatiq:__dramaturg__.group.g"
        GroupCounts(run).add("g", 2, 5_000)
        assert 0 < client.pttl(key) <= 5_000

        def deliver(child: str) -> int:
            client.hset("dramatiq:__dramaturg__.leases", "b", 7)
            client.hset("dramatiq:q.msgs", f"held-{child}", "{}")
            client.sadd("dramatiq:__acks__.b.q", f"held-{child}")
            ended: int = finish(run, child)
            return ended

        assert [deliver("left"), deliver("left")] == [1, 1]
        assert client.hget(key, "left") == b"1"
        assert client.llen("dramatiq:c") == 0
        assert client.pttl(key) > 5_000
        assert deliver("2") == 1
        assert client.llen("dramatiq:c") == client.hlen("dramatiq:c.msgs") == 1
        assert [deliver("2"), deliver("3")] == [1, 1]
        assert client.llen("dramatiq:c") == 1
        # What follows besides is enqueued with each delivery.
        assert client.llen("dramatiq:q") == 5
        assert client.scard("dramatiq:__acks__.b.q") == 0

    def test_a_delivery_that_was_lost_counts_nothing(self, client: redis.Redis) -> None:
        run = Scripts(client, "dramatiq")
        GroupCounts(run).add("g", 1, 5_000)
        client.hset("dramatiq:q.msgs", "held-1", "{}")
        assert finish(run, "1") == 0
        assert client.hget("dramatiq:__dramaturg__.group.g", "left") == b"1"
        assert client.llen("dramatiq:c") == 0
