"""Takes what stock Dramatiq keeps of its dead messages into ``worker_failed_jobs``.

Stock Dramatiq moves a message that it gives up to ``QUEUE.XQ``, as it was enqueued for its last try, and forgets it
after seven days. So it has the traceback of the try before that one, where there was one, and nothing of the last. Each
becomes a row, whatever it is, with what was kept as its original; then it leaves Redis. Who dies between the two has
recorded it, and the next who comes finds the row by the delivery, as for any message that comes again.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import redis
from dramatiq import Broker
from loguru import logger

from db import failed_jobs
from db.errors import DramaturgError, InvalidTenant
from db.failed.batches import ShouldStop
from db.failure_writer import is_away
from db.failures import Failure
from db.tenancy import parse_uuid, tenant_context
from middleware.dead_letters import TRACEBACK_LIMIT, DeadLetters
from middleware.deliveries import Delivery, Rejected, deliver
from middleware.lua_scripts import Scripts
from worker.queue_admin.keys import answer, asking, read_keys
from worker.queues import Queue
from worker.text import counted, listed, one_line

#: Messages that are read, recorded in one transaction and removed at once, and bytes of them: the last may pass it.
AT_ONCE: Final = 100
BYTES_AT_ONCE: Final = 4 * 1024 * 1024

#: Our own queues.
FOUR: Final = tuple(queue.value for queue in Queue)
#: Queues that are left and named.
_TOLD: Final = 10

#: Says that no exception is known.
NO_EXCEPTION: Final = "stock Dramatiq gave it up, and kept no exception of it"

#: What keeps others from doing it at the same time: see :func:`db.alone.alone`.
ALONE: Final = "adoption of dead messages"

Record = Callable[[Sequence[Failure]], object]


class NotAdopted(DramaturgError):
    """Raised when some dead messages could not be recorded, and are where they were; the message says how many."""


@dataclass(slots=True)
class Adopted:
    """What was taken over.

    Attributes:
      queues: How many of each queue.
      left: How many could not be recorded, and are where they were.
      problem: The class of what the last of those failed with.
      stopped: Whether it was asked to stop before it was done.
    """

    queues: Counter[str] = field(default_factory=Counter)
    left: int = 0
    problem: str | None = None
    stopped: bool = False


def count_dead(client: redis.Redis, declared: Collection[str] = (), *, namespace: str = "dramatiq") -> dict[str, int]:
    """Return how many dead messages stock Dramatiq keeps, of each queue of which it keeps any.

    Arguments:
      client: To Redis.
      declared: Queues that are looked at in any case: a database with very many keys is not read to its end.
      namespace: Prefix of every key.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking():
        found = {name.removesuffix(".XQ") for name in read_keys(client, namespace).names if name.endswith(".XQ")}
        queues = sorted({*found, *declared})
        with client.pipeline(transaction=False) as pipeline:
            for queue in queues:
                pipeline.zcard(f"{namespace}:{queue}.XQ")
            counts = answer(pipeline.execute())
    return {queue: count for queue, count in zip(queues, counts, strict=True) if count}


def told_of_others(found: Mapping[str, int], queues: Collection[str]) -> str | None:
    """Return in a sentence which dead messages are left because nobody here declares their queues; None if none are.

    Arguments:
      found: What :func:`count_dead` returned.
      queues: Those that are declared, or were named.
    """
    others = {queue: count for queue, count in found.items() if queue not in queues}
    if not others:
        return None
    names = listed([f"{count:,} of {one_line(queue)}" for queue, count in sorted(others.items())[:_TOLD]])
    more = f" and {counted(len(others) - _TOLD, 'queue')} more" if len(others) > _TOLD else ""
    return (
        f"{counted(sum(others.values()), 'dead message')} left, of queues that are not declared here ({names}{more}): "
        "`worker queues adopt QUEUE` takes them, and EXTRA_QUEUES=QUEUE has them taken every night"
    )


def adopt(
    broker: Broker,
    client: redis.Redis,
    queues: Collection[str] = FOUR,
    *,
    namespace: str = "dramatiq",
    record: Record = failed_jobs.record_all,
    batch: int = AT_ONCE,
    should_stop: ShouldStop = lambda: False,
) -> Adopted:
    """Take over what there is. Several may at once, and doing it twice is harmless.

    What cannot be recorded stays where it is, and keeps none of the others.

    Arguments:
      broker: With :class:`~middleware.dead_letters.DeadLetters`, which describes, redacts and encrypts them.
      client: To Redis.
      queues: Whose; those of others, which may be another application's on the same Redis, are left.
      namespace: Prefix of every key.
      record: Writes failures, all or none.
      batch: Messages in one transaction, at most.
      should_stop: Asked between batches.

    Raises:
      ConnectionClosed: For any error of Redis.
      sqlalchemy.exc.SQLAlchemyError: When Postgres is away. What is recorded by then may be in Redis still.
    """
    work = _Adoption(broker, Scripts(client, namespace), record, batch, should_stop)
    for queue in sorted(queues):
        work.take(queue)
    return work.done


