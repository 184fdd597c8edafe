"""Many messages in one round trip: all in their order, each once, or none where one of them may not be sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.errors import ConnectionFailed

from middleware.errors import EnqueuedInPart, OptionRefused, TenantNotGiven
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
