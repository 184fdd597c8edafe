"""The signals that tell a worker process to stop, of which only the first counts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from middleware.dramatiq_internals import was_told_to_stop

#: What Dramatiq's worker processes stop at. They ignore SIGINT, which its main process passes on as SIGTERM.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Calls Dramatiq's handler for the first signal and none after it.

    At a second one Dramatiq's would end the process with all it holds, and two are the rule: Heroku signals every
    process, and Dramatiq's main process passes its own on. https://devcenter.heroku.com/articles/dynos#shutdown

    Arguments:
      stop: Called with the first signal; in its handler, so it may do next to nothing.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        self._stopping = False
        self._process = os.getpid()

    def install(self) -> None:
        """Take over from Dramatiq's handlers; on the main thread, in a process that ``dramatiq`` started."""
        # None may come between a look at what came before and our taking over.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for number in STOP_SIGNALS:
                handler = signal.getsignal(number)
                if not callable(handler):
                    continue
                if was_told_to_stop(handler) and not self._stopping:
                    self._stopping = True
                    self._stop()
                signal.signal(number, self._only_first(handler))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _only_first(self, handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            if os.getpid() != self._process:
                # A child that a job has forked, which should end when it is told to.
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
                return
            if not self._stopping:
                self._stopping = True
                self._stop()
                handler(number, frame)

        return handle
