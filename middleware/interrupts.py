"""Exceptions raised in other threads, and taken back."""

from __future__ import annotations

import ctypes
import threading


def take_back_interrupt() -> None:
    """Take back an exception that was raised in this thread and has not come yet: what it was for is over."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)
