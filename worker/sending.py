"""Sends many messages at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dramatiq
from dramatiq import Message

from middleware.lossless_broker import LosslessBroker
from middleware.memory_broker import MemoryBroker


def enqueue_many(messages: Iterable[Message[Any]], *, delay: int | None = None) -> list[Message[Any]]:
    """Enqueue messages in their order, a thousand in each round trip to Redis.

    Arguments:
      messages: Of any actors and queues, as ``actor.message(...)`` and ``actor.message_with_options(...)`` make them.
      delay: Milliseconds before each of them is due.

    Returns them as they were enqueued. One that is unique, and of which there is one already, is left out, whatever its
    actor says of a second: :func:`middleware.unique.outcome` tells.

    Raises:
      MiddlewareError: When one of them is refused, as its ``send()`` would be; then none was enqueued.
      EnqueuedInPart: When Redis did not say that it has all of them; it says which it has.
    """
    broker = dramatiq.get_broker()
    if isinstance(broker, LosslessBroker | MemoryBroker):
        return broker.enqueue_many(messages, delay=delay)
    return [broker.enqueue(message, delay=delay) for message in messages]
