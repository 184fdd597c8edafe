"""Dramatiq's StubBroker, in which what is sent inside a transaction leaves with it, as in production."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from dramatiq import Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import QueueNotFound
from sqlalchemy import Connection

from db.open_transaction import innermost


class TransactionalStub(StubBroker):
    """See this module's text. It needs no table: what waits for a commit waits in memory.

    Attributes:
      takes_all: Whether what is sent inside a transaction leaves with it.
    """

    takes_all = True

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """As :meth:`StubBroker.enqueue`, but inside a transaction when that is committed, unless the option ``now`` is
        true.

        Raises:
          QueueNotFound: When the queue was not declared.
        """
        queue_name = message.queue_name
        # The caller's options are left alone.
        message = message.copy()
        if delay is not None:
            queue_name = dq_name(queue_name)
            message = message.copy(queue_name=queue_name, options={"eta": current_millis() + delay})
        if queue_name not in self.queues:
            raise QueueNotFound(queue_name)
        self.emit_before("enqueue", message, delay)
        now = message.options.pop("now", None)
        entry = (queue_name, message.encode())
        opened = innermost() if self.takes_all and not now else None
        if opened is None or not opened.take_along(self, entry):
            self.committed([entry])
        self.emit_after("enqueue", message, delay)
        return message

    def write(self, connection: Connection, tenant_id: UUID | None, things: Sequence[tuple[str, bytes]]) -> None:
        """Do nothing: they are not in the database."""

    def committed(self, things: Sequence[tuple[str, bytes]]) -> None:
        """Put them on their queues."""
        for queue_name, data in things:
            self.queues[queue_name].put(data)

    def left(self, things: Sequence[tuple[str, bytes]]) -> None:
        """The same: nothing has to be waited for."""
        self.committed(things)
