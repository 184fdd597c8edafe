"""A Redis broker that loses nothing it accepted: Dramatiq's keys and message format, with other steps.

What stock Dramatiq does in several calls is one script here: a retry, a child or a due message takes its place in the
same step in which the delivery it follows from ends. What a process holds is leased on the server's clock; when the
lease ends, any other process gives it back.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

import redis
from dramatiq import Message, MessageProxy, Middleware, Worker
from dramatiq.broker import Consumer
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import current_millis, dq_name
from dramatiq.errors import BrokerConnectionError, ConnectionClosed, ConnectionFailed
from dramatiq.middleware import MiddlewareError
from dramatiq.worker import WorkerThread
from loguru import logger

from middleware import keeper as keeping
from middleware import unique
from middleware.deliveries import Delivery, Entry, NotToRun
from middleware.dramatiq_internals import (
    catch_what_escapes,
    delay_nothing,
    exception_of,
    is_consumer_thread,
    prefetch_is_set,
    take_back_last,
    wake_when_told,
)
from middleware.encoding import encode
from middleware.errors import EnqueuedInPart
from middleware.heartbeat import Heartbeat
from middleware.holdings import Holdings
from middleware.hooks import Hooks
from middleware.job_metrics import JobMetrics, note_sent_now
from middleware.journal import Journal
from middleware.log_context import lines_of
from middleware.lossless_consumer import LosslessConsumer
from middleware.lua_scripts import Argument, Scripts, texts
from middleware.message_checks import UNIQUE
from middleware.messages import make_message
from middleware.outbox import Outbox
from middleware.process_facts import process_facts
from middleware.redis_ids import new_id, new_ids, redis_id_of
from middleware.shared_starts import SharedStarts
from middleware.solitude import Solitude
from middleware.spool import SPOOL_LIMIT, Spool
from middleware.start_marks import StartMarks
from middleware.tally import Tally
from middleware.waits import Waits

#: Milliseconds after which what a silent process holds is given back, milliseconds that all get to come back in after
#: Redis was away, and seconds between two signs of life.
LEASE, GRACE, BEAT = 8_000, 5_000, 2.0

#: Starts that end with the loss of the worker, after which a message is not started again.
MAX_STARTS = 3

#: Seconds that telling Redis what has ended may take when a process leaves, and when it gives up.
FLUSH_WITHIN, TELL_WITHIN = 3.0, 0.5

#: Seconds for which the last process of a queue puts together, when it ends, what waits there.
MERGE_FOR = 3.0

#: Messages, and bytes of them, that are enqueued in one step: others wait meanwhile, some milliseconds at most. Redis'
#: scripts can give no command more than 8,000 words, of which each message is two.
AT_ONCE, BYTES_AT_ONCE = 1_000, 4 * 2**20


@dataclass
class _OfThread(threading.local):
    """What a thread's calls of ``enqueue`` are part of."""

    #: What a message that has just run enqueues, by message id.
    collecting: list[tuple[str, Entry]] | None = None
    #: By its Redis id, where a delayed message moves that is due, or why it cannot; nothing until it is enqueued.
    due: dict[str, Entry | MiddlewareError | None] = field(default_factory=dict)


def _fail(message: Delivery, error: BaseException | None) -> None:
    message.fail()
    if error is not None:
        message.stuff_exception(error)


def _to_enqueue(message: Message[Any], delay: int | None, an_id: str) -> Message[Any]:
    """Return ``message`` as it is to be put into Redis, with an id of its own there."""
    options, queue_name = {**message.options, "redis_message_id": an_id}, message.queue_name
    if delay is not None:
        queue_name, options["eta"] = dq_name(queue_name), current_millis() + delay
    # Not copy(), which asks the class for its fields.
    return make_message(
        queue_name,
        message.actor_name,
        message.args,
        message.kwargs,
        options,
        message.message_id,
        message.message_timestamp,
    )


def _entry_of(message: Message[Any]) -> Entry:
    # Only now, after the hooks, is it known whose it is. The options are this copy's own.
    options = message.options
    redis_id = options["redis_message_id"] = redis_id_of(options["redis_message_id"], options)
    return message.queue_name, redis_id, encode(message)


