"""The message for which the code at hand runs.

Bound by middleware; seen wherever the tenant is, see :mod:`db.tenancy`.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from db.open_transaction import OpenTransaction


@dataclass(slots=True, eq=False)
class Execution:
    """One execution of a message; a retry or a redelivery is another, with the same ``message_id``.

    Attributes:
      message_id: Dramatiq's.
      asked_in: The transaction in which it called ``once()`` without a key.
    """

    message_id: str
    asked_in: OpenTransaction | None = None


_current: ContextVar[Execution | None] = ContextVar("dramaturg_execution", default=None)


def bind(execution: Execution | None) -> None:
    """Bind ``execution`` until the next call; for hooks, which cannot wrap what they surround in a ``with`` block."""
    _current.set(execution)


def current_execution() -> Execution | None:
    """Return the execution at hand, or ``None`` outside of a job."""
    return _current.get()
