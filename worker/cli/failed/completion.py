"""What a shell completes; it asks no server."""

from __future__ import annotations

from typing import Final

from db.errors import ConfigurationError
from db.failed import STATUSES
from middleware import classification
from worker.queues import Queue
from worker.settings import Settings

ERROR_TYPES: Final = sorted(
    {
        value
        for name, value in vars(classification).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("BY_")
    }
)


def complete_status(incomplete: str) -> list[str]:
    """Complete a status."""
    return [word for word in ("open", "all", *STATUSES) if word.startswith(incomplete)]


def complete_error_type(incomplete: str) -> list[str]:
    """Complete one of our error types; an application's own are typed in full."""
    return [word for word in ERROR_TYPES if word.startswith(incomplete)]


def complete_queue(incomplete: str) -> list[str]:
    """Complete a declared queue."""
    try:
        more = Settings.load().extra_queues
    except ConfigurationError:
        more = ()
    return [name for name in (*(queue.value for queue in Queue), *more) if name.startswith(incomplete)]
