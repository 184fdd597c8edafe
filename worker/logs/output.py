"""Writes whole lines, whoever else writes at the same time, and raises nothing."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
import time
from typing import Any, Final

from middleware.dramatiq_internals import is_log_pipe

#: Bytes of what is written to a pipe as one piece, whoever else does: pipe(7).
ATOMIC: Final = select.PIPE_BUF
#: Bytes that Dramatiq puts before what goes through its pipe.
_FRAME: Final = 4
#: Seconds to wait for a reader where waiting is not done by the system.
PATIENCE: Final = 0.05

#: Of all that this process writes: two writes at a time would tear each other, and break Dramatiq's pipe for good.
#: A signal's handler may log amid a line.
_lock = threading.RLock()


def _renew_lock() -> None:
    # A thread that the child does not have may have held it.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Output:
    """Where lines go.

    Arguments:
      stream: A text stream; by default what standard error is at each line.
    """

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream
        self._pid = os.getpid()
        self._torn = False
        # A reader that has not read what was written is not waited for again before it has.
        self._hurry = False

    def limit(self, limit: int) -> int:
        """Return how many bytes a line may have to stay whole, at most ``limit``."""
        stream = self._stream or sys.stderr
        if is_log_pipe(stream):
            # What a job has forked writes into the same pipe.
            return limit if os.getpid() == self._pid else min(limit, ATOMIC - _FRAME)
        fd = _file_of(stream)
        try:
            shared = fd is not None and stat.S_ISFIFO(os.fstat(fd).st_mode)
        except OSError:
            return limit
        return min(limit, ATOMIC) if shared else limit

    def write(self, text: str) -> None:
        """Write ``text``, which ends with its line's end; what cannot be written is lost."""
        stream = self._stream or sys.stderr
        if stream is None:
            # As in a process without a console.
            return
        fd = _file_of(stream)
        try:
            with _lock:
                if fd is None:
                    stream.write(text)
                    stream.flush()
                else:
                    stream.flush()
                    self._write_to(fd, text.encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001, S110 - a full disk, a reader that has gone: there is nowhere to say so
            pass

    def _write_to(self, fd: int, data: bytes) -> None:
        if self._torn:
            data = b"\n" + data
        rest, until = memoryview(data), time.monotonic() + PATIENCE
        try:
            while rest:
                try:
                    rest = rest[os.write(fd, rest) :]
                except BlockingIOError:
                    left = until - time.monotonic()
                    if left <= 0 or self._hurry:
                        self._hurry = True
                        raise
                    poll = select.poll()
                    poll.register(fd, select.POLLOUT)
                    poll.poll(left * 1000)
            self._hurry = False
        finally:
            self._torn = 0 < len(rest) < len(data)


def _file_of(stream: Any) -> int | None:
    """Return the file that can be written to without ``stream``, if there is one."""
    if is_log_pipe(stream):
        return None
    try:
        return int(stream.fileno())
    except Exception:  # noqa: BLE001 - not one, closed, or of a test
        return None
