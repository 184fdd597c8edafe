"""Messages as they were fetched, with what ends with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dramatiq import Message, MessageProxy
from dramatiq.common import current_millis

from db.tenancy import Tenancy
from middleware.errors import WorkerLost
from middleware.message_checks import InvalidMessage, decode

#: The option by which a message names the row that it is a replay of.
REPLAY: Final = "dramaturg_replay"

#: (queue, Redis id, encoded message): what is to be put on a queue.
Entry = tuple[str, str, bytes]


class GroupChild(NamedTuple):
    """A message's part in a group, which is counted in the step in which it ends.

    Attributes:
      uuid: The group's.
      child: Which of its children this is, the same for each delivery of it.
      keep: Milliseconds for which the group is to be remembered.
      callbacks: What is to be enqueued in the same step, if it is the last.
    """

    uuid: str
    child: str
    keep: int
    callbacks: list[Entry]


class NotToRun(str):
    """The actor name of a message that was rejected: kept for people, and found in no broker."""

    __slots__ = ()


class Delivery(MessageProxy):
    """A message that was fetched, and what follows from it.

    Attributes:
      redis_id: The id under which Redis keeps it.
      raw: What Redis keeps there.
      epoch: Under which lease of its process it was fetched.
      begun_before: Whether it began to run before, in a process that was lost or gave it back.
      follow_ups: What is to be enqueued when it ends, in the same step.
      continues: Which of them is the message itself, as a retry or now that it is due, counted from 1; 0 for none.
      to_spool: Its failure, which waits in Redis from its end on because Postgres is away.
      ends_later: Takes what ends it, to be called when its failure is recorded; nothing where it is to end now.
      handed_over: Whether it ends elsewhere by now.
      error_type: Of its failure, once that is described.
      group: The part in a group of one that has succeeded, if it has any.
      lost: Whether the lease on it is lost: it is somebody else's.
      unsettled: Whether it is being processed, and the hooks that say how it ends have not all been called.
      succeeded: Whether it ran and succeeded, so that its end is for good: not a retry, nor a move of what is due.
      interrupted: Whether a shutdown interrupted it.
      give_back: Whether it goes back to its queue as it was, instead of ending, because of that.
      began: When it began to run, if it has: in seconds since 1970, and on :func:`time.perf_counter`'s clock.
      took: For how many seconds it ran.
      tenancy: Whom it ran for, if it ran.
    """

    def __init__(self, message: Message[Any], redis_id: str, raw: bytes) -> None:
        super().__init__(message)
        # The proxy looks each of these up anew each time, which hooks do often.
        self.queue_name = message.queue_name
        self.actor_name = message.actor_name
        self.options = message.options
        self.message_id = message.message_id
        self.redis_id = redis_id
        self.raw = raw
        self.epoch = 0
        self.begun_before = False
        self.lost = False
        self.follow_ups: list[Entry] = []
        self.continues = 0
        self.to_spool: bytes | None = None
        self.ends_later: Callable[[Callable[[Delivery], object]], object] | None = None
        self.handed_over = False
        self.error_type: str | None = None
        self.group: GroupChild | None = None
        self.unsettled = False
        self.succeeded = False
        self.interrupted = False
        self.give_back = False
        self.began: tuple[float, float] | None = None
        self.took: float | None = None
        self.tenancy: Tenancy | None = None

    @property
    def held_as(self) -> tuple[str, int]:
        """What tells it from an earlier delivery of the same message to this process, the lease on which was lost."""
        return self.redis_id, self.epoch


class Rejected(Delivery):
    """What was fetched and must not be run. Its actor is one that cannot be found, so Dramatiq rejects it."""

    def __init__(self, message: Message[Any], redis_id: str, raw: bytes, problem: Exception) -> None:
        super().__init__(message, redis_id, raw)
        self._exception = problem

    def stuff_exception(self, exception: BaseException) -> None:
        """Keep the problem: that the actor was not found is not news."""


def deliver(raw: bytes, queue_name: str, redis_id: str) -> Delivery:
    """Return what was fetched from ``queue_name``, whatever it is."""
    try:
        return Delivery(decode(raw, queue_name, redis_id), redis_id, raw)
    except InvalidMessage as problem:
        return Rejected(_stand_in(raw, queue_name, redis_id, problem), redis_id, raw, problem)


def condemn(delivery: Delivery, problem: WorkerLost) -> Rejected:
    """Return ``delivery`` as one that is not run any more."""
    message = delivery._message.copy(actor_name=NotToRun(delivery.actor_name))
    rejected = Rejected(message, delivery.redis_id, delivery.raw, problem)
    rejected.epoch = delivery.epoch
    return rejected


def _stand_in(raw: bytes, queue_name: str, redis_id: str, problem: InvalidMessage) -> Message[Any]:
    """Return a message that says of ``raw`` what can be said, and can go through Dramatiq's hands."""
    fields = problem.fields
    parts = (queue_name.encode("utf-8", "replace"), redis_id.encode("utf-8", "replace"), raw)

    def of_type(name: str, kind: type, default: Any) -> Any:
        value = fields.get(name)
        return value if isinstance(value, kind) else default

    given = of_type("options", dict, {})
    # Only what the row needs; the others are what may be wrong.
    options = {name: given[name] for name in ("tenant_id", "correlation_id") if isinstance(given.get(name), str)}
    if isinstance(given.get(REPLAY), dict):
        options[REPLAY] = given[REPLAY]
    message_id = of_type("message_id", str, "")
    return Message(
        queue_name=queue_name,
        actor_name=NotToRun(of_type("actor_name", str, "") or "(undecodable)"),
        args=tuple(of_type("args", list, [])),
        kwargs=of_type("kwargs", dict, {}),
        options={**options, "redis_message_id": redis_id},
        message_id=message_id if 0 < len(message_id) <= 155 else hashlib.sha256(b"\0".join(parts)).hexdigest(),
        message_timestamp=current_millis(),
    )