class _Adoption:
    """One run over the queues."""

    def __init__(self, broker: Broker, run: Scripts, record: Record, batch: int, should_stop: ShouldStop) -> None:
        self._broker = broker
        self._dead_letters = next(m for m in broker.middleware if isinstance(m, DeadLetters))
        self._run = run
        self._record = record
        self._batch = batch
        self._should_stop = should_stop
        self.done = Adopted()

    def take(self, queue: str) -> None:
        """Take over the dead of one queue."""
        left = 0
        while True:
            if self._should_stop():
                self.done.stopped = True
                return
            found = self._run("dead_look", queue, left, self._batch, BYTES_AT_ONCE)
            if not found:
                return
            # What is gone from beside its mention, because Redis had no room for it, is nothing to record.
            gone = [redis_id for redis_id, _, data in _threes(found) if data is None]
            failures = {
                redis_id: self._describe(queue, redis_id, data, died)
                for redis_id, died, data in _threes(found)
                if data is not None
            }
            recorded = self._keep(failures)
            # Only now: who dies before it leaves Redis finds its row the next time.
            if recorded or gone:
                self._run("dead_remove", queue, *recorded, *gone)
            self.done.queues[queue] += len(recorded)
            left += len(failures) - len(recorded)

    def _keep(self, failures: dict[bytes, Failure]) -> list[bytes]:
        """Record what can be, and return which."""
        if not failures:
            return []
        try:
            self._record(list(failures.values()))
        except Exception as e:
            if is_away(e):
                raise
            if len(failures) > 1:
                # One of them, for which the others should not wait.
                return [done for redis_id, failure in failures.items() for done in self._keep({redis_id: failure})]
            (failure,) = failures.values()
            # Not its text: Postgres quotes what it does not take.
            logger.error("dead message {} is left where it is: {}", failure.task_id, type(e).__name__)
            self.done.left += 1
            self.done.problem = type(e).__name__
            return []
        return list(failures)

    def _describe(self, queue: str, redis_id: bytes, data: bytes, died: bytes) -> Failure:
        name = redis_id.decode("utf-8", "backslashreplace")
        delivery = _delivered(data, queue, name)
        moment = _moment(died)
        note = f"adopted from {queue}.XQ, where stock Dramatiq had put it at {moment:%Y-%m-%d %H:%M} UTC"
        said, traceback = None, None
        if not isinstance(delivery, Rejected):
            given = delivery.options.get("traceback")
            traceback = given if isinstance(given, str) else None
            said = None if traceback is None else stand_in(traceback)
            if said is not None:
                delivery.stuff_exception(said)
                note += "; its exception is that of the try before the last, of which none was kept"
        with tenant_context(_tenant_of(delivery)):
            failure = self._dead_letters.describe(self._broker, delivery)
        redact = self._dead_letters.redact
        failure = replace(failure, worker=None, failed_at=moment, last_retry_at=None, attempts=None, note=note)
        if isinstance(delivery, Rejected):
            return replace(failure, retry_count=0)
        return replace(
            failure,
            retry_count=delivery.options.get("retries") or 0,
            traceback=None if traceback is None else redact.text_ends(traceback, TRACEBACK_LIMIT),
            error_message=failure.error_message if said is not None else NO_EXCEPTION,
        )


def stand_in(traceback: str) -> BaseException | None:
    """Return an exception that looks like the one whose formatted traceback this is; None where it says none.

    It has that one's name and message, and its base is that one's class where this process has imported it, so that it
    is classified as that one would be. Nothing is imported, and nothing of that class is called but what makes an
    exception.
    """
    _, begin, rest = traceback.rpartition("Traceback (most recent call last):\n")
    lines = rest.split("\n") if begin else []
    first = next((n for n, line in enumerate(lines) if line and not line[0].isspace()), None)
    found = None if first is None else _CLASS.fullmatch(lines[first])
    if found is None or first is None:
        return None
    message = "\n".join([found[2] or "", *lines[first + 1 :]]).rstrip("\n")
    for base in (_imported(found[1]), Exception):
        if base is not None:
            try:
                return _make(found[1], base, message)
            except Exception:  # noqa: BLE001, S112 - a class that cannot be made so; its name remains
                continue
    return None


_CLASS: Final = re.compile(r"([A-Za-z_][\w.<>]{0,299})(?:: ?(.*))?")


def _make(name: str, base: type[BaseException], message: str) -> BaseException:
    module, _, own = name.rpartition(".")
    kind: Any = type(
        own,
        (base,),
        {"__module__": module or "builtins", "__qualname__": own, "__str__": lambda _: message},
    )
    made = kind.__new__(kind)
    assert isinstance(made, BaseException)  # noqa: S101 - what a class of exceptions makes
    return made


def _imported(name: str) -> type[BaseException] | None:
    module, _, own = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), "__dict__", {}).get(own)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _delivered(data: bytes, queue: str, redis_id: str) -> Delivery:
    """Return what was kept; stock Dramatiq keeps the dead of a delay queue with those of its queue."""
    delivery = deliver(data, queue, redis_id)
    if isinstance(delivery, Rejected):
        delayed = deliver(data, f"{queue}.DQ", redis_id)
        if not isinstance(delayed, Rejected):
            return delayed
    return delivery


def _tenant_of(delivery: Delivery) -> Any:
    try:
        return parse_uuid("tenant_id", delivery.options.get("tenant_id"))
    except InvalidTenant:
        return None


def _moment(milliseconds: bytes) -> datetime:
    """Return when a message died, by its worker's clock; now, where that cannot be."""
    now = datetime.now(UTC)
    try:
        return min(datetime.fromtimestamp(float(milliseconds) / 1000, UTC), now)
    except (ValueError, OverflowError, OSError):
        return now


def _threes(found: Sequence[Any]) -> list[tuple[bytes, bytes, bytes | None]]:
    return list(zip(found[::3], found[1::3], found[2::3], strict=True))
