"""A Redis broker that loses nothing it accepted: Dramatiq's keys and message format, with other steps.

What stock Dramatiq does in several calls is one script here: a retry, a child or a due message takes its place in the
same step in which the delivery it follows from ends. What a process holds is leased on the server's clock; when the lease
ends, any other process gives it back.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import redis
from dramatiq import Broker, Message, MessageProxy, Middleware
from dramatiq.broker import Consumer
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed
from dramatiq.middleware import MiddlewareError
from loguru import logger

from middleware.dramatiq_internals import is_consumer_thread
from middleware.heartbeat import Heartbeat
from middleware.lua_scripts import Scripts
from middleware.message_checks import InvalidMessage, decode

#: (queue, Redis id, encoded message): what is to be put on a queue.
Entry = tuple[str, str, bytes]

#: Milliseconds after which what a silent process holds is given back.
LEASE = 8_000
#: Seconds between two signs of life.
BEAT = 2.0
#: Seconds an idle consumer waits in Redis at a time. It wakes at once when a message comes.
IDLE, IDLE_DELAYED = 1.0, 2.0
#: Due messages taken off a delay queue at a time.
DUE_AT_ONCE = 100


class Delivery(MessageProxy):
    """A message as it was fetched, with what follows from it."""

    def __init__(self, message: Message[Any], redis_id: str, raw: bytes) -> None:
        super().__init__(message)
        self.redis_id = redis_id
        self.raw = raw
        self.follow_ups: list[Entry] = []
        #: Set when a script has ended this delivery before Dramatiq's ack or nack.
        self.ended = False


class Rejected(Delivery):
    """What was fetched and must not be run. Its actor is one that cannot be found, so Dramatiq rejects it."""

    def __init__(self, message: Message[Any], redis_id: str, raw: bytes, problem: InvalidMessage) -> None:
        super().__init__(message, redis_id, raw)
        self._exception = problem

    def stuff_exception(self, exception: BaseException) -> None:
        """Keep the problem: that the actor was not found is not news."""


class LosslessBroker(RedisBroker):
    """See this module's text.

    Arguments:
      client: Connects to Redis 7 or Valkey.
      middleware: All of it.
      namespace: Prefix of every key.
      lease: Milliseconds, see :data:`LEASE`.
    """

    def __init__(
        self,
        *,
        client: redis.Redis,
        middleware: list[Middleware],
        namespace: str = "dramatiq",
        lease: int = LEASE,
    ) -> None:
        super().__init__(client=client, middleware=middleware, namespace=namespace)
        self.run = Scripts(client, namespace)
        self.heartbeat = Heartbeat(self.run, self.broker_id, lease=lease, interval=BEAT)
        self._holdings: dict[str, Holdings] = {}
        self._local = threading.local()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        holdings = self._holdings.setdefault(queue_name, Holdings())
        # The lease must stand before anything is taken under it.
        self.heartbeat.cover(queue_name)
        return LosslessConsumer(self, queue_name, prefetch, timeout, holdings)

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue ``message``, or refuse with an error; as :meth:`RedisBroker.enqueue`.

        Raises:
          ConnectionFailed: When Redis did not say that it has it. It may have: sending again can run it twice.
        """
        queue_name = message.queue_name
        redis_id = str(uuid4())
        message = message.copy(options={"redis_message_id": redis_id})
        if delay is not None:
            queue_name = dq_name(queue_name)
            message = message.copy(queue_name=queue_name, options={"eta": current_millis() + delay})
        self.emit_before("enqueue", message, delay)
        entry = (queue_name, redis_id, message.encode())
        collecting: list[Entry] | None = getattr(self._local, "collecting", None)
        if collecting is not None:
            collecting.append(entry)
        elif is_consumer_thread():
            # A delayed message that is due: it moves when its old delivery ends, which is next.
            self._local.due = (message.message_id, entry)
        else:
            try:
                self.run("enqueue", *entry)
            except ConnectionClosed as e:
                raise ConnectionFailed(
                    f"message {message.message_id} for actor {message.actor_name!r} was not enqueued: {e}"
                ) from e
        self.emit_after("enqueue", message, delay)
        return message

    def due_entry(self, message: MessageProxy) -> list[Entry]:
        """Return where a due message moves, if it is the one this consumer thread has just enqueued."""
        due = getattr(self._local, "due", None)
        return [due[1]] if due is not None and due[0] == message.message_id else []

    def forget_due(self) -> None:
        """Forget it, once it has moved."""
        self._local.due = None

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        try:
            super().emit_before(signal, *args, **kwargs)
        except MiddlewareError as e:
            if signal not in {"ack", "nack"} or isinstance(e, BrokerConnectionError):
                raise
            # Dramatiq would leave the message where it is until this process restarts.
            logger.opt(exception=True).critical("a middleware raised in before_{}; the message goes on", signal)

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal != "process_message":
            super().emit_after(signal, *args, **kwargs)
            return
        # Retries, callbacks, pipelines and groups enqueue here. What they do is kept, and done when the delivery ends.
        self._local.collecting = entries = list[Entry]()
        try:
            super().emit_after(signal, *args, **kwargs)
        finally:
            self._local.collecting = None
        if isinstance(args[0], Delivery):
            args[0].follow_ups = entries

    def get_actor(self, actor_name: str) -> Any:
        # A rejected message's name is kept for people, in a type that finds no actor.
        return super().get_actor("" if isinstance(actor_name, _NotToRun) else actor_name)

    def close(self) -> None:
        self.heartbeat.stop()
        super().close()

    def do_qsize(self, queue_name: str) -> int:
        """Return how many messages a queue and its delay queue hold, those that run included."""
        try:
            return sum(int(self.client.hlen(f"{self.namespace}:{q}.msgs")) for q in (queue_name, dq_name(queue_name)))
        except redis.RedisError as e:
            raise ConnectionClosed(f"Redis: {e}") from e

    def do_purge(self, queue_name: str) -> None:
        """Remove every message of a queue."""
        self.run("purge", queue_name, self.broker_id)

    def __getattr__(self, name: str) -> Any:
        # The stock broker finds its other commands here, each of which would enter this process in __heartbeats__.
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class _NotToRun(str):
    __slots__ = ()


