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
