"""Exceptions raised in other threads, and taken back.

None comes while its thread imports a module: what has been imported of it would stay behind, and of the modules that it
imports, and whoever imports it next would not find its way in that, until the process ends.
"""

from __future__ import annotations

import ctypes
import sys
import threading

from dramatiq.middleware.threading import raise_thread_exception

#: Where the code of Python's import statement says that it is from.
_IMPORTING = "<frozen importlib._bootstrap>"


def is_importing(thread_id: int) -> bool:
    """Tell whether a thread imports a module now."""
    frame = sys._current_frames().get(thread_id)
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def interrupt(thread_id: int, exception: type[BaseException]) -> bool:
    """Raise an exception in a thread, unless it imports a module; tell whether that was done."""
    if is_importing(thread_id):
        return False
    raise_thread_exception(thread_id, exception)
    if is_importing(thread_id):
        # It ran between the look and this. If it did not, it hears of it before it imports anything.
        take_back_interrupt(thread_id)
        return False
    return True


def take_back_interrupt(thread_id: int | None = None) -> None:
    """Take back an exception that was raised in a thread, by default this one, and has not come yet: what it was for is
    over."""
    ident = threading.get_ident() if thread_id is None else thread_id
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), None)