class Holdings:
    """The Redis ids of a queue that this process holds outside its consumer: queued in memory, or running."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, redis_id: str) -> None:
        with self._changed:
            self._ids.add(redis_id)

    def discard(self, redis_ids: Iterable[str]) -> None:
        with self._changed:
            self._ids.difference_update(redis_ids)
            self._changed.notify_all()

    def clear(self) -> None:
        with self._changed:
            self._ids.clear()

    def ids(self) -> set[str]:
        with self._changed:
            return set(self._ids)

    def wait_below(self, count: int, seconds: float) -> bool:
        """Wait until fewer than ``count`` are held."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ids) < count, seconds)


class LosslessConsumer(Consumer):
    """Fetches for one queue; every error of Redis is one on which Dramatiq starts a new consumer."""

    def __init__(
        self, broker: LosslessBroker, queue_name: str, prefetch: int, timeout: int, holdings: Holdings
    ) -> None:
        self.broker = broker
        self.queue_name = queue_name
        self.delayed = queue_name.endswith(".DQ")
        self.prefetch = min(prefetch, DUE_AT_ONCE) if self.delayed else prefetch
        self.timeout = timeout / 1000
        self.holdings = holdings
        self.cache: deque[tuple[bytes, bytes]] = deque()
        self.idle = False
        self.next_due: float | None = None
        if self.delayed:
            # Dramatiq drops what it kept in memory for the consumer before this one.
            holdings.clear()
        self._return_strays()

    def _return_strays(self) -> None:
        """Give back what Redis says we hold and we do not: a reply was lost, or the consumer before this one ended."""
        key = f"{self.broker.namespace}:__acks__.{self.broker.broker_id}.{self.queue_name}"
        try:
            ours = {i.decode("utf-8", "surrogateescape") for i in self.broker.client.smembers(key)}
        except redis.RedisError as e:
            raise ConnectionClosed(f"Redis: {e}") from e
        strays = ours - self.holdings.ids()
        if strays:
            logger.info("giving {} messages back to queue {}", len(strays), self.queue_name)
            self._give_back(sorted(strays))

    def _give_back(self, redis_ids: Iterable[str]) -> None:
        ids = [i.encode("utf-8", "surrogateescape") for i in redis_ids]
        self.broker.run("requeue", self.queue_name, self.broker.broker_id, *ids)

    def __next__(self) -> MessageProxy | None:
        if not self.cache:
            if not self.holdings.wait_below(self.prefetch, self.timeout):
                return None
            if self.idle and not self._wait():
                return None
            self._fetch()
            if not self.cache:
                self.idle = True
                return None
            self.idle = False
        redis_id, raw = self.cache.popleft()
        return self._deliver(redis_id.decode("utf-8", "surrogateescape"), raw)

    def _wait(self) -> bool:
        """Wait in Redis for a message; tell whether to look."""
        seconds = IDLE_DELAYED if self.delayed else IDLE
        if self.next_due is not None:
            seconds = min(seconds, self.next_due - time.monotonic())
        if seconds <= 0.001:
            return True
        name, broker_id = f"{self.broker.namespace}:{self.queue_name}", self.broker.broker_id
        taking = f"{self.broker.namespace}:__dramaturg__.taking.{broker_id}.{self.queue_name}"
        try:
            came = self.broker.client.blmove(name, taking, seconds, "LEFT", "RIGHT")
        except redis.RedisError as e:
            raise ConnectionClosed(f"Redis: {e}") from e
        return came is not None or (self.next_due is not None and self.next_due <= time.monotonic())

    def _fetch(self) -> None:
        script = "fetch_due" if self.delayed else "fetch"
        count = self.prefetch - len(self.holdings)
        found = self.broker.run(script, self.queue_name, self.broker.broker_id, count)
        if self.delayed:
            milliseconds = found.pop(0)
            self.next_due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000
        self.cache.extend(zip(found[::2], found[1::2], strict=True))

    def _deliver(self, redis_id: str, raw: bytes) -> MessageProxy:
        self.holdings.add(redis_id)
        try:
            return Delivery(decode(raw, self.queue_name, redis_id), redis_id, raw)
        except InvalidMessage as problem:
            return Rejected(_stand_in(raw, self.queue_name, redis_id, problem), redis_id, raw, problem)

    def ack(self, message: MessageProxy) -> None:
        self._finish(message)

    def nack(self, message: MessageProxy) -> None:
        # Its row is written. Stock Dramatiq keeps the message, arguments and all, in a dead-letter queue for 7 days.
        self._finish(message)

    def _finish(self, message: MessageProxy) -> None:
        assert isinstance(message, Delivery)  # noqa: S101 - it came from here
        if not message.ended:
            follow_ups = [*message.follow_ups, *self.broker.due_entry(message)]
            done = self.broker.run(
                "finish",
                self.queue_name,
                self.broker.broker_id,
                message.redis_id.encode("utf-8", "surrogateescape"),
                "",
                0,
                *(part for entry in follow_ups for part in entry),
            )
            self.broker.forget_due()
            if not done:
                logger.warning(
                    "message {} was given to another worker while this one had it: it may run twice", message.message_id
                )
        self.holdings.discard([message.redis_id])

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        ids = [m.redis_id for m in messages if isinstance(m, Delivery)]
        if ids:
            self._give_back(ids)
            self.holdings.discard(ids)

    def close(self) -> None:
        cached = [redis_id.decode("utf-8", "surrogateescape") for redis_id, _ in self.cache]
        self.cache.clear()
        if cached:
            self._give_back(cached)


