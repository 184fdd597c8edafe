"""Messages that are sent inside a transaction leave with it: they are sent if it is committed, and not if it is not.

They are rows of ``worker_outbox``, written by one statement right before COMMIT. After it the thread that committed
puts them into Redis, with one script for all; what it could not, because it died or Redis was away, any process does:
:mod:`middleware.relay`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dramatiq import Message
from loguru import logger

from db.errors import InvalidTenant
from db.open_transaction import innermost
from db.sealing import Keys
from db.tenancy import parse_uuid
from middleware.dead_letters import task_id_of
from middleware.text import clean

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from middleware.relay import Relay


@dataclass(slots=True, eq=False)
class _Sent:
    """A message on its way, and once it is written, its row."""

    queue: str
    redis_id: str
    data: bytes = field(repr=False)
    tenant_id: UUID | None
    message_id: str
    actor: str
    row_id: int = 0
    not_after: int = 0


class Outbox:
    """Takes messages along with transactions: a :class:`db.outgoing.Courier`.

    Arguments:
      make_relay: Makes what brings them into Redis, when that is first needed: it imports SQLAlchemy.
      keys: Of ``FAILED_JOB_KEYS``, with which they are sealed in the table; none where it is not set.
      takes_all: Whether what is sent inside a transaction leaves with it; otherwise as it does outside of one.
    """

    def __init__(self, make_relay: Callable[[], Relay], *, keys: Keys | None = None, takes_all: bool = True) -> None:
        self._make_relay = make_relay
        self._relay: Relay | None = None
        self._lock = threading.Lock()
        self._keys = keys
        self._takes_all = takes_all

    @property
    def relay(self) -> Relay:
        """What brings messages into Redis."""
        if self._relay is None:
            with self._lock:
                if self._relay is None:
                    self._relay = self._make_relay()
        return self._relay

    def stop(self) -> None:
        """Have the relay, if there is one, look no more, and do what is left at once."""
        if self._relay is not None:
            self._relay.stop()

    def close(self) -> None:
        """Wait until it has, but not for long."""
        if self._relay is not None:
            self._relay.close()

    def takes(self) -> bool:
        """Tell whether there is a transaction in this context that messages may leave with."""
        return self._takes_all and innermost() is not None

    def take(self, message: Message[Any], queue: str, redis_id: str, data: bytes) -> bool:
        """Take a message along with the transaction of this context; tell whether there is one that does.

        Arguments:
          queue: In Redis.
          data: The message, encoded.
        """
        opened = innermost() if self._takes_all else None
        if opened is None:
            return False
        self.relay.get_ready()
        sent = _Sent(
            queue,
            redis_id,
            data,
            _tenant_of(message),
            task_id_of(message),
            clean(message.actor_name)[:255],
        )
        return opened.take_along(self, sent)

    def write(self, connection: Connection, tenant_id: UUID | None, things: Sequence[_Sent]) -> None:
        """Write their rows."""
        from db import outbox

        # Before anybody else can see, relay, remove and forget them.
        not_after = self.relay.not_after()
        parcels = [
            outbox.Parcel(
                sent.tenant_id, sent.queue, sent.redis_id, sent.message_id, sent.actor, self._as_kept(sent.data)
            )
            for sent in things
        ]
        for sent, row_id in zip(things, outbox.write(connection, tenant_id, parcels), strict=True):
            sent.row_id, sent.not_after = row_id, not_after

    def _as_kept(self, data: bytes) -> bytes:
        from db.failed.originals import as_kept

        if self._keys is None:
            return as_kept(data, None)
        return as_kept(*self._keys.seal(data))

    def committed(self, things: Sequence[_Sent]) -> None:
        """Bring them into Redis."""
        try:
            self.relay.send(things)
        except Exception as e:  # noqa: BLE001 - they are committed, and so not lost
            logger.error("what was sent in a transaction waits in the outbox: {}", type(e).__name__)

    def left(self, things: Sequence[_Sent]) -> None:
        """Let the relay do so soon."""
        self.relay.owe(things)


def _tenant_of(message: Message[Any]) -> UUID | None:
    tenant_id = message.options.get("tenant_id")
    try:
        return None if tenant_id is None else parse_uuid("tenant_id", tenant_id)
    except InvalidTenant:
        # Only what somebody else has sent and is sent on as it is; nobody will run it.
        return None
