"""How long the code at hand may still run, for statements that Python cannot interrupt."""

from __future__ import annotations

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("dramaturg_deadline", default=None)
_job: ContextVar[object | None] = ContextVar("dramaturg_job", default=None)


def set_deadline(seconds: float | None, *, job: object | None = None) -> None:
    """Allow this context to run ``seconds`` longer; ``None`` removes the limit.

    Arguments:
      seconds: From now.
      job: What runs here, for :func:`db.session.running_statements`.
    """
    _deadline.set(None if seconds is None else time.monotonic() + seconds)
    _job.set(job)


def job() -> object | None:
    """Return what was named as running in this context."""
    return _job.get()


def deadline() -> float | None:
    """Return the end of the allowance on :func:`time.monotonic`'s clock, or ``None`` where there is no limit."""
    return _deadline.get()


def remaining_ms() -> int | None:
    """Return what is left in milliseconds, or ``None`` where there is no limit.

    Never less than 1: Postgres takes a ``statement_timeout`` of 0 as "no limit". Nor more than its integer holds.
    """
    end = _deadline.get()
    return None if end is None else min(max(1, int((end - time.monotonic()) * 1000)), 2**31 - 1)
