"""What is encoded is what Dramatiq would encode, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq import Message
from dramatiq.encoder import JSONEncoder
from hypothesis import given
from hypothesis import strategies as st

from middleware.encoding import encode

_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(args=st.lists(_values, max_size=3), kwargs=st.dictionaries(st.text(), _values, max_size=3))
def test_it_is_dramatiqs(args: list[Any], kwargs: dict[str, Any]) -> None:
    message = Message[Any]("q", "a", tuple(args), kwargs, {"retries": 1})
    assert encode(message) == message.encode()


def test_what_is_no_json_raises_the_same() -> None:
    message = Message[Any]("q", "a", (object(),), {}, {})
    with pytest.raises(TypeError) as ours:
        encode(message)
    with pytest.raises(TypeError) as dramatiqs:
        message.encode()
    assert str(ours.value) == str(dramatiqs.value)


@pytest.mark.parametrize(
    ("args", "kwargs", "options", "culprit"),
    [
        ((1, {"deep": {2}}), {}, {}, "args[1]"),
        ((1,), {"b": "x", "hidden": {"hunter2"}}, {}, "kwargs['hidden']"),
        ((), {}, {"retries": 1, "tags": {1}}, "options['tags']"),
    ],
)
def test_what_is_no_json_is_named_without_its_value(
    args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any], culprit: str
) -> None:
    with pytest.raises(TypeError) as raised:
        encode(Message[Any]("q", "an.actor", args, kwargs, options))
    assert raised.value.__notes__ == [f"in {culprit} of a message for an.actor"]


def test_a_circle_raises_the_same_and_is_forgotten() -> None:
    circle: list[Any] = []
    circle.append(circle)
    for _ in range(2):
        with pytest.raises(ValueError, match="Circular reference detected"):
            encode(Message[Any]("q", "a", (circle,), {}, {}))
    circle.clear()
    assert b'"args":[[]]' in encode(Message[Any]("q", "a", (circle,), {}, {}))


@pytest.mark.parametrize("fields", [{"kwargs": None}, {"queue_name": 5}, {"message_timestamp": None}, {"options": []}])
def test_what_is_no_message_is_encoded_all_the_same(fields: dict[str, Any]) -> None:
    given: dict[str, Any] = {"queue_name": "q", "actor_name": "a", "args": (), "kwargs": {}, "options": {}, **fields}
    message = Message[Any](**given)
    assert encode(message) == message.encode()


class Shouting(JSONEncoder):
    def encode(self, data: dict[str, Any]) -> bytes:
        return super().encode(data).upper()


@pytest.fixture
def shouting() -> Iterator[None]:
    before = dramatiq.get_encoder()
    dramatiq.set_encoder(Shouting())
    yield
    dramatiq.set_encoder(before)


@pytest.mark.usefixtures("shouting")
def test_an_encoder_of_the_applications_is_used() -> None:
    assert b'"QUEUE_NAME":"Q"' in encode(Message[Any]("q", "a", (), {}, {}))
