"""How many messages of each queue ended in this process, and how, until its next sign of life takes that to Redis.

Counted here rather than in the step that ends a message, which costs each of them nothing so. What a process that is
killed had not told is lost, and a sign of life whose answer was lost tells its counts again: they are for a chart, and
nothing is decided by them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

#: How an execution ends. The first two are its message's end; ``RETRIED`` is not, because it is to run again.
SUCCEEDED, FAILED, RETRIED = "succeeded", "failed", "retried"
OUTCOMES: Final = (SUCCEEDED, FAILED, RETRIED)
#: The option of a message that is not counted: it only asks whether its queue is worked on.
UNCOUNTED: Final = "dramaturg_probe"


class Tally:
    """Counts by outcome and queue, named ``succeeded:attribution``; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def count(self, outcome: str, queue_name: str) -> None:
        """Count one more."""
        with self._lock:
            self._counts[f"{outcome}:{queue_name}"] += 1

    def take(self) -> Counter[str]:
        """Return what was counted since this was last asked."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts

    def put_back(self, counts: Mapping[str, int]) -> None:
        """Add counts that were taken and could not be told."""
        with self._lock:
            self._counts.update(counts)
