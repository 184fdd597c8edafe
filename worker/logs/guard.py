"""Keeps what cannot be formatted from failing whoever logs it.

Loguru formats messages before it has handed them to anybody who could catch what an argument's ``__str__`` raises.
"""

from __future__ import annotations

import inspect
import threading
from typing import Any, Final

from dramatiq.threading import Interrupt
from loguru import logger

#: What we know of loguru's inside. Where it is otherwise, loguru stays as it is.
_PARAMETERS: Final = ["self", "level", "from_decorator", "options", "message", "args", "kwargs"]
_GUARDED: Final = "_dramaturg_guarded"


def may_be_swallowed(error: BaseException) -> bool:
    """Tell whether ``error`` comes from what is logged, and is nothing that this thread was to be interrupted with."""
    if isinstance(error, Exception | SystemExit):
        return True
    # Signals' handlers raise in the main thread, Dramatiq in any.
    return threading.current_thread() is not threading.main_thread() and not isinstance(error, Interrupt)


def guard_loguru() -> bool:
    """Let loguru's methods raise nothing in this process, and tell whether they are so guarded."""
    kind: Any = type(logger)
    original = kind._log
    if getattr(original, _GUARDED, False):
        return True
    if list(inspect.signature(original).parameters) != _PARAMETERS:
        return False

    def _log(self: Any, level: Any, from_decorator: bool, options: Any, message: Any, args: Any, kwargs: Any) -> None:
        # One frame more stands between whoever logs and loguru.
        options = (options[0], options[1] + 1, *options[2:])
        try:
            original(self, level, from_decorator, options, message, args, kwargs)
        except BaseException as e:
            if not may_be_swallowed(e):
                raise
            try:
                shown = message if isinstance(message, str) else type(message).__name__
                text = f"{shown} (what belongs in here cannot be formatted: {type(e).__name__})"
                original(self, level, from_decorator, options, text, (), {})
            except Exception:  # noqa: BLE001, S110 - no such level, or whatever else: there is nothing to say it with
                pass

    setattr(_log, _GUARDED, True)
    kind._log = _log
    return True
