"""Failures that wait in Redis because Postgres is away. They outlive the process, and any process may record them."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Event

from middleware.lua_scripts import Scripts

#: Failures that may wait there. With a traceback of the usual length they take about 30 MB.
SPOOL_LIMIT = 10_000
#: Milliseconds for which one process has the spool to itself after each look into it.
TO_ITSELF = 15_000


class Spool:
    """The spool of one namespace.

    Arguments:
      run: The scripts.
      broker_id: Who looks into it.
      limit: See :data:`SPOOL_LIMIT`. What puts failures in is the script that ends their delivery.

    Attributes:
      size: How many waited when Redis was last asked, a few seconds ago.
      in_use: Set while there are any, and once by :meth:`wake`.

    Raises (from every method that asks Redis):
      ConnectionClosed: For any error of Redis.
    """

    def __init__(self, run: Scripts, broker_id: str, *, limit: int = SPOOL_LIMIT) -> None:
        self._run = run
        self._broker_id = broker_id
        self.limit = limit
        self.size = 0
        self.in_use = Event()

    def holds(self, size: int) -> None:
        """Note how many wait."""
        self.size = size
        if size:
            self.in_use.set()
        else:
            self.in_use.clear()

    def wake(self) -> None:
        """Let who waits for failures look around at once: its process is about to stop."""
        # The next sign of life says again how many there are.
        self.in_use.set()

    def take(self, count: int) -> dict[bytes, bytes]:
        """Return up to ``count`` failures by name; they stay in the spool. Nothing while another process drains it."""
        found: list[bytes] = self._run("spool_take", self._broker_id, TO_ITSELF, count)
        return dict(zip(found[::2], found[1::2], strict=True))

    def remove(self, names: Iterable[bytes]) -> int:
        """Remove failures that are recorded, and return how many are left."""
        left = int(self._run("spool_remove", *names))
        self.holds(left)
        return left

    def leave(self) -> None:
        """Let another process drain it."""
        self._run("spool_leave", self._broker_id)
