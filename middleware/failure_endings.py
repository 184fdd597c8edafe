"""Ends failed messages once their failures are recorded, without holding up the threads that ran them.

A failed message stays held until its row is committed, and only then leaves Redis: whatever dies meanwhile, it comes
again. Its thread goes on with the next one. How many of a queue wait so is bounded by what the process holds of it
(:data:`middleware.holdings.ROOM_ASIDE`): where Postgres is slow, the rest of the queue waits in Redis, and no other.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from dramatiq import Broker, MessageProxy, Worker
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Middleware
from loguru import logger

from db.failure_writer import FailureWriter, HandedIn
from db.failures import Failure
from middleware.deliveries import Delivery
from middleware.hooks import Hooks
from middleware.log_context import lines_of
from middleware.lossless_broker import LosslessBroker

#: Failed messages of all queues that wait here to be recorded, after which threads wait themselves: each may have a
#: long traceback.
AT_MOST = 500
#: Seconds between two attempts to end a message that Redis did not take; and those that a worker that stops waits for
#: all of them. What is left then goes back, and is found to be recorded when it comes again.
AGAIN_AFTER, STOP_WITHIN = 1.0, 2.5
#: Seconds between two complaints.
COMPLAIN_EVERY = 5.0


@dataclass(slots=True, eq=False)
class _Ending(HandedIn):
    """A failed message, and how it ends."""

    message: Delivery
    end: Callable[[Delivery], object]
    to_spool: Callable[[BaseException], object]
    ended: Callable[[], object]
    recorded: bool = False
    #: Until when it waits to be recorded, on :func:`time.monotonic`'s clock; and whether it does not wait any more.
    until: float = 0.0
    settled: bool = False


class FailureEndings(Middleware):
    """Where ``DeadLetters`` leaves messages that are to end once they are recorded. Behind ``CloseSessions``.

    Arguments:
      writer: Records failures.
    """

    def __init__(self, writer: FailureWriter) -> None:
        self._writer = writer
        self._hooks = Hooks()
        self._starting = threading.Lock()
        self._process: int | None = None
        self._complained = float("-inf")
        self._forget()

    def _forget(self) -> None:
        self._open: set[_Ending] = set()
        self._waiting: deque[_Ending] = deque()
        self._told: SimpleQueue[tuple[Sequence[_Ending], BaseException | None] | None] = SimpleQueue()
        self._again: deque[tuple[float, _Ending]] = deque()
        self._asleep = False

    def takes(self, broker: Broker, message: MessageProxy) -> bool:
        """Tell whether ``message``, which has failed, may end in another thread, after the hooks that follow an end.

        Not where a hook may do more than to tidy up its thread, as ours do, who say so by ``tidies_after_nack``: it is
        called when the message has ended, by the thread that ran it, as Dramatiq promises.
        """
        return (
            isinstance(message, Delivery)
            and not message.queue_name.endswith(".DQ")
            and len(self._open) < AT_MOST
            and all(getattr(m, "tidies_after_nack", False) for m in self._hooks.of(broker.middleware, "after_nack"))
        )

    def take(
        self,
        broker: Broker,
        failure: Failure,
        message: Delivery,
        end: Callable[[Delivery], object],
        to_spool: Callable[[BaseException], object],
        ended: Callable[[], object],
    ) -> None:
        """Have a message end once its failure is recorded; at once, into the spool, where it cannot be handed in: while
        Postgres is away, or there may be no more threads.

        Arguments:
          broker: Is told that ``message`` does not run any more.
          failure: Of ``message``.
          end: Takes it out of Redis, with its failure put into the spool in the same step if it says so; raises
            BrokerConnectionError when Redis did not do so.
          to_spool: Makes it say so, because of what kept its failure from being recorded.
          ended: Called when it has ended.

        Raises:
          BrokerConnectionError: When it could not end into the spool.
        """
        ending = _Ending(failure, self._tell, message, end, to_spool, ended)
        try:
            if isinstance(broker, LosslessBroker):
                # Before it can end in another thread.
                broker.has_run(message)
            self._start()
            self._open.add(ending)
            why_not = self._hand_in(ending)
            message.handed_over = why_not is None
        except BaseException as e:
            ending.cancelled = ending.settled = True
            message.handed_over = False
            self._open.discard(ending)
            if not isinstance(e, Exception):
                # An interrupt: it is given back.
                raise
            why_not = e
        if why_not is not None:
            self._open.discard(ending)
            ending.to_spool(why_not)
            self._end(ending)

    def _tell(self, endings: Sequence[_Ending], error: BaseException | None) -> None:
        """Note that failures are recorded, or what kept them from being so."""
        self._told.put((endings, error))

    def _hand_in(self, ending: _Ending) -> Exception | None:
        """Have the writer write a failure, or return what keeps it from being handed in."""
        ending.settled = ending.cancelled = False
        try:
            self._writer.hand_in(ending)
        except Exception as e:  # noqa: BLE001 - whatever it is, the message has to end
            ending.settled = True
            return e
        ending.until = time.monotonic() + self._writer.wait
        self._waiting.append(ending)
        if self._asleep:
            self._asleep = False
            self._told.put(None)
        return None

    def _start(self) -> None:
        if self._process == os.getpid():
            return
        with self._starting:
            if self._process != os.getpid():
                self._forget()
                threading.Thread(target=self._keep, name="failed", daemon=True).start()
                self._process = os.getpid()

    def _keep(self) -> None:
        while True:
            try:
                for ending, error in [*self._news(), *self._overdue()]:
                    self._settle(ending, error)
                self._try_again()
            except BaseException:  # noqa: BLE001 - without this thread no failed message would end any more
                logger.opt(exception=True).critical("failed messages cannot be ended")
                time.sleep(AGAIN_AFTER)

    def _news(self) -> list[tuple[_Ending, BaseException | None]]:
        """Wait until there is something to do, and return what is recorded, or is not."""
        news = []
        try:
            told = self._told.get(timeout=self._pause())
            while True:
                if told is not None:
                    news += [(ending, told[1]) for ending in told[0] if not ending.settled]
                told = self._told.get_nowait()
        except Empty:
            return news

    def _pause(self) -> float | None:
        while self._waiting and self._waiting[0].settled:
            self._waiting.popleft()
        if not self._waiting and not self._again:
            self._asleep = True
            # One may have come before it was known that nobody is awake.
            if not self._waiting:
                return None
            self._asleep = False
        due = [self._waiting[0].until] if self._waiting else []
        due += [self._again[0][0]] if self._again else []
        return max(0.0, min(due) - time.monotonic())

    def _overdue(self) -> list[tuple[_Ending, BaseException | None]]:
        late: list[tuple[_Ending, BaseException | None]] = []
        now = time.monotonic()
        while self._waiting and (self._waiting[0].settled or self._waiting[0].until <= now):
            ending = self._waiting.popleft()
            if not ending.settled:
                ending.cancelled = True
                late.append((ending, self._writer.late()))
        return late

    def _settle(self, ending: _Ending, error: BaseException | None) -> None:
        if ending.settled:
            return
        ending.settled = True
        ending.recorded = error is None
        with lines_of(ending.message):
            try:
                if error is not None:
                    ending.to_spool(error)
                self._end(ending)
            except Exception as e:  # noqa: BLE001 - it is held until it has ended
                if not isinstance(e, BrokerConnectionError):
                    logger.opt(exception=True).critical("message {} cannot be ended", ending.message.message_id)
                self._put_off(ending, e)

    def _end(self, ending: _Ending) -> None:
        ending.end(ending.message)
        self._open.discard(ending)
        try:
            ending.ended()
        except Exception:  # noqa: BLE001 - it has ended, whoever wanted to tell of that
            logger.opt(exception=True).error("nobody is told of the failure of message {}", ending.message.message_id)

    def _put_off(self, ending: _Ending, why: Exception) -> None:
        now = time.monotonic()
        if now - self._complained > COMPLAIN_EVERY:
            self._complained = now
            logger.warning("{} failed messages have not ended yet, and are tried again: {}", len(self._open), why)
        self._again.append((now + AGAIN_AFTER, ending))

    def _try_again(self) -> None:
        now = time.monotonic()
        while self._again and self._again[0][0] <= now:
            _, ending = self._again.popleft()
            ending.settled = False
            if ending.recorded:
                self._settle(ending, None)
                continue
            # Postgres may be back by now, and have room where the spool has none.
            ending.message.to_spool = None
            why_not = self._hand_in(ending)
            if why_not is not None:
                ending.settled = False
                self._settle(ending, why_not)

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        if self._process != os.getpid():
            return
        end = time.monotonic() + STOP_WITHIN
        while self._open and time.monotonic() < end:
            time.sleep(0.01)
        if isinstance(broker, LosslessBroker):
            broker.journal.close(max(0.0, end - time.monotonic()))
        if self._open:
            logger.warning("{} failed messages have not ended, and go back to their queues", len(self._open))