def _stand_in(raw: bytes, queue_name: str, redis_id: str, problem: InvalidMessage) -> Message[Any]:
    """Return a message that says of ``raw`` what can be said, and can go through Dramatiq's hands."""
    fields = problem.fields
    digest = hashlib.sha256(b"\0".join([queue_name.encode(), redis_id.encode("utf-8", "replace"), raw])).hexdigest()

    def of_type(name: str, kind: type, default: Any) -> Any:
        value = fields.get(name)
        return value if isinstance(value, kind) and not isinstance(value, bool) else default

    given = of_type("options", dict, {})
    # Only what the row needs; the others are what may be wrong.
    options = {name: given[name] for name in ("tenant_id", "correlation_id") if isinstance(given.get(name), str)}
    message_id = of_type("message_id", str, "")
    return Message(
        queue_name=queue_name,
        actor_name=_NotToRun(of_type("actor_name", str, "") or "(undecodable)"),
        args=tuple(of_type("args", list, [])),
        kwargs=of_type("kwargs", dict, {}),
        options={**options, "redis_message_id": redis_id},
        message_id=message_id if 0 < len(message_id) <= 155 else digest,
        message_timestamp=current_millis(),
    )


__all__ = ["Broker", "Delivery", "LosslessBroker", "Rejected"]
