"""Refuses queues that nobody declared.

Stock Dramatiq accepts a message for any queue on Redis, where it then waits for a consumer that never comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dramatiq import Broker, Message
from dramatiq.common import q_name

from middleware.dramatiq_internals import sent_by_somebody
from middleware.errors import UndeclaredQueue
from middleware.hooks import BeforeEnqueue


class KnownQueues(BeforeEnqueue):
    """Lets actors be declared on, and messages be sent to, the given queues only.

    Arguments:
      queues: Their names. The set itself is kept, so that adding to it lets a queue be used.

    Raises (from the actor decorator, and from ``send()``):
      UndeclaredQueue: Naming the queue and the known ones.
    """

    def __init__(self, queues: set[str]) -> None:
        self._queues = queues

    def _check(self, queue_name: str, what: str) -> None:
        if q_name(queue_name) not in self._queues:
            known = ", ".join(sorted(self._queues))
            raise UndeclaredQueue(f"{what} queue {queue_name!r}, which is not declared; known: {known}")

    def before_declare_actor(self, broker: Broker, actor: Any) -> None:
        self._check(actor.queue_name, f"actor {actor.actor_name!r} is on")

    def before_declare_queue(self, broker: Broker, queue_name: str) -> None:
        self._check(queue_name, "cannot declare")

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        sent = sent_by_somebody(messages)
        if not {message.queue_name for message in sent} <= self._queues:
            for message in sent:
                self._check(message.queue_name, f"message for actor {message.actor_name!r} goes to")