def _by_queue(entries: Sequence[Entry]) -> list[Argument]:
    """Return what ``enqueue.lua`` is told of them, in their order."""
    said: list[Argument] = []
    for queue_name, group in groupby(entries, itemgetter(0)):
        of_queue = [part for entry in group for part in entry[1:]]
        said += (queue_name, len(of_queue) // 2, *of_queue)
    return said


def _ends_of_batches(entries: Sequence[Entry]) -> Iterator[int]:
    """Give where each batch ends that is to be enqueued in one step."""
    count = size = 0
    for at, entry in enumerate(entries):
        if count == AT_ONCE or (count and size + len(entry[2]) > BYTES_AT_ONCE):
            yield at
            count = size = 0
        count, size = count + 1, size + len(entry[2])
    if count:
        yield len(entries)


def _entry(message: Delivery) -> bytes:
    return f"{message.queue_name}:{message.redis_id}".encode("utf-8", "surrogateescape")


def _began(message: Delivery) -> float | None:
    return message.began and message.began[0]


def tell_end(run: Scripts, starts: SharedStarts, how: str) -> None:
    """Tell Redis, in its keeper, how a process ended that had these starts.

    Arguments:
      how: In JSON; empty where that is nobody's fault.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    running = (part for entry in starts.running().items() for part in entry)
    run("obituary", starts.broker_id(), how, *running)


class LosslessBroker(RedisBroker):
    """See this module's text. Needs Redis 7 or Valkey.

    Arguments:
      client: For all that is answered at once. Every command may be sent twice.
      waiting_client: For fetching. Its timeout must be longer than Dramatiq says that a worker waits (a second by
        default, for delayed messages two); one that can be woken waits up to five seconds, and a second less than that
        timeout at most. It must not retry: what a lost reply named would be left lying until this process ends.
      middleware: All of it.
      lease_client: For signs of life, several of which must fit into a lease; ``client`` by default.
      namespace: Prefix of every key.
      lease: Milliseconds, see :data:`LEASE`.
      spool_limit: Failures that may wait in Redis while Postgres is away, before workers wait.
      max_starts: Starts of a message that end with the loss of its worker, after which it is not started again.
      worker_name: Names this process to whoever finds it gone.
      fair: Whether the tenants of a queue take turns where more waits than is wanted, and are held to their limits;
        :mod:`worker.queue_admin.shares` sets those. What waits in lanes is fetched in any case.
      keeper: Whether a process that ``dramatiq`` starts gets a parent that says how it ends: :mod:`middleware.keeper`.
      metrics: Counts what becomes of messages; by default nobody does.
      outbox: Takes along with its transaction what is sent inside one; without it that is sent at once.

    Attributes:
      outbox: As given.
      spool: Those failures.
      tally: How many messages ended here since the last sign of life.
      suspected: Queues that have messages which were running when a worker was lost.
      solitude: In which such a message runs.
    """

    def __init__(
        self,
        *,
        client: redis.Redis,
        waiting_client: redis.Redis,
        middleware: list[Middleware],
        lease_client: redis.Redis | None = None,
        namespace: str = "dramatiq",
        lease: int = LEASE,
        spool_limit: int = SPOOL_LIMIT,
        max_starts: int = MAX_STARTS,
        worker_name: str | None = None,
        fair: bool = True,
        keeper: bool = True,
        metrics: JobMetrics | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self._hooks = Hooks()
        super().__init__(client=client, middleware=middleware, namespace=namespace)
        self.waiting_client = waiting_client
        self._lease_client = lease_client
        self._stopping = False
        self.fair = fair
        self._keeper = keeper
        self.outbox = outbox
        self.run = Scripts(client, namespace)
        self._run_once = Scripts(waiting_client, namespace)
        self._waits = Waits(waiting_client, lease_client or client)
        self.spool = Spool(self.run, self.broker_id, limit=spool_limit)
        self._marks = StartMarks(client, f"{namespace}:__dramaturg__.started.{self.broker_id}")
        self.journal = Journal(self._marks, self._end)
        self.tally = Tally()
        self.metrics = metrics
        if metrics is not None:
            metrics.actors = self.actors
        self._threads: int | None = None
        self._worker: Worker | None = None
        self._run_in_time = Scripts(lease_client or client, namespace)
        self._heartbeat = Heartbeat(
            self._run_in_time,
            self.broker_id,
            lease=lease,
            grace=GRACE,
            interval=BEAT,
            facts=lambda: process_facts(worker_name, stopping=self._stopping, threads=self._threads),
            running=self._marks.running,
            tally=self.tally,
            on_missing=self._marks.close,
            on_spool=self.spool.holds,
            on_suspects=self._suspect,
            on_given_back=self._given_back,
            on_due=self._hear_due,
        )
        self.max_starts = max_starts
        self.suspected: set[str] = set()
        self.solitude = Solitude(self._busy)
        self._holdings: dict[str, Holdings] = {}
        # Under which leases something was fetched: one, unless this process was given up.
        self._epochs: frozenset[int] = frozenset()
        self._consumers: dict[str, LosslessConsumer] = {}
        self.prefetch_is_set = prefetch_is_set()
        self._local = _OfThread()

    def _suspect(self, queues: set[str]) -> None:
        new, self.suspected = queues - self.suspected, queues
        for queue_name in new:
            self.wake(queue_name)

    def _hear_due(self, queue_name: str, seconds: float) -> None:
        consumer = self._consumers.get(queue_name)
        if consumer is not None:
            consumer.hear_due(seconds)

    def wake(self, queue_name: str) -> None:
        """Have the consumer of a queue, if it waits in Redis, look around. Raises nothing."""
        self._waits.end(queue_name)

    def _given_back(self, queue: str, count: int, running: int) -> None:
        if self.metrics is not None:
            self.metrics.redelivered(queue, count, running)

    def _busy(self) -> bool:
        # Delayed messages only move, which harms nobody.
        return any(len(held) for queue, held in self._holdings.items() if not queue.endswith(".DQ"))

    def begin(self, message: Delivery) -> None:
        """Note that ``message`` begins to run, in case that its worker does not survive it. Raises nothing."""
        self.journal.begin(_entry(message))

    def forget(self, message: Delivery) -> None:
        """Note that ``message`` does not run any more."""
        self._marks.forget(_entry(message), _began(message))

    def has_run(self, message: Delivery) -> None:
        """Note that ``message`` has run, though it ends later: a loss of its worker is not its fault any more. Called
        by the thread that ran it. Raises nothing."""
        if self._marks.over(_entry(message), _began(message)):
            self.journal.stir()

    def tell_ran(self, redis_ids: Iterable[str]) -> None:
        """Tell Redis now that these have run: of what has a row, whoever gets it next must know to ask. Raises nothing.

        It goes with the text of its script, because nobody would say that Redis does not know that.
        """
        held = ((queue_name, redis_id) for redis_id in redis_ids for queue_name in [self._held_in(redis_id)])
        ran = [part for queue_name, redis_id in held if queue_name is not None for part in (queue_name, redis_id)]
        if ran:
            words = ("EVAL", texts()["ran"], "1", self.namespace, self.broker_id, *ran)
            self._marks.say(*(word.encode("utf-8", "surrogateescape") for word in words))

    def leave(self) -> None:
        """Note that this thread runs nothing any more, though what it ran has not ended yet."""
        self._marks.leave()

    def take_back_last(self, queue_name: str, count: int) -> list[MessageProxy]:
        """Take so many of the messages that wait in this process from it, those that would be run last."""
        return [] if self._worker is None else take_back_last(self._worker, queue_name, count)

    def _end(self, queue_name: str, epoch: int, messages: Sequence[Delivery]) -> None:
        """End messages of one queue, fetched under one lease, of which nothing follows.

        Raises:
          ConnectionClosed: When Redis did not say so.
        """
        ids = (message.redis_id.encode("utf-8", "surrogateescape") for message in messages)
        others = self.run("finish_many", queue_name, self.broker_id, epoch, *ids)
        self._consumers[queue_name].have_ended(messages, others)

    def still_holds(self, message: Delivery) -> bool:
        """Tell whether ``message`` is still this process'; as far as is known, where Redis cannot be asked."""
        try:
            message.lost = not self._heartbeat.holds(message.epoch)
        except ConnectionClosed:
            message.lost = message.epoch != self._heartbeat.epoch
        return not message.lost

    def surely_holds(self, redis_ids: Iterable[str]) -> bool:
        """Tell, without asking Redis, whether all of these are surely this process' at this moment."""
        return self._heartbeat.is_fresh() and all(self._held_in(redis_id) is not None for redis_id in redis_ids)

    def _held_in(self, redis_id: str) -> str | None:
        """Return of which queue this is held, under the lease of this moment alone: a delivery under another, which has
        not ended yet either, may be the one that is meant."""
        now, held = self._heartbeat.epoch, list(self._holdings.items())
        if any((redis_id, epoch) in of_queue for epoch in self._epochs if epoch != now for _, of_queue in held):
            return None
        return next((queue_name for queue_name, of_queue in held if (redis_id, now) in of_queue), None)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        holdings = self._holdings.setdefault(queue_name, Holdings())
        # The lease must stand before anything is taken under it.
        self._heartbeat.cover(queue_name)
        self._local.due.clear()
        consumer = LosslessConsumer(self, queue_name, prefetch, timeout, holdings)
        self._consumers[queue_name] = consumer
        return consumer

    def fetch(self, script: str, queue_name: str, count: int) -> tuple[int, list[Any]]:
        """Take up to ``count`` messages; return under which lease, and what the script said.

        Raises:
          ConnectionClosed: For any error of Redis; the next consumer finds what was taken nevertheless. Also when this
            process has left.
        """
        while True:
            epoch = self._heartbeat.epoch
            found: list[Any] | None = self._run_once(script, queue_name, self.broker_id, epoch, count, int(self.fair))
            if found is not None:
                if epoch not in self._epochs:
                    self._epochs |= {epoch}
                return epoch, found
            # This process was given up, and nothing may be taken before it has a new lease.
            self._heartbeat.beat()
            if self._heartbeat.epoch == epoch:
                raise ConnectionClosed("this process has left, and may fetch nothing any more")

    def may_wait(self, seconds: float) -> float:
        """Return how many of these seconds a consumer may wait at a time: none where it could not be woken, and fewer
        than after which ``waiting_client`` takes Redis for gone.

        Raises:
          ConnectionClosed: For any error of Redis.
        """
        try:
            return min(seconds, self._waits.longest())
        except redis.RedisError as e:
            raise ConnectionClosed(f"Redis: {e}") from e

    def wait_for_message(self, queue_name: str, seconds: float) -> bool:
        """Wait in Redis until the queue has a message, and tell whether it has; or until :meth:`wake`. Beyond a second
        it waits no longer than the lease surely stands, because what comes is taken under it.

        Raises:
          ConnectionClosed: For any error of Redis.
        """
        # A move asks for no lease.
        self._heartbeat.refresh()
        seconds = min(seconds, max(self._heartbeat.stands_for() - 1, 1))
        taking = f"{self.namespace}:__dramaturg__.taking.{self.broker_id}.{queue_name}"
        try:
            # A move, because nothing else wakes on what stock producers enqueue. The next fetch looks there first.
            moved = self._waits.wait(
                queue_name, "BLMOVE", f"{self.namespace}:{queue_name}", taking, "LEFT", "RIGHT", round(seconds, 3)
            )
        except redis.OutOfMemoryError:
            # It may not move now, but the scripts may: look as often as stock Dramatiq does.
            time.sleep(min(seconds, 1))
            return True
        except redis.RedisError as e:
            raise ConnectionClosed(f"Redis: {e}") from e
        return moved is not None

    def enqueue(self, message: Message[Any], *, delay: int | None = None) -> Message[Any]:
        """Enqueue ``message``; as :meth:`RedisBroker.enqueue`, but what a job that has just run enqueues is kept until
        its message ends, and then takes its place in the same step; and what is sent inside a transaction leaves with
        that, unless its option ``now`` is true.

        Raises:
          ConnectionFailed: When Redis did not say that it has it. It may have: sending again can run it twice.
          NotUnique: When its actor is unique, refuses a second, and there is one already.
        """
        old_id = message.options.get("redis_message_id")
        # A delayed message that is due: it moves when its delivery ends, which is next.
        moves = is_consumer_thread() and old_id in self._local.due
        message = _to_enqueue(message, delay, new_id())
        if self._local.collecting is not None and delay is None and not moves:
            note_sent_now(message.options)
        try:
            self._before_enqueue([message], delay)
        except MiddlewareError as e:
            if not moves:
                raise
            self._local.due[str(old_id)] = e
            return message
        # It is about sending, and not the receiver's business.
        now = message.options.pop("now", None)
        entry = _entry_of(message)
        if moves:
            self._local.due[str(old_id)] = entry
        elif self._local.collecting is not None:
            self._local.collecting.append((message.message_id, entry))
        elif now or self.outbox is None or not self.outbox.take(message, *entry):
            try:
                message = self._put([message], [entry])[0]
            except ConnectionClosed as e:
                raise ConnectionFailed(
                    f"message {message.message_id} for actor {message.actor_name!r} was not enqueued: {e}"
                ) from e
            if not unique.was_sent(message):
                unique.refuse(message)
                return message
        self._after_enqueue([message], delay)
        return message

    def _before_enqueue(self, messages: Sequence[Message[Any]], delay: int | None) -> None:
        """Call the hooks of messages that are enqueued: ours, that come first, with all at once, and from the first of
        anybody else's on one message after the other.
        """
        first, rest = self._hooks.before_enqueue(self.middleware)
        for ours in first:
            try:
                ours.before_enqueue_many(self, messages, delay)
            except MiddlewareError:
                raise
            except Exception:  # noqa: BLE001 - what one of them is must be nothing to the others
                for message in messages:
                    self._call_before_enqueue([ours], message, delay)
        if rest:
            for message in messages:
                self._call_before_enqueue(rest, message, delay)

    def _call_before_enqueue(self, hooks: Sequence[Middleware], message: Message[Any], delay: int | None) -> None:
        for middleware in hooks:
            try:
                # Dramatiq, too, gives None where nothing is delayed.
                middleware.before_enqueue(self, message, delay)  # type: ignore[arg-type]
            except MiddlewareError:
                raise
            except Exception:  # noqa: BLE001 - Dramatiq's rule
                logger.opt(exception=True).critical("before_enqueue of {!r} raised", middleware)

    def _after_enqueue(self, messages: Iterable[Message[Any]], delay: int | None) -> None:
        hooks = self._hooks.of(self.middleware, "after_enqueue")[::-1]
        for message in messages:
            for middleware in hooks:
                try:
                    middleware.after_enqueue(self, message, delay)  # type: ignore[arg-type]
                except Exception:  # noqa: BLE001 - Dramatiq's rule
                    logger.opt(exception=True).critical("after_enqueue of {!r} raised", middleware)

    def _put(self, messages: Sequence[Message[Any]], entries: Sequence[Entry]) -> list[Message[Any]]:
        """Put messages on their queues, and return them with what became of each."""
        if not any(UNIQUE in message.options for message in messages):
            self.run("enqueue", *_by_queue(entries))
            return list(messages)
        parts: list[Argument] = [unique.KEEP]
        for message, entry in zip(messages, entries, strict=True):
            parts += [unique.policy_of(message.options), message.message_id, message.options.get("eta", 0), *entry]
        said = self.run("enqueue_unique", *parts)
        answers = zip(said[::3], said[1::3], said[2::3], strict=True)
        return [unique.settled(message, *answer) for message, answer in zip(messages, answers, strict=True)]

    def enqueue_many(self, messages: Iterable[Message[Any]], *, delay: int | None = None) -> list[Message[Any]]:
        """Enqueue messages in their order, :data:`AT_ONCE` in each round trip; inside a transaction, with that.

        Arguments:
          messages: Of any actors and queues, as ``actor.message(...)`` makes them.
          delay: Milliseconds before each of them is due.

        Returns them as they were enqueued. One of which there is one already is left out, whatever its actor says of a
        second: :func:`middleware.unique.outcome` tells.

        Raises:
          MiddlewareError: When one of them is refused, as ``send()`` would; then none was enqueued.
          EnqueuedInPart: When Redis did not say that it has all of them.
        """
        prepared = [_to_enqueue(message, delay, an_id) for message, an_id in zip(messages, new_ids(), strict=False)]
        self._before_enqueue(prepared, delay)
        now = [message.options.pop("now", None) for message in prepared]
        entries = [_entry_of(message) for message in prepared]
        if self._local.collecting is not None:
            self._local.collecting += [(m.message_id, entry) for m, entry in zip(prepared, entries, strict=True)]
        elif self.outbox is None or not self.outbox.takes():
            prepared = self._put_all(prepared, entries)
        else:
            left = [n for n, entry in enumerate(entries) if now[n] or not self.outbox.take(prepared[n], *entry)]
            done = self._put_all([prepared[n] for n in left], [entries[n] for n in left])
            for n, message in zip(left, done, strict=True):
                prepared[n] = message
        self._after_enqueue(filter(unique.was_sent, prepared), delay)
        return prepared

    def _put_all(self, messages: list[Message[Any]], entries: list[Entry]) -> list[Message[Any]]:
        done: list[Message[Any]] = []
        for last in _ends_of_batches(entries):
            first = len(done)
            try:
                done += self._put(messages[first:last], entries[first:last])
            except ConnectionClosed as e:
                raise EnqueuedInPart(done, messages[first:last], messages[last:], e) from e
        return done

    def ask_turn(self, who: str, milliseconds: int) -> list[int]:
        """Ask whether it is ``who``'s turn to look into the outbox, with a sign of life where one is due soon.

        Arguments:
          milliseconds: For which nobody else looks then.

        Returns Redis' time in milliseconds, and 1 or 0.

        Raises:
          ConnectionClosed: For any error of Redis.
        """
        return self._heartbeat.ask_turn(who, milliseconds)

    def expect_due(self, redis_id: str) -> None:
        """Expect this thread to enqueue the delayed message ``redis_id`` again, because it is due."""
        self._local.due[redis_id] = None

    def emit_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal not in {"ack", "nack"}:
            if signal == "process_message" and isinstance(args[0], Delivery):
                args[0].unsettled = True
                self._call_before(signal, args[0])
                args[0].began = time.time(), time.perf_counter()
            else:
                if signal == "worker_boot":
                    self._worker, self._threads = args[0], args[0].worker_threads
                self._call_before(signal, *args, **kwargs)
            return
        message = args[0]
        if isinstance(message, Delivery):
            if not self._heartbeat.holds(message.epoch):
                message.lost = True
                logger.error(
                    "message {} is another worker's, since this process was given up: its end here counts for nothing",
                    message.message_id,
                )
                return
            self._take_due(message)
            if message.unsettled:
                # An interrupt came in Dramatiq's error handling, which then acknowledges what has failed.
                self._after_process(message, exception=exception_of(message) or sys.exception())
            if message.give_back:
                # It does not end.
                return
        hook = "before_nack" if message.failed else "before_ack"
        for middleware in self._hooks.of(self.middleware, hook):
            try:
                getattr(middleware, hook)(self, message)
            except Exception as e:
                if isinstance(e, MiddlewareError) and isinstance(e, BrokerConnectionError):
                    # It asks to be called again.
                    raise
                # Dramatiq would call none of the others for some of these, and leave the message lying.
                logger.opt(exception=True).critical("{} of {!r} raised; the message goes on", hook, middleware)

    def _call_before(self, signal: str, *args: Any, **kwargs: Any) -> None:
        """Do as Dramatiq does, but call only hooks that do something."""
        hook = f"before_{signal}"
        for middleware in self._hooks.of(self.middleware, hook):
            try:
                getattr(middleware, hook)(self, *args, **kwargs)
            except MiddlewareError:
                raise
            except Exception:  # noqa: BLE001 - Dramatiq's rule
                logger.opt(exception=True).critical("{} of {!r} raised", hook, middleware)

    def _take_due(self, message: Delivery) -> None:
        """Let a delayed message's move follow from its end; or fail it, where it cannot move."""
        due = self._local.due.pop(message.redis_id, None)
        if isinstance(due, MiddlewareError):
            message.fail()
            message.stuff_exception(due)
        elif due is not None:
            message.follow_ups, message.continues = [due], 1

    def emit_after(self, signal: str, *args: Any, **kwargs: Any) -> None:
        if signal == "process_message" and isinstance(args[0], Delivery):
            self._after_process(args[0], **kwargs)
        elif signal == "skip_message" and isinstance(args[0], Delivery):
            self._after_skip(args[0])
        elif signal in {"ack", "nack"}:
            self._after_end(args[0])
        elif signal == "process_boot" and self._keeper:
            self._boot_kept()
        else:
            if signal == "worker_shutdown":
                # Whoever has stopped a worker finds that what it has done is done.
                self.journal.close(TELL_WITHIN)
            self._call_after(f"after_{signal}", *args, **kwargs)
            if signal == "worker_thread_boot":
                catch_what_escapes(args[0], partial(self._caught, args[0]))
            elif signal == "consumer_thread_boot":
                delay_nothing(args[0])
                wake_when_told(args[0], partial(self.wake, args[0].queue_name))

    def _call_after(self, hook: str, *args: Any, **kwargs: Any) -> None:
        for middleware in reversed(self._hooks.of(self.middleware, hook)):
            try:
                getattr(middleware, hook)(self, *args, **kwargs)
            except Exception:  # noqa: BLE001 - Dramatiq's rule
                logger.opt(exception=True).critical("{} of {!r} raised", hook, middleware)

    def _after_end(self, message: MessageProxy) -> None:
        if isinstance(message, Delivery) and message.give_back:
            # It has not ended.
            return
        # A hook before it may have failed it.
        self._call_after("after_nack" if message.failed else "after_ack", message)

    def _boot_kept(self) -> None:
        """Boot in a child of this process, which stays behind as its keeper, where that can be."""
        if keeping.begun() is None:
            keeping.begin(partial(tell_end, self._run_in_time))
        kept = keeping.begun()
        if kept is None:
            why_not = keeping.why_not_kept()
            self._call_after("after_process_boot")
            # Only now is it known where to log.
            logger.warning("how this process ends will be seen by nobody of ours: {}", why_not)
            return
        starts, until_booted = kept
        with until_booted:
            starts.name(self.broker_id)
            self._marks.share(starts)
            self._call_after("after_process_boot")
        # What was imported is there for good, and need not be looked through for garbage.
        gc.freeze()

    def _after_process(self, message: Delivery, **kwargs: Any) -> None:
        if message.began is not None and message.took is None:
            message.took = time.perf_counter() - message.began[1]
        # Retries, callbacks, pipelines and groups enqueue here.
        before, collected = self._local.collecting, list[tuple[str, Entry]]()
        self._local.collecting = collected
        try:
            interrupt = self._call_all("after_process_message", message, **kwargs)
        finally:
            self._local.collecting = before
        succeeded = kwargs.get("exception") is None
        retried = any(message_id == message.message_id for message_id, _ in collected)
        if interrupt is not None and not retried:
            _fail(message, interrupt if succeeded else None)
        if message.interrupted and interrupt is not None:
            # A hook was interrupted instead of the actor.
            message.give_back = True
        if message.give_back:
            collected, message.group = [], None
        if message.failed:
            # It must not be retried as well. Of a success that a middleware has failed nothing follows: half of its
            # children would be neither ending.
            collected = [] if succeeded else [c for c in collected if c[0] != message.message_id]
            message.group = None
        message.follow_ups = [entry for _, entry in collected]
        ids = [message_id for message_id, _ in collected]
        message.continues = ids.index(message.message_id) + 1 if message.message_id in ids else 0
        message.succeeded = succeeded and not message.failed and not message.give_back
        message.unsettled = False

    @contextmanager
    def collecting(self) -> Iterator[list[tuple[str, Entry]]]:
        """Keep what this thread enqueues while the ``with`` block lasts from its queue; give ids and entries."""
        before, collected = self._local.collecting, list[tuple[str, Entry]]()
        self._local.collecting = collected
        try:
            yield collected
        finally:
            self._local.collecting = before

    def _after_skip(self, message: Delivery) -> None:
        interrupt = self._call_all("after_skip_message", message)
        if interrupt is not None and not message.failed:
            _fail(message, interrupt)
        message.unsettled = False

    def _call_all(self, hook: str, message: Delivery, **kwargs: Any) -> BaseException | None:
        """Call an after hook of all middleware, and return the first interrupt that came meanwhile.

        Dramatiq would call none of the others, and end the thread.
        """
        interrupt: BaseException | None = None
        for middleware in reversed(self._hooks.of(self.middleware, hook)):
            try:
                getattr(middleware, hook)(self, message, **kwargs)
            except BaseException as e:  # noqa: BLE001 - a time limit may fire here, or a hook exit
                logger.opt(exception=True).critical("{} of {!r} raised", hook, middleware)
                if not isinstance(e, Exception):
                    interrupt = interrupt or e
        return interrupt

    def _caught(self, thread: WorkerThread, message: MessageProxy, error: BaseException) -> None:
        """Give back a message whose end was interrupted; one that has ended is not to be found any more."""
        with lines_of(message):
            logger.opt(exception=error).critical("the end of message {} was interrupted", message.message_id)
        if not isinstance(message, Delivery):
            return
        while True:
            try:
                thread.consumers[message.queue_name].requeue_messages([message])
            except ConnectionClosed as e:
                # When it is stopping, everything is given back.
                if not thread.running:
                    return
                logger.warning("message {} cannot be given back yet: {}", message.message_id, e)
                time.sleep(1)
            else:
                return

    def get_actor(self, actor_name: str) -> Any:
        # As one that no actor can have.
        return super().get_actor("" if isinstance(actor_name, NotToRun) else actor_name)

    def stops(self) -> None:
        """Say that this process was told to stop: if it is killed now, none of its messages is to blame."""
        self._stopping = True
        try:
            self._heartbeat.beat()
        except ConnectionClosed as e:
            logger.warning("Redis cannot be told that this process stops: {}", e)

    def give_back_all(self, but: Iterable[str] = ()) -> None:
        """Give back at once whatever this process still holds, also what runs: for a process that ends next.

        Arguments:
          but: Redis ids of what is to be found when the lease ends, as the work of a process that died of it.

        Raises:
          ConnectionClosed: For any error of Redis, where something is not to be given back.
        """
        but = set(but)
        self.journal.close(TELL_WITHIN)
        if not but:
            self._heartbeat.leave()
            return
        for queue_name in list(self._holdings):
            held = self.run("held", queue_name, self.broker_id)
            self.run(
                "requeue",
                queue_name,
                self.broker_id,
                *(one for one in sorted(held) if one.decode("utf-8", "surrogateescape") not in but),
            )

    def close(self) -> None:
        """Give back at once whatever this process still holds."""
        if self.outbox is not None:
            self.outbox.close()
        self.journal.close(FLUSH_WITHIN)
        if self._heartbeat.stop():
            self._merge_lanes()
        self._marks.close()
        self.waiting_client.close()
        if self._lease_client is not None:
            self._lease_client.close()
        super().close()

    def _merge_lanes(self) -> None:
        """Put what waits in lanes back into its queues' own lists where this was the last process that sees them.

        Workers of a release that knows no lanes may come next.
        """
        end = time.monotonic() + MERGE_FOR
        try:
            for queue_name in self._holdings:
                while time.monotonic() < end and self._run_in_time("merge_lanes", queue_name, AT_ONCE, 1)[0]:
                    pass
        except ConnectionClosed as e:
            logger.warning("what waits in tenants' lanes stays there: {}", e)

    def do_qsize(self, queue_name: str) -> int:
        """Return how many messages a queue and its delay queue hold, those that run included.

        Raises:
          ConnectionClosed: For any error of Redis.
        """
        # Both at one moment: a message that becomes due between two calls would be in neither.
        return int(self.run("size", queue_name, dq_name(queue_name)))

    def do_purge(self, queue_name: str) -> None:
        """Remove every message of a queue.

        Raises:
          ConnectionClosed: For any error of Redis.
        """
        self.run("purge", queue_name, self.broker_id)

    def __getattr__(self, name: str) -> Any:
        # The stock broker finds its other commands here, each of which would enter this process in __heartbeats__.
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
