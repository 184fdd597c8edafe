"""Tells Redis in batches what began in this process and what has ended, some milliseconds after.

A call for each would cost more than all else that a job costs: its thread waits for Redis, and then for its turn among
the others. In a process that dies meanwhile the last few milliseconds' worth of what had ended runs again. What had
begun is known to its keeper nevertheless: :mod:`middleware.shared_starts`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.deliveries import Delivery
from middleware.start_marks import StartMarks

#: Seconds that something waits to be told at most, and after which Redis is tried again.
INTERVAL, AGAIN_AFTER = 0.005, 0.25
#: Deliveries that are ended in one step: others wait meanwhile, for less than a millisecond.
AT_ONCE = 500
#: Seconds between two complaints.
COMPLAIN_EVERY = 5.0

#: Ends deliveries of one queue and lease in Redis, or raises ConnectionClosed.
End = Callable[[str, int, Sequence[Delivery]], object]


class Journal:
    """A thread that tells, begun with the first message.

    Arguments:
      marks: Which messages have begun.
      end: Ends deliveries.
    """

    def __init__(self, marks: StartMarks, end: End) -> None:
        self._marks = marks
        self._end = end
        self._ended: deque[Delivery] = deque()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._asleep = self._urgent = False
        self._flushing = threading.Lock()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._complained = float("-inf")

    def __len__(self) -> int:
        return len(self._ended)

    def begin(self, entry: bytes) -> None:
        """Note that a message begins to run. Raises nothing."""
        if self._marks.mark(entry):
            self.stir()

    def end(self, message: Delivery, *, urgent: bool = False) -> None:
        """Note that a message has ended; one that is urgent is told at once. Raises nothing."""
        self._ended.append(message)
        if urgent:
            self.hurry()
        else:
            self.stir()

    def hurry(self) -> None:
        """Tell at once what has ended."""
        if not self._urgent or self._thread is None:
            self._urgent = True
            self.stir(wake=True)

    def stir(self, *, wake: bool = False) -> None:
        """See that what is yet to be told is, in a moment."""
        if self._asleep or wake:
            self._wake.put(None)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._keep, name="journal", daemon=True)
            try:
                thread.start()
            except RuntimeError as e:
                # Out of threads: whoever has ended a message tells it, and the next one tries again.
                logger.error("what begins and ends here is told by the threads that run it: {}", e)
                self._marks.send()
                self._tell()
                return
            self._thread = thread

    def _keep(self) -> None:
        while True:
            try:
                if not self._ended and not self._marks.unsent():
                    self._sleep()
                # Whoever begins first after a pause should not be unknown for a moment.
                self._marks.send()
                if not self._urgent:
                    with suppress(Empty):
                        self._wake.get(timeout=INTERVAL)
                self._urgent = False
                if not self._tell():
                    time.sleep(AGAIN_AFTER)
            except BaseException:  # noqa: BLE001 - without this thread nothing would end any more
                logger.opt(exception=True).critical("Redis cannot be told what begins and ends here")
                time.sleep(AGAIN_AFTER)

    def _sleep(self) -> None:
        self._asleep = True
        # Something may have come before it was known that nobody is awake.
        if not self._ended and not self._marks.unsent():
            self._wake.get()
        self._asleep = False

    def _tell(self) -> bool:
        try:
            self.flush()
        except ConnectionClosed as e:
            now = time.monotonic()
            if now - self._complained > COMPLAIN_EVERY:
                self._complained = now
                logger.warning("{} messages that have ended wait until Redis is told: {}", len(self._ended), e)
            return False
        except Exception:  # noqa: BLE001 - they are told with the next
            logger.opt(exception=True).critical("Redis cannot be told which messages have ended")
            return False
        return True

    def flush(self) -> None:
        """Tell what has ended until now.

        Raises:
          ConnectionClosed: When Redis did not say so; the rest stays, to be told later.
        """
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        taken: list[Delivery] = []
        while self._ended and len(taken) < AT_ONCE:
            taken.append(self._ended.popleft())
        batches: dict[tuple[str, int], list[Delivery]] = {}
        for message in taken:
            batches.setdefault((message.queue_name, message.epoch), []).append(message)
        left = dict(batches)
        try:
            for (queue_name, epoch), batch in batches.items():
                self._end(queue_name, epoch, batch)
                del left[queue_name, epoch]
        finally:
            for batch in left.values():
                self._ended.extendleft(batch)

    def close(self, within: float) -> None:
        """Tell all that has ended, within so many seconds, or leave it: it is given back then, and runs again."""
        until = time.monotonic() + within
        why: object = "what was told before has no answer yet"
        # What the thread tells at this moment must have been told, too.
        while self._flushing.acquire(timeout=max(0.0, until - time.monotonic())):
            try:
                if not self._ended:
                    return
                self._flush()
                continue
            except ConnectionClosed as e:
                why = e
            finally:
                self._flushing.release()
            if time.monotonic() > until:
                break
            time.sleep(min(AGAIN_AFTER, within / 4))
        logger.warning("{} messages or more have ended, and run again because Redis was not told: {}", len(self), why)
