"""Fetches from one queue, and ends what it fetched, each in one script."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING
from uuid import uuid4

from dramatiq import MessageProxy
from dramatiq.broker import Consumer
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.deliveries import Delivery, GroupChild, deliver
from middleware.errors import SpoolFull
from middleware.holdings import Holdings
from middleware.lua_scripts import Argument

if TYPE_CHECKING:
    from middleware.lossless_broker import LosslessBroker

#: What the script says that did nothing for want of room.
SPOOL_IS_FULL = -1
#: Due messages taken off a delay queue at a time.
DUE_AT_ONCE = 100
#: Seconds for which a busy consumer lets room for several messages gather, so that one call fetches them all.
GATHER = 0.02
#: What the script answers when a message has ended that names a group which was never begun, or is forgotten.
GROUP_UNKNOWN = 2


def _text(redis_id: bytes) -> str:
    return redis_id.decode("utf-8", "surrogateescape")


def _bytes(redis_id: str) -> bytes:
    return redis_id.encode("utf-8", "surrogateescape")


def _arguments(group: GroupChild | None) -> Iterable[Argument]:
    if group is None:
        return ()
    # A message id may hold a lone surrogate.
    names = (name.encode("utf-8", "backslashreplace") for name in (group.uuid, group.child))
    return (*names, group.keep, *(part for entry in group.callbacks for part in entry))


class LosslessConsumer(Consumer):
    """Every error of Redis leaves it as one on which Dramatiq starts a new consumer, or tries to end a message again.

    Arguments:
      broker: Whose scripts to use.
      queue_name: A queue, or a delay queue.
      prefetch: How many messages this process may hold of it.
      timeout: Milliseconds to wait in Redis at a time; it wakes at once when a message comes.
      holdings: What this process holds of the queue, kept from one consumer to the next.
    """

    def __init__(
        self, broker: LosslessBroker, queue_name: str, prefetch: int, timeout: int, holdings: Holdings
    ) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._delayed = queue_name.endswith(".DQ")
        self._prefetch = min(prefetch, DUE_AT_ONCE) if self._delayed else prefetch
        self._timeout = timeout / 1000
        self._holdings = holdings
        self._cache: deque[tuple[bytes, bytes]] = deque()
        self._idle = False
        self._next_due: float | None = None
        if self._delayed:
            # Dramatiq drops what it kept in memory for the consumer before this one.
            holdings.clear()
        self._return_strays()

    def _return_strays(self) -> None:
        """Give back what Redis says we hold and we do not: a reply was lost, or the consumer before this one ended."""
        held = self._broker.run("held", self._queue_name, self._broker.broker_id)
        strays = {_text(redis_id) for redis_id in held} - self._holdings.ids()
        if strays:
            logger.info("giving {} messages back to queue {}", len(strays), self._queue_name)
            self._give_back(sorted(strays))

    def _give_back(self, redis_ids: Iterable[str]) -> None:
        self._broker.run("requeue", self._queue_name, self._broker.broker_id, *map(_bytes, redis_ids))

    def __next__(self) -> MessageProxy | None:
        if not self._cache:
            self._holdings.wait_below(self._prefetch // 2 + 1, GATHER)
            if not self._holdings.wait_below(self._prefetch, self._timeout):
                return None
            if self._idle and not self._wait():
                return None
            self._fetch()
            if not self._cache:
                return None
        redis_id, raw = self._cache.popleft()
        delivery = deliver(raw, self._queue_name, _text(redis_id))
        if not self._delayed and delivery.options.get("eta") is not None:
            self._delay(delivery)
            return None
        self._holdings.add(delivery.redis_id)
        if self._delayed and "eta" in delivery.options:
            # It is due by the server's clock; Dramatiq would ask ours.
            delivery.options["eta"] = min(delivery.options["eta"], current_millis())
            self._broker.expect_due(delivery.redis_id)
        return delivery

    def _delay(self, delivery: Delivery) -> None:
        """Move a message to the delay queue: stock Dramatiq lets ``eta`` be an option, and waits with it in memory.

        Raises:
          ConnectionClosed: When Redis did not say so. If it did not move, the next consumer finds it.
        """
        queue_name, new_id = dq_name(self._queue_name), str(uuid4())
        delayed = delivery.copy(queue_name=queue_name, options={"redis_message_id": new_id})
        delivery.follow_ups = [(queue_name, new_id, delayed.encode())]
        self.ack(delivery)

    def _wait(self) -> bool:
        """Wait in Redis for a message, and tell whether to look."""
        seconds = 2 * self._timeout if self._delayed else self._timeout
        if self._next_due is not None:
            seconds = min(seconds, self._next_due - time.monotonic())
        if seconds > 0.001:
            came = self._broker.wait_for_message(self._queue_name, seconds)
            # What another process sorted among the delayed ones before it died wakes nobody.
            return came or self._delayed
        return True

    def _fetch(self) -> None:
        count = self._prefetch - len(self._holdings)
        found = self._broker.fetch("fetch_due" if self._delayed else "fetch", self._queue_name, count)
        if self._delayed:
            milliseconds = found.pop(0)
            self._next_due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000
        self._cache.extend(zip(found[::2], found[1::2], strict=True))
        # Fewer than asked for: there are no more.
        self._idle = len(self._cache) < count

    def ack(self, message: MessageProxy) -> None:
        """End a message, with its follow-ups enqueued in the same step.

        Raises:
          ConnectionClosed: When Redis did not say so. Dramatiq calls again five seconds later.
        """
        assert isinstance(message, Delivery)  # noqa: S101 - it came from here
        if message.give_back:
            self._give_back_interrupted(message)
            return
        done = self._broker.run(
            "finish",
            self._queue_name,
            self._broker.broker_id,
            _bytes(message.redis_id),
            message.to_spool or "",
            self._broker.spool.limit,
            len(message.follow_ups),
            *(part for entry in message.follow_ups for part in entry),
            *_arguments(message.group),
        )
        if done == SPOOL_IS_FULL:
            raise SpoolFull(
                f"the spool holds {self._broker.spool.limit} failures, as many as it may, until Postgres takes them: "
                f"this worker waits with the failure of message {message.message_id}"
            )
        if not done:
            logger.warning(
                "message {} was given to another worker while this one had it: it may run twice", message.message_id
            )
        if done == GROUP_UNKNOWN and message.group is not None:
            logger.error(
                "message {} succeeded, but its group {} is not known: begun by a stock producer, or forgotten; its "
                "callbacks will not come",
                message.message_id,
                message.group.uuid,
            )
        self._holdings.discard([message.redis_id])

    def _give_back_interrupted(self, message: Delivery) -> None:
        # A process that stops does not wait for Redis: closing the broker tries again, and its lease ends.
        self._holdings.discard([message.redis_id])
        try:
            self._give_back([message.redis_id])
        except ConnectionClosed as e:
            logger.warning("message {} cannot be given back yet: {}", message.message_id, e)

    def nack(self, message: MessageProxy) -> None:
        """End a failed message. Stock Dramatiq keeps it, arguments and all, in a dead-letter queue for seven days."""
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give messages back, to the head of their queue."""
        ids = [m.redis_id for m in messages if isinstance(m, Delivery)]
        if ids:
            self._give_back(ids)
            self._holdings.discard(ids)

    def close(self) -> None:
        """Give back what was fetched and not yet handed to Dramatiq."""
        cached = [_text(redis_id) for redis_id, _ in self._cache]
        self._cache.clear()
        if cached:
            self._give_back(cached)
