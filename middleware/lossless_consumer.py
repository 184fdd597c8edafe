"""Fetches from one queue, and ends what it fetched, each in one script."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Container, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from dramatiq import MessageProxy
from dramatiq.broker import Consumer
from dramatiq.common import current_millis, dq_name, q_name
from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.crash_evidence import worker_lost
from middleware.deliveries import Delivery, GroupChild, Rejected, condemn, deliver
from middleware.errors import SpoolFull
from middleware.holdings import Holdings
from middleware.job_metrics import note_due
from middleware.log_context import lines_of
from middleware.lua_scripts import Argument
from middleware.message_checks import UNIQUE
from middleware.metric_families import GIVEN_BACK
from middleware.redis_ids import redis_id_of
from middleware.tally import FAILED, RETRIED, SUCCEEDED, UNCOUNTED

if TYPE_CHECKING:
    from middleware.lossless_broker import LosslessBroker

#: What the script says that did nothing for want of room.
SPOOL_IS_FULL = -1
#: Seconds for which a process waits at first for what it runs to end, so that a suspect can run alone.
PATIENCE = 10.0
#: Seconds of other work at most between two suspects.
LEAVE_ALONE_AT_MOST = 60.0
#: Due messages taken off a delay queue at a time.
DUE_AT_ONCE = 100
#: Seconds for which a busy consumer lets room for several messages gather, so that one call fetches them all.
GATHER = 0.02
#: Seconds of work that a busy consumer has here in advance, messages that it has so at most, and seconds of which it
#: reckons how many that are, at most.
AHEAD, AHEAD_AT_MOST, RECKON_OVER = 0.04, 1_000, 0.05
#: Seconds without room for another after which what is here in advance goes back: what was quick has become slow.
SLOW_AFTER = 0.2
#: Bytes of messages that it has so at most.
BYTES_AHEAD = 8 * 2**20
#: What the script answers when a message has ended that names a group which was never begun, or is forgotten.
GROUP_UNKNOWN = 2
#: What the script answers that fetched nothing because the queue is paused; seconds between two looks whether it is.
PAUSED, LOOK_EVERY = [-1], 1.0
#: How many times as long as Dramatiq says a consumer waits that can be woken, and seconds that it does so at most.
WAIT_TIMES, WAIT_AT_MOST = 5, 5.0
#: Seconds by which what Redis says of when a message is due may differ from one time to the next.
ABOUT = 0.02
#: From which it counts down what may be there yet in a queue of which tenants have limits.
LIMITED = -2
#: Seconds for which a consumer sorts, where much waits that was not sorted by tenant, before it sees to anything else.
SORT_FOR = 0.05


def _text(redis_id: bytes) -> str:
    return redis_id.decode("utf-8", "surrogateescape")


def _bytes(redis_id: str) -> bytes:
    return redis_id.encode("utf-8", "surrogateescape")


def _warn(message: Delivery) -> None:
    logger.warning("message {} was given to another worker while this one had it: it may run twice", message.message_id)


def _lock_of(message: Delivery) -> str:
    option = message.options.get(UNIQUE)
    return "" if option is None else f"{option['key']} {int(message.succeeded)} {message.continues}"


def _arguments(group: GroupChild | None) -> Iterable[Argument]:
    if group is None:
        return ()
    # A message id may hold a lone surrogate.
    names = (name.encode("utf-8", "backslashreplace") for name in (group.uuid, group.child))
    return (*names, group.keep, *(part for entry in group.callbacks for part in entry))


class Suspect(NamedTuple):
    """A message that was running when a worker was lost, and waits to run alone."""

    delivery: Delivery
    #: Of each worker that was lost with it.
    evidence: list[dict[str, Any]]
    #: How long it waits here, on :func:`time.monotonic`'s clock.
    until: float


class LosslessConsumer(Consumer):
    """Every error of Redis leaves it as one on which Dramatiq starts a new consumer, or tries to end a message again.

    Arguments:
      broker: Whose scripts to use.
      queue_name: A queue, or a delay queue.
      prefetch: How many messages this process may hold of it.
      timeout: Milliseconds to wait in Redis at a time, where that cannot be ended: :mod:`middleware.waits`. It wakes at
        once when a message comes.
      holdings: What this process holds of the queue, kept from one consumer to the next.
    """

    def __init__(
        self, broker: LosslessBroker, queue_name: str, prefetch: int, timeout: int, holdings: Holdings
    ) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._delayed = queue_name.endswith(".DQ")
        self._prefetch = self._least = min(prefetch, DUE_AT_ONCE) if self._delayed else prefetch
        self._reckoned = time.monotonic(), holdings.let_go
        # Bytes of a message, as they were lately.
        self._size = 1.0
        self._limited = False
        self._timeout = timeout / 1000
        self._holdings = holdings
        self._cache: deque[tuple[bytes, bytes, int, int]] = deque()
        self._suspect: Suspect | None = None
        self._patience = PATIENCE
        self._look_again = float("-inf")
        self._alone_since = float("-inf")
        self._idle = False
        self._paused = False
        self._unsorted = False
        # On time.monotonic's clock: as Redis said when it was asked last, and as it has said since.
        self._next_due = self._heard_due = float("inf")
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
        if self._delayed:
            return self._next()
        if self._suspect is not None or self._queue_name in self._broker.suspected:
            suspect = self._next_suspect()
            if suspect is not None or self._suspect is not None:
                return suspect
        return self._next()

    def _next_suspect(self) -> MessageProxy | None:
        """Return a message that was running when a worker was lost, once nothing else runs in this process."""
        solitude = self._broker.solitude
        if self._suspect is None:
            if time.monotonic() < self._look_again or not solitude.claim(self, self._timeout):
                return None
            self._return_cache()
            epoch, found = self._broker.fetch("take_suspect", self._queue_name, 1)
            if not found:
                # Another process was first. The next sign of life says whether there are more.
                self._broker.suspected.discard(self._queue_name)
                solitude.release(self)
                return None
            redis_id, raw, evidence = found
            delivery = self._delivery(redis_id, raw, epoch, begun_before=True)
            self._suspect = Suspect(delivery, json.loads(evidence), time.monotonic() + self._patience)
        suspect = self._suspect
        if len(suspect.evidence) >= self._broker.max_starts and not isinstance(suspect.delivery, Rejected):
            self._suspect = None
            solitude.release(self)
            lost = worker_lost(suspect.evidence)
            condemned = condemn(suspect.delivery, lost)
            self._holdings.add([condemned.held_as])
            return condemned
        if solitude.wait(self._timeout):
            self._suspect = None
            self._patience = PATIENCE
            self._holdings.add([suspect.delivery.held_as])
            self._alone_since = time.monotonic()
            solitude.hand_over(self, suspect.delivery.held_as)
            with lines_of(suspect.delivery):
                logger.warning(
                    "message {} was running when a worker was lost, and now runs alone in this process",
                    suspect.delivery.message_id,
                )
            return suspect.delivery
        if time.monotonic() > suspect.until:
            # What else runs here takes long. Go on with it; another process may be sooner.
            self._return_suspect()
            self._look_again = time.monotonic() + self._patience
            self._patience = min(2 * self._patience, LEAVE_ALONE_AT_MOST)
        return None

    def _return_suspect(self) -> None:
        suspect, self._suspect = self._suspect, None
        self._broker.solitude.release(self)
        if suspect is not None:
            self._give_back([suspect.delivery.redis_id])

    def _return_cache(self) -> None:
        """Give back what was fetched and not yet handed to Dramatiq."""
        cached = [(_text(redis_id), epoch) for redis_id, *_, epoch in self._cache]
        self._cache.clear()
        if cached:
            self._holdings.discard(cached)
            # It was not done.
            self._reckon_anew()
            self._give_back(redis_id for redis_id, _ in cached)

    def _delivery(self, redis_id: bytes, raw: bytes, epoch: int, *, begun_before: bool) -> Delivery:
        delivery = deliver(raw, self._queue_name, _text(redis_id))
        delivery.epoch = epoch
        delivery.begun_before = begun_before
        return delivery

    def _next(self) -> MessageProxy | None:
        if not self._cache:
            if self._unsorted:
                self._sort()
            self._reckon()
            self._wait_below(self._prefetch // 2 + 1, GATHER)
            patience = self._timeout if self._holdings.room_taken <= self._least else min(self._timeout, SLOW_AFTER)
            if not self._wait_below(self._prefetch, 0 if self._unsorted else patience):
                # Unless it has not waited, because much is to be sorted.
                if self._holdings.room_taken > self._least and not self._delayed and not self._unsorted:
                    self._give_back_last(self._holdings.room_taken - self._least)
                # Much may have come meanwhile. Whose is last there should not wait for it to be sorted.
                self._unsorted = self._broker.fair and not self._delayed
                return None
            if not self._delayed and not self._broker.solitude.wait_until_free(self._timeout):
                return None
            if self._idle:
                began = time.monotonic()
                if not self._wait():
                    return None
                if time.monotonic() - began >= RECKON_OVER:
                    # What was quick before the wait may be slow after it.
                    self._reckon_anew()
            with self._broker.solitude.fetching() as may:
                if may or self._delayed:
                    self._fetch()
        if self._delayed or not self._broker.solitude.is_wanted():
            return self._hand_over()
        # A message of another queue wants to be alone in this process; other processes may run these meanwhile.
        self._return_cache()
        self._broker.run("put_back", self._queue_name, self._broker.broker_id)
        return None

    def _wait_below(self, count: int, seconds: float) -> bool:
        journal = self._broker.journal
        if self._holdings.has_room(count, len(journal)):
            # As soon as Redis is told what has ended.
            journal.hurry()
        return self._holdings.wait_below(count, seconds)

    def _give_back_last(self, count: int) -> None:
        """Give back what would be run last here: what was quick has become slow, and others may have nothing to do."""
        last = [m for m in self._broker.take_back_last(self._queue_name, count) if isinstance(m, Delivery)]
        if last:
            # First: if Redis does not say so, the next consumer finds that it holds what nobody does.
            self._no_longer_held(last)
            # None of it was done.
            self._reckon_anew()
            self._give_back(m.redis_id for m in last)

    def _reckon(self) -> None:
        """Have as much here in advance as is done in a moment: quick messages wait for nobody, and slow ones here for
        no others."""
        if self._delayed or self._broker.prefetch_is_set:
            return
        (then, before), now, let_go = self._reckoned, time.monotonic(), self._holdings.let_go
        past, done = now - then, let_go - before
        # Or sooner, once as many are done as it may have here, which is more than each thread had begun.
        if past >= RECKON_OVER or (past > 0 and done >= self._prefetch):
            self._reckoned = now, let_go
            wanted = min(done / past * AHEAD, BYTES_AHEAD / self._size, AHEAD_AT_MOST)
            # No more than double: ends are told in bursts, of which one may be all there is.
            self._prefetch = max(self._least, min(int(wanted), 2 * self._prefetch))

    def _reckon_anew(self) -> None:
        self._prefetch = self._least
        self._reckoned = time.monotonic(), self._holdings.let_go

    def _hand_over(self) -> MessageProxy | None:
        if not self._cache:
            return None
        redis_id, raw, begun_before, epoch = self._cache.popleft()
        try:
            delivery = self._delivery(redis_id, raw, epoch, begun_before=bool(begun_before))
            is_early = not self._delayed and delivery.options.get("eta") is not None
            if is_early:
                self._delay(delivery)
        except BaseException:
            # Nobody has it, and the next consumer finds it.
            self._holdings.discard([(_text(redis_id), epoch)])
            raise
        if is_early:
            self._holdings.discard([delivery.held_as])
            return None
        if self._delayed and "eta" in delivery.options:
            # It is due by the server's clock; Dramatiq would ask ours.
            note_due(delivery.options, delivery.options["eta"])
            delivery.options["eta"] = min(delivery.options["eta"], current_millis())
            self._broker.expect_due(delivery.redis_id)
        return delivery

    def _delay(self, delivery: Delivery) -> None:
        """Move a message to the delay queue: stock Dramatiq lets ``eta`` be an option, and waits with it in memory.

        Raises:
          ConnectionClosed: When Redis did not say so. If it did not move, the next consumer finds it.
        """
        queue_name, new_id = dq_name(self._queue_name), redis_id_of(str(uuid4()), delivery.options)
        delayed = delivery.copy(queue_name=queue_name, options={"redis_message_id": new_id})
        delivery.follow_ups, delivery.continues = [(queue_name, new_id, delayed.encode())], 1
        self._finish(delivery)

    def _wait(self) -> bool:
        """Wait in Redis for a message, and tell whether to look."""
        if self._paused:
            # Not in Redis, which would take a message out of the queue.
            time.sleep(min(self._timeout, LOOK_EVERY))
            return True
        seconds = 2 * self._timeout if self._delayed else self._timeout
        longer = 0.0
        if not self._delayed and self._holdings.room_taken > self._least:
            # What is here in advance may have to go back.
            seconds = min(seconds, SLOW_AFTER)
        elif self._queue_name not in self._broker.suspected:
            longer = self._broker.may_wait(min(WAIT_TIMES * self._timeout, WAIT_AT_MOST))
        seconds = min(max(seconds, longer), self._due_in())
        if seconds <= 0.001:
            return True
        came = self._broker.wait_for_message(self._queue_name, seconds)
        # What another process sorted among the delayed ones before it died wakes nobody: signs of life tell of it.
        return came or (self._delayed and (not longer or self._due_in() <= 0.001))

    def _due_in(self) -> float:
        return min(self._next_due, self._heard_due) - time.monotonic()

    def hear_due(self, seconds: float) -> None:
        """Look whether a delayed message is due in so many seconds from now, if not before. Called by any thread."""
        if seconds < self._due_in() - ABOUT:
            self._heard_due = time.monotonic() + seconds
            self._broker.wake(self._queue_name)

    def _sort(self) -> None:
        """Sort what waits by tenant, for a moment."""
        end = time.monotonic() + SORT_FOR
        while self._unsorted and time.monotonic() < end:
            # Whatever is wrong, a fetch will tell.
            self._unsorted = False
            with suppress(ConnectionClosed):
                self._unsorted = self._broker.run("sort", self._queue_name) > 0

    def _fetch(self) -> None:
        # What has come takes room, even if it was reckoned meanwhile that there is too much here.
        count = max(1, self._prefetch - self._holdings.room_taken)
        # What is heard from here on is news.
        self._heard_due = float("inf")
        epoch, found = self._broker.fetch("fetch_due" if self._delayed else "fetch", self._queue_name, count)
        if self._delayed:
            milliseconds = found.pop(0)
            self._next_due = float("inf") if milliseconds < 0 else time.monotonic() + milliseconds / 1000
            found = [part for pair in zip(found[::2], found[1::2], strict=True) for part in (*pair, 0)]
        else:
            found = self._unless_paused(found)
            there = found.pop(0)
            self._limited = there < 0
            self._unsorted = (LIMITED - there if self._limited else there) > 0
        for redis_id, raw, begun_before in zip(found[::3], found[1::3], found[2::3], strict=True):
            self._cache.append((redis_id, raw, begun_before, epoch))
        # Before anybody who wants to be alone can ask.
        self._holdings.add([(_text(redis_id), epoch) for redis_id in found[::3]])
        if found:
            self._size = max(1.0, sum(map(len, found[1::3])) / len(self._cache))
        # Fewer than asked for: there are no more.
        self._idle = len(self._cache) < count and not self._unsorted

    def _unless_paused(self, found: list[Any]) -> list[Any]:
        paused = found == PAUSED
        if paused != self._paused:
            self._paused = paused
            logger.warning("queue {} is {}", self._queue_name, "paused" if paused else "resumed")
        return [0] if paused else found

    def ack(self, message: MessageProxy) -> None:
        """End a message, with its follow-ups enqueued in the same step.

        Raises:
          ConnectionClosed: When Redis did not say so. Dramatiq calls again five seconds later.
        """
        assert isinstance(message, Delivery)  # noqa: S101 - it came from here
        if message.lost:
            self._no_longer_held([message])
            return
        if message.give_back:
            self._give_back_interrupted(message)
            return
        if self._is_plain(message):
            self._broker.forget(message)
            journal = self._broker.journal
            # Where tenants have limits, others of them may wait for it.
            journal.end(message, urgent=self._limited or self._holdings.is_wanted(len(journal) + 1))
            return
        if self._finish(message):
            self._count(message)
        self._no_longer_held([message])

    def _is_plain(self, message: Delivery) -> bool:
        """Tell whether nothing follows from the end of ``message``, and nobody waits for it."""
        return (
            # What ends later and has not gone to the spool is recorded.
            (message.succeeded or message.handed_over)
            and not message.follow_ups
            and message.to_spool is None
            and message.group is None
            and not self._delayed
            and UNIQUE not in message.options
        )

    def have_ended(self, messages: Sequence[Delivery], others: Container[int]) -> None:
        """Let go of messages that have ended in one step.

        Arguments:
          messages: All of this queue.
          others: Which of them, counted from 1, Redis says were not this process' any more.
        """
        for n, message in enumerate(messages, 1):
            if n in others:
                _warn(message)
            else:
                self._count(message)
        self._let_go(messages)

    def _finish(self, message: Delivery) -> int:
        """Take the step in which a message ends, and return what Redis says."""
        done: int = self._broker.run(
            "finish",
            self._queue_name,
            self._broker.broker_id,
            _bytes(message.redis_id),
            message.to_spool or "",
            self._broker.spool.limit,
            _lock_of(message),
            message.epoch,
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
            _warn(message)
        if done == GROUP_UNKNOWN and message.group is not None:
            logger.error(
                "message {} succeeded, but its group {} is not known: begun by a stock producer, or forgotten; its "
                "callbacks will not come",
                message.message_id,
                message.group.uuid,
            )
        return done

    def _count(self, message: Delivery) -> None:
        if UNCOUNTED in message.options:
            return
        if message.failed:
            self._count_as(FAILED, message)
        elif message.succeeded:
            self._count_as(SUCCEEDED, message)
        elif not self._delayed:
            # What leaves a delay queue only moves.
            self._count_as(RETRIED, message)

    def _count_as(self, outcome: str, message: Delivery) -> None:
        queue, broker = q_name(self._queue_name), self._broker
        if outcome != GIVEN_BACK:
            broker.tally.count(outcome, queue)
        if broker.metrics is not None:
            broker.metrics.ended(message, outcome, queue)

    def _no_longer_held(self, messages: Iterable[Delivery]) -> None:
        messages = list(messages)
        for message in messages:
            self._broker.forget(message)
        self._let_go(messages)

    def _let_go(self, messages: Sequence[Delivery]) -> None:
        self._holdings.discard([message.held_as for message in messages])
        solitude = self._broker.solitude
        if not solitude.is_wanted():
            return
        for message in messages:
            if solitude.release(message.held_as):
                # Other work gets as much time as it took, so that a crash amid long jobs does not stop a queue.
                now = time.monotonic()
                self._look_again = now + min(now - self._alone_since, LEAVE_ALONE_AT_MOST)

    def _give_back_interrupted(self, message: Delivery) -> None:
        # A process that stops does not wait for Redis: closing the broker tries again, and its lease ends.
        self._no_longer_held([message])
        if message.began is not None and UNCOUNTED not in message.options:
            self._count_as(GIVEN_BACK, message)
        try:
            self._give_back([message.redis_id])
        except ConnectionClosed as e:
            logger.warning("message {} cannot be given back yet: {}", message.message_id, e)

    def nack(self, message: MessageProxy) -> None:
        """End a failed message, now or once its failure is recorded. Stock Dramatiq keeps it, arguments and all, in a
        dead-letter queue for seven days."""
        if isinstance(message, Delivery) and message.ends_later is not None and not message.lost:
            message.ends_later(self.ack)
            if message.handed_over:
                self._holdings.set_aside(message.held_as)
            self._broker.leave()
            return
        self.ack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give messages back, to the head of their queue, but for what ends elsewhere."""
        deliveries = [m for m in messages if isinstance(m, Delivery) and not m.handed_over]
        if deliveries:
            self._give_back(m.redis_id for m in deliveries)
            self._no_longer_held(deliveries)

    def close(self) -> None:
        """Give back what was fetched and not yet handed to Dramatiq."""
        try:
            self._return_suspect()
        finally:
            self._return_cache()
