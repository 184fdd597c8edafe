"""Messages that are made quickly are Dramatiq's, in everything that can be seen of them."""

from __future__ import annotations

import time
from typing import Any
from uuid import RFC_4122, UUID

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.brokers.stub import StubBroker

from middleware.messages import QuickActor, make_message, new_message_id


@pytest.fixture
def actors() -> tuple[dramatiq.Actor[..., Any], dramatiq.Actor[..., Any]]:
    """Dramatiq's own, and ours."""
    stock, quick = StubBroker(), StubBroker()
    return (
        dramatiq.actor(broker=stock, actor_name="job")(lambda *args, **kwargs: None),
        dramatiq.actor(broker=quick, actor_name="job", actor_class=QuickActor)(lambda *args, **kwargs: None),
    )


def test_ids_are_random_uuids_as_text() -> None:
    ids = [new_message_id() for _ in range(1_000)]
    assert len(set(ids)) == 1_000
    assert {(UUID(one).version, UUID(one).variant, str(UUID(one)) == one) for one in ids} == {(4, RFC_4122, True)}


def test_a_message_is_one_that_dramatiq_makes() -> None:
    fields: tuple[Any, ...] = ("q", "a", (1,), {"b": 2}, {"c": 3}, "id", 4)
    made, dramatiqs = make_message(*fields), Message[Any](*fields)
    assert made == dramatiqs
    assert (made.asdict(), repr(made), made.encode()) == (dramatiqs.asdict(), repr(dramatiqs), dramatiqs.encode())
    with pytest.raises(AttributeError):
        made.args = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"args": (1, "two"), "kwargs": {"three": 3}, "max_retries": 4},
        {"args": [1, 2]},
        {"kwargs": None, "on_failure": None},
    ],
)
def test_an_actor_makes_what_dramatiqs_makes(actors: tuple[Any, Any], said: dict[str, Any]) -> None:
    before = int(time.time() * 1000)
    stock, quick = (actor.message_with_options(**said) for actor in actors)
    assert {**quick.asdict(), "message_id": "", "message_timestamp": 0} == {
        **stock.asdict(),
        "message_id": "",
        "message_timestamp": 0,
    }
    assert before <= quick.message_timestamp <= int(time.time() * 1000)


def test_what_dramatiq_makes_of_callbacks_is_made(actors: tuple[Any, Any]) -> None:
    _, quick = actors
    assert quick.message_with_options(on_success=quick).options == {"on_success": "job"}
    with pytest.raises(TypeError, match="on_failure value must be an Actor"):
        quick.message_with_options(on_failure=5)
