"""A StubBroker that keeps unique jobs apart, and sends with transactions, so that tests see what production does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dramatiq import Message
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import QueueNotFound
from dramatiq.middleware import MiddlewareError

from db.open_transaction import innermost
from middleware import unique
from middleware.dramatiq_internals import is_dramatiqs_own_enqueue
from middleware.message_checks import UNIQUE

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass
class _Lock:
    """Who keeps others away, doing what: ``waiting``, ``running`` or ``recent``; and, in seconds since 1970, till when
    in any case."""

    message_id: str
    queue_name: str
    state: str
    until: float


class _Settled(MiddlewareError):
    """Leads out of enqueueing with a message that is not to be enqueued."""

    def __init__(self, message: Message[Any]) -> None:
        super().__init__()
        self.message = message


class MemoryBroker(StubBroker):
    """Holds the locks that the LosslessBroker has in Redis in memory, and what waits for a commit, by the same rules.

    Attributes:
      takes_all: Whether what is sent inside a transaction leaves with it; that needs no table.
    """

    takes_all = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._locks: dict[str, _Lock] = {}
        self._mutex = threading.Lock()
        super().__init__(*args, **kwargs)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue ``message``, as :meth:`StubBroker.enqueue`; inside a transaction when that is committed, unless its
        option ``now`` is true.

        Raises:
          NotUnique: When its actor is unique, refuses a second, and there is one already.
          QueueNotFound: When its queue was not declared.
        """
        sent = self._send(self._prepare(message, delay), delay)
        if not unique.outcome(sent).sent:
            unique.refuse(sent)
        return sent

    def enqueue_many(self, messages: Iterable[Message[Any]], *, delay: int | None = None) -> list[Message[Any]]:
        """Enqueue messages in their order; see :meth:`LosslessBroker.enqueue_many`, by whose rules none is sent where
        one may not be, and one of which there is one already is left out.

        Raises:
          MiddlewareError: When one of them is refused, as ``send()`` would.
          QueueNotFound: When the queue of one was not declared.
        """
        prepared = [self._prepare(message, delay) for message in messages]
        for message in prepared:
            # What cannot be encoded is not sent, either.
            message.encode()
        return [self._send(message, delay) for message in prepared]

    def _prepare(self, message: Message[Any], delay: int | None) -> Message[Any]:
        # The caller's options are left alone.
        message = message.copy()
        if delay is not None:
            eta = current_millis() + delay
            message = message.copy(queue_name=dq_name(message.queue_name), options={"eta": eta})
        if message.queue_name not in self.queues:
            raise QueueNotFound(message.queue_name)
        self.emit_before("enqueue", message, delay)
        return message

    def _send(self, message: Message[Any], delay: int | None) -> Message[Any]:
        """Send a message, and return it with what became of it."""
        # It is about sending, and not the receiver's business.
        now = message.options.pop("now", None)
        opened = innermost() if self.takes_all and not now else None
        if opened is None or not opened.take_along(self, message):
            try:
                self._put(message)
            except _Settled as e:
                message = e.message
                if not unique.outcome(message).sent:
                    return message
        self.emit_after("enqueue", message, delay)
        return message

    def write(self, connection: Connection, tenant_id: UUID | None, things: Sequence[Message[Any]]) -> None:
        """Do nothing: they are not in the database."""

    def committed(self, things: Sequence[Message[Any]]) -> None:
        """Put messages on their queues; of those that are unique, a second is left out, whatever its actor says."""
        for message in things:
            with suppress(_Settled):
                self._put(message)

    def left(self, things: Sequence[Message[Any]]) -> None:
        """The same: nothing has to be waited for."""
        self.committed(things)

    def _put(self, message: Message[Any]) -> None:
        self._take(message)
        self.queues[message.queue_name].put(message.encode())

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_before(signal, *args, **kwargs)
        if signal == "process_message":
            self._note(args[0], "running")

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        super().emit_after(signal, *args, **kwargs)
        if signal in {"ack", "nack"}:
            self._release(args[0], failed=args[0].failed)

    def flush_all(self) -> None:
        """Drop all messages from all queues, and their locks."""
        super().flush_all()
        with self._mutex:
            self._locks.clear()

    def _take(self, message: Message[Any]) -> None:
        option = message.options.get(UNIQUE)
        if option is None:
            return
        if is_dramatiqs_own_enqueue(message):
            self._note(message, "waiting")
            return
        now = time.time()
        mine = _Lock(message.message_id, message.queue_name, "waiting", now + option.get("period", 0) / 1000)
        with self._mutex:
            held = self._locks.get(option["key"])
            if held is not None and held.state == "waiting" and option["second"] == "replace":
                self._replace(held, message)
                self._locks[option["key"]] = mine
                raise _Settled(unique.settled(message, 2, held.message_id.encode(), b"waiting"))
            if held is not None and (
                held.state == "waiting" or (held.state == "running" and option["until"] == "end") or held.until > now
            ):
                raise _Settled(unique.settled(message, 0, held.message_id.encode(), held.state.encode()))
            self._locks[option["key"]] = mine

    def _replace(self, held: _Lock, message: Message[Any]) -> None:
        waiting = self.queues[held.queue_name]
        with waiting.mutex:
            for at, data in enumerate(waiting.queue):
                if Message.decode(data).message_id == held.message_id:
                    waiting.queue[at] = message.encode()
                    return
        self.queues[message.queue_name].put(message.encode())

    def _note(self, message: Any, state: str) -> None:
        with self._mutex:
            lock = self._locks.get((message.options.get(UNIQUE) or {}).get("key", ""))
            if lock is not None and lock.message_id == message.message_id:
                lock.state = state

    def _release(self, message: Any, *, failed: bool) -> None:
        with self._mutex:
            key = (message.options.get(UNIQUE) or {}).get("key", "")
            lock = self._locks.get(key)
            # One that is retried waits again by now.
            if lock is None or lock.message_id != message.message_id or lock.state != "running":
                return
            if failed or lock.until <= time.time():
                del self._locks[key]
            else:
                lock.state = "recent"
