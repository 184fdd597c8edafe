"""What was last found out, in a thread of its own, so that nobody waits for longer than he wants to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")

#: The share of the time that making it may take, and seconds for which it holds at most because of that: less than
#: Prometheus usually lets go by between two scrapes.
SHARE: Final = 0.05
AT_MOST: Final = 15.0


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """What was found out, or why it could not be, and how many seconds that took."""

    value: T | None
    error: Exception | None
    took: float


class Latest(Generic[T]):
    """Makes something when somebody asks, once for all who ask meanwhile and for some seconds after; also what went
    wrong is told so long, so that a server in trouble is asked no more often.

    At most one thread makes it, however long a server does not answer.

    Arguments:
      make: Makes it.
      seconds: For which it is good; longer where making it takes long.
      clock: Gives seconds; another in tests.
    """

    def __init__(self, make: Callable[[], T], seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._future: Future[Made[T]] | None = None
        self._until = 0.0

    def ask(self) -> Future[Made[T]]:
        """Return what is good, or what is being made; have it made where there is neither."""
        with self._lock:
            if self._future is None or (self._future.done() and self._clock() >= self._until):
                self._future = Future()
                threading.Thread(target=self._find_out, args=(self._future,), name="metrics", daemon=True).start()
            return self._future

    def _find_out(self, future: Future[Made[T]]) -> None:
        began, value, error = self._clock(), None, None
        try:
            value = self._make()
        except Exception as e:  # noqa: BLE001 - whoever asks is told
            error = e
        ended = self._clock()
        self._until = ended + max(self._seconds, min((ended - began) / SHARE, AT_MOST))
        future.set_result(Made(value, error, ended - began))
