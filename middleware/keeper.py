"""A small parent of each worker process, which sees how that one ends, and says so to Redis. On Linux only.

Dramatiq's main process, which is the parent otherwise, loads nothing of ours, and keeps to itself how its children end.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from middleware.shared_starts import SharedStarts

#: What is passed on to the worker process. It ignores SIGINT, as the keeper does, which is forked from it.
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
#: What tells a worker process to stop: how it ends after that is nobody's fault.
STOPS = (signal.SIGTERM, signal.SIGHUP)
HEARD = {*PASSED_ON, signal.SIGCHLD}
#: Seconds that it may take until Redis has heard of it, imports included. Dramatiq's main process waits meanwhile.
TELL_WITHIN = 4.0
#: Of prctl(2).
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def why_not_kept() -> str | None:
    """Return why this process can have no keeper; nothing if it can."""
    if sys.platform != "linux":
        return "this is not Linux"
    if multiprocessing.parent_process() is None:
        return "dramatiq did not start this process"
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        return "gevent is in use"
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        return "what was imported has started threads, with which a process cannot be forked safely"
    with suppress(OSError):
        if Path(f"/proc/self/task/{os.getpid()}/children").read_text().strip():
            return "what was imported has started processes, which would lose their parent"
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        return "SIGCHLD is ignored"
    return None


@contextmanager
def kept(tell: Callable[[str], object], left_running: Callable[[], bool]) -> Iterator[None]:
    """Fork: the child goes on into the ``with`` block as the worker process, the parent stays behind as its keeper.

    The keeper passes on the signals that it gets, and ends as the worker has ended: with the same status, or by the
    same signal. If it is killed itself, or its own parent is, the worker is told to stop. Signals to stop that come
    before the end of the block wait for it, so that those who handle them can be installed in there.

    Arguments:
      tell: Called in the keeper when the worker ended by itself, and not well; with JSON: its ``status``, or minus the
        signal, and ``peak``, its peak memory in MiB. With an empty string when it ended otherwise and left something
        running. May raise.
      left_running: Asked in the keeper, when the worker has ended, whether it did so amid a message.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
    parent = os.getppid()
    # What both have in common stays in common for longer if no collection writes to it. None before, either: it would
    # look through all that was imported, and find nothing.
    gc.freeze()
    keeper = os.getpid()
    worker = os.fork()
    if worker:
        _keep(worker, parent, tell, left_running)
    signal.pthread_sigmask(signal.SIG_SETMASK, {*before, *STOPS})
    _end_with(keeper)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


#: What the keeper of this process reads, and what is to be left once it has booted.
_begun: tuple[SharedStarts, ExitStack] | None = None


def begin(tell: Callable[[SharedStarts, str], object]) -> None:
    """Have this process kept from now on, if it can be: the keeper holds nothing of what is imported from here on.

    Arguments:
      tell: As :func:`kept` has it, with what the process ran.
    """
    global _begun
    if why_not_kept() is None:
        starts, stack = SharedStarts(), ExitStack()
        stack.enter_context(kept(partial(tell, starts), lambda: bool(starts.running())))
        _begun = starts, stack


def begun() -> tuple[SharedStarts, ExitStack] | None:
    """Return what :func:`begin` has begun in this process, for who boots it."""
    return _begun


def _keep(worker: int, parent: int, tell: Callable[[str], object], left_running: Callable[[], bool]) -> NoReturn:
    code = os.EX_SOFTWARE
    try:
        gc.disable()
        _end_with(parent)
        code, peak, told_to_stop = _watch(worker)
        if code and not told_to_stop:
            _say(worker, code, peak, tell)
        elif left_running():
            _try_to(partial(tell, ""))
        _end_as(code)
    finally:
        os._exit(code if code >= 0 else 128 - code)


def _watch(worker: int) -> tuple[int, int, bool]:
    """Wait for the end of ``worker``; return its status or minus the signal, its peak in MiB, and whether it was told.

    What comes while nobody waits, stays pending: all of it is blocked.
    """
    told_to_stop = False
    while True:
        pid, status, usage = os.wait4(worker, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024, told_to_stop
        number = signal.sigwaitinfo(HEARD).si_signo
        if number in PASSED_ON:
            told_to_stop = told_to_stop or number in STOPS
            os.kill(worker, number)


def _try_to(tell: Callable[[], object]) -> None:
    def try_to_tell() -> None:
        with suppress(Exception):
            tell()

    telling = threading.Thread(target=try_to_tell, name="tell", daemon=True)
    telling.start()
    telling.join(TELL_WITHIN)


def _say(worker: int, code: int, peak: int, tell: Callable[[str], object]) -> None:
    _try_to(partial(tell, json.dumps({"status": code, "peak": peak})))
    with suppress(Exception):
        # Only now: until then it need not hold them.
        from loguru import logger

        from middleware.crash_evidence import how_it_ended

        logger.critical(
            "worker process {}, kept by {}, {}; peak memory {} MiB", worker, os.getpid(), how_it_ended(code), peak
        )


def _end_as(code: int) -> None:
    """End by the signal that ended the worker, if one did, so that Dramatiq's main process sees the same."""
    if code < 0:
        # One core is enough.
        _prctl(_PR_SET_DUMPABLE, 0)
        with suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)


def _end_with(parent: int) -> None:
    """Have this process be told to stop when its parent is no more."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _prctl(option: int, value: int) -> None:
    with suppress(OSError, AttributeError):
        # Without it a worker still looks every second whether its parent is there: middleware.supervision.
        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))
