"""How often a message waits its turn, and how often it fails, before it is a failure.

Dramatiq counts both as retries. A burst of a thousand messages on a limit of twenty a minute waits for the best part of
an hour, a few minutes at a time, and none of it has failed: so waits are counted by themselves, in an option that
travels with the message, and the rest is what failed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from dramatiq.middleware import CurrentMessage

from worker.explain.errors import LimitReached

#: Waits before a message gives up. The longest are 2.5 to 5 minutes, so that is a day.
WAITS_AT_MOST: Final = 400
#: Other failures that are tried again: with the default back-off, half an hour of them.
FAILURES_AT_MOST: Final = 6
#: Milliseconds, before jitter.
FIRST_WAIT: Final = 15_000
LONGEST_WAIT: Final = 300_000

OPTION: Final = "dramaturg_waits"
_NOTE: Final = "dramaturg_waits"


def wait_for(waits: int, uniform: Callable[[float, float], float] = random.uniform) -> int:
    """Return for how many milliseconds a message waits that has done so ``waits`` times: twice as long each time, up to
    :data:`LONGEST_WAIT`, less up to a half of it, so that those of a burst do not come back together."""
    longest = min(FIRST_WAIT * 2 ** min(waits, 16), LONGEST_WAIT)
    return int(longest * uniform(0.5, 1))


@contextmanager
def counting_waits() -> Iterator[int]:
    """Give how often the message at hand has waited, count this execution if it does, and tell :func:`retry_when`."""
    message = CurrentMessage.get_current_message()
    options: dict[str, Any] = {} if message is None else message.options
    waits = _waits(options)
    try:
        yield waits
    except BaseException as e:
        if isinstance(e, LimitReached):
            options[OPTION] = waits + 1
        with suppress(AttributeError):
            setattr(e, _NOTE, waits)
        raise


def retry_when(retries: int, error: BaseException) -> bool:
    """Tell whether a message is tried again; for the actor option of that name, which has the last word.

    Arguments:
      retries: How often it was tried again before, waits included.
      error: What it raised now.
    """
    waits = getattr(error, _NOTE, 0)
    if isinstance(error, LimitReached):
        return bool(waits < WAITS_AT_MOST)
    return bool(retries - waits < FAILURES_AT_MOST)


def _waits(options: dict[str, Any]) -> int:
    """Return what the options say; whoever sends a message anew leaves ``retries`` out, and so begins with none."""
    waits, retries = options.get(OPTION), options.get("retries", 0)
    return min(waits, retries) if type(waits) is int and type(retries) is int and waits > 0 else 0
