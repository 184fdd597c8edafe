"""What many look at is made once for all of them: 50 viewers of a live page cost what one does."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Results that are kept, those last made.
KEYS: Final = 1_000
#: The share of the time that making one thing anew may take.
SHARE: Final = 0.01
#: Seconds that a result is kept at most, however long it took.
AT_MOST: Final = 60.0

#: Seconds for which somebody else may make it, before nobody waits for that: longer than Postgres lets a statement run.
WAITS: Final = 12.0


class TakesTooLong(Exception):
    """Raised when what is asked for is not there in time."""


@dataclass(slots=True)
class _Results:
    """What was made for each key and until when it is good; what is being made, and since when."""

    made: OrderedDict[Hashable, tuple[float, Any]] = field(default_factory=OrderedDict)
    making: dict[Hashable, tuple[Future[Any], float]] = field(default_factory=dict)


class Shared:
    """Keeps what was made for a key for some seconds, for every thread that asks.

    Arguments:
      seconds: How long a result is good. What took long to make is good for longer, up to a minute, so that a large
        ledger costs Postgres no more than a hundredth of a core for each key; the page is that much older instead.
      clock: Gives seconds; another in tests.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._results = _Results()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for ``key`` within the last seconds; make it where there is none.

        However many ask at the same time, one of them makes it, and the others wait for that. ``make`` must not ask for
        the same key.

        Raises:
          TakesTooLong: When somebody else has been making it for :data:`WAITS` seconds: he may never end, where a
            server neither answers nor goes away, and threads are few.
          BaseException: What ``make`` raised, to all who waited for it; whoever asks after that makes it anew.
        """
        with self._lock:
            results = self._results
            until, value = results.made.get(key, (0.0, None))
            if self._clock() < until:
                found: T = value
                return found
            others = results.making.get(key)
            mine: Future[Any] = Future()
            if others is None:
                results.making[key] = mine, self._clock()
        if others is not None:
            future, began = others
            try:
                waited_for: T = future.result(max(0.0, began + WAITS - self._clock()))
            except TimeoutError:
                if future.done():
                    # What went wrong there was that.
                    raise
                raise TakesTooLong("it takes longer than usual to find out; try again in a moment") from None
            return waited_for
        return self._make(results, key, make, mine)

    def forget(self) -> None:
        """Make everything anew from now on: something has changed, and whoever changed it wants to see that."""
        with self._lock:
            # What is being made may be of before the change, and is for those alone who asked before it.
            self._results = _Results()

    def _make(self, results: _Results, key: Hashable, make: Callable[[], T], mine: Future[Any]) -> T:
        began = self._clock()
        try:
            value = make()
        except BaseException as e:
            with self._lock:
                del results.making[key]
            mine.set_exception(e)
            raise
        ended = self._clock()
        with self._lock:
            del results.making[key]
            results.made[key] = (ended + max(self._seconds, min((ended - began) / SHARE, AT_MOST)), value)
            results.made.move_to_end(key)
            while len(results.made) > KEYS:
                results.made.popitem(last=False)
        mine.set_result(value)
        return value
