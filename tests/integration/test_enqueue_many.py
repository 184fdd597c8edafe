"""Many messages in one round trip: all in their order, each once, or none where one of them may not be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message, Middleware
from dramatiq.errors import ConnectionFailed

from middleware.errors import EnqueuedInPart, OptionRefused, TenantNotGiven
from middleware.hooks import BeforeEnqueue
from middleware.tenant_context import TenantContext
from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, kept, marker_of, ours
from tests.waiting import eventually
from worker.sending import enqueue_many

Make = Callable[[Callable[[str], Side], str], Side]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A look into Redis past whatever is cut."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def wire(redis_url: str) -> Iterator[CutWire]:
    with CutWire(redis_url) as wire:
        yield wire


@pytest.fixture
def one(side: Make, wire: CutWire) -> Iterator[Side]:
    """Our broker, the global one for the length of the test."""
    before = dramatiq.get_broker()
    one = side(ours, wire.url)
    dramatiq.set_broker(one.broker)
    try:
        yield one
    finally:
        dramatiq.set_broker(before)


def messages(actor: dramatiq.Actor[..., Any], count: int, **options: Any) -> list[Message[Any]]:
    return [actor.message_with_options(args=(n,), **{"tenant_id": str(TENANT), **options}) for n in range(count)]


def scripts_run(client: redis.Redis) -> int:
    return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


def test_a_thousand_take_one_round_trip_and_run_in_their_order(one: Side, client: redis.Redis) -> None:
    ran: list[int] = []
    actor = one.actor(ran.append)
    enqueue_many(messages(actor, 1))
    before = scripts_run(client)
    sent = enqueue_many(messages(actor, 1000))
    assert scripts_run(client) - before == 1
    assert len({message.options["redis_message_id"] for message in sent}) == 1000
    assert sent[0].options["tenant_id"] == str(TENANT)
    with one.working(threads=1):
        eventually(lambda: len(ran) == 1001)
        eventually(lambda: kept(client) == 0)
    assert ran == [0, *range(1000)]
    assert one.failures == []


def test_more_than_one_step_takes_are_all_there(one: Side, client: redis.Redis) -> None:
    enqueue_many(messages(one.actor(print), 2_500))
    assert client.llen(f"dramatiq:{QUEUE}") == 2_500


def test_they_may_be_delayed(one: Side, client: redis.Redis) -> None:
    ran: list[int] = []
    sent = enqueue_many(messages(one.actor(ran.append), 20), delay=50)
    assert {message.queue_name for message in sent} == {f"{QUEUE}.DQ"}
    with one.working():
        eventually(lambda: sorted(ran) == [*range(20)])


@pytest.mark.parametrize(
    ("options", "error"), [({"tenant_id": None}, TenantNotGiven), ({"time_limit": "9"}, OptionRefused)]
)
def test_one_that_is_refused_keeps_all_from_being_sent(
    one: Side, client: redis.Redis, options: dict[str, Any], error: type[Exception]
) -> None:
    actor = one.actor(print)
    with pytest.raises(error, match=next(iter(options))):
        enqueue_many([*messages(actor, 3), *messages(actor, 1, **options)])
    assert kept(client) == 0


def test_a_lost_answer_doubles_none(one: Side, wire: CutWire, client: redis.Redis) -> None:
    ran: list[int] = []
    actor = one.actor(ran.append)
    enqueue_many(messages(actor, 1))
    wire.lose_answer_to(marker_of(one, "enqueue"))
    enqueue_many(messages(actor, 50))
    assert wire.lost.is_set()
    with one.working():
        eventually(lambda: kept(client) == 0)
    assert sorted(ran) == [0, *range(50)]


def test_what_redis_did_not_take_is_named(
    one: Side, wire: CutWire, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("middleware.lossless_broker.AT_ONCE", 2)
    actor = one.actor(print)
    enqueue_many(messages(actor, 1))
    given = messages(actor, 6)
    wire.down_at(given[2].message_id.encode())
    with pytest.raises(EnqueuedInPart, match="of 6 messages 2 were enqueued, 2 perhaps, 2 not") as raised:
        enqueue_many(given)
    assert isinstance(raised.value, ConnectionFailed)
    named = [raised.value.sent, raised.value.unsure, raised.value.not_sent]
    assert [[m.message_id for m in part] for part in named] == [
        [m.message_id for m in given[at : at + 2]] for at in (0, 2, 4)
    ]
    assert client.llen(f"dramatiq:{QUEUE}") == 3


def test_an_actor_sends_many(one: Side, client: redis.Redis) -> None:
    ran: list[int] = []
    child = one.actor(ran.append)
    parent = one.actor(lambda: enqueue_many([child.message(n) for n in range(10)]))
    one.send(parent)
    with one.working():
        eventually(lambda: sorted(ran) == [*range(10)])
        eventually(lambda: kept(client) == 0)


class Noting(Middleware):
    """An application's middleware, which notes when it sees what, and whether that has its tenant."""

    def __init__(self, name: str, seen: list[tuple[str, int, bool]]) -> None:
        self._name, self._seen = name, seen

    def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._seen.append((self._name, message.args[0], "correlation_id" in message.options))

    def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
        self._seen.append((f"after {self._name}", message.args[0], True))


def test_the_hooks_of_others_see_one_message_after_the_other(one: Side) -> None:
    seen: list[tuple[str, int, bool]] = []
    one.broker.add_middleware(Noting("first", seen), before=TenantContext)
    one.broker.add_middleware(Noting("last", seen))
    enqueue_many(messages(one.actor(print), 2))
    assert seen == [
        ("first", 0, False),
        ("last", 0, True),
        ("first", 1, False),
        ("last", 1, True),
        ("after last", 0, True),
        ("after first", 0, True),
        ("after last", 1, True),
        ("after first", 1, True),
    ]


class Choking(BeforeEnqueue):
    """Fails, as nothing should, at one message among several."""

    def before_enqueue_many(self, broker: Any, messages: Any, delay: Any) -> None:
        for message in messages:
            if message.args[0] == 1:
                raise ValueError("one")
            message.options["looked_at"] = True


def test_a_hook_that_fails_at_one_looks_at_the_others(one: Side) -> None:
    one.broker.add_middleware(Choking())
    sent = enqueue_many(messages(one.actor(print), 3))
    assert [message.options.get("looked_at") for message in sent] == [True, None, True]


def test_what_is_said_again_puts_there_what_is_not_there_once(one: Side, client: redis.Redis) -> None:
    run = one.broker.run  # type: ignore[attr-defined]
    words = (QUEUE, 3, "a", b"1", "b", b"2", "c", b"3", "other", 1, "d", b"4", QUEUE, 1, "e", b"5")
    run("enqueue", *words)
    run("enqueue", *words)
    assert client.lrange(f"dramatiq:{QUEUE}", 0, -1) == [b"a", b"b", b"c", b"e"]
    assert client.hgetall("dramatiq:other.msgs") == {b"d": b"4"}
    client.lpop(f"dramatiq:{QUEUE}")
    client.hdel(f"dramatiq:{QUEUE}.msgs", "a")
    run("enqueue", *words)
    assert client.lrange(f"dramatiq:{QUEUE}", 0, -1) == [b"b", b"c", b"e", b"a"]
    assert client.hlen(f"dramatiq:{QUEUE}.msgs") == 4
