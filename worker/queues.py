"""The queues of the topology; an application adds its own with ``EXTRA_QUEUES`` or :func:`worker.routing.register`."""

from __future__ import annotations

import re
from enum import StrEnum

#: What Dramatiq accepts, and 100 characters at most, as ``worker_failed_jobs.queue`` holds.
_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9._-]{0,99}")


class Queue(StrEnum):
    """The four kinds of work. Members are strings: ``Queue.LLM == "llm"``."""

    ATTRIBUTION = "attribution"
    LLM = "llm"
    MAINTENANCE = "maintenance"
    HOUSEKEEPING = "housekeeping"

    @property
    def routing_key(self) -> str:
        """The key under which the Celery topology routed this queue's tasks, such as ``attribution.task``."""
        return f"{self.value}.task"


def check_queue_name(name: str) -> str:
    """Return ``name``.

    Raises:
      ValueError: When Dramatiq would not take it as a queue, or takes its ending for a delayed (``.DQ``) or
        dead-letter (``.XQ``) queue's.
    """
    if not _NAME.fullmatch(name) or name.endswith((".DQ", ".XQ")):
        raise ValueError(
            f"{name!r} is not a queue name: a letter or underscore, then letters, digits, '.', '_' or '-', "
            "at most 100, not ending in .DQ or .XQ"
        )
    return name
