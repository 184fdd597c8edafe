"""A pool of connections to Redis from which one that was just used is had at once.

redis-py's own takes two locks and four calls of the kernel for each command: a third of what that costs its sender.
"""

from __future__ import annotations

import os
from typing import Any

import redis

from middleware.sending import is_idle


class QuickPool(redis.ConnectionPool):
    """Keeps connections that were given back at hand, without telling redis-py's pool, to which they are in use: it can
    still close them all. Safe to use after a fork, and from any thread.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Adding to its end and taking from there need no lock.
        self._at_hand: list[Any] = []
        self._process = os.getpid()

    def make_connection(self) -> Any:
        """Return one that is not open yet."""
        connection: Any = super().make_connection()
        # Redis-py would ask whether it is well first of all. What opens it says that as well, and as soon.
        # Its first answer sets when to ask.
        connection.next_health_check = float("inf")
        return connection

    def get_connection(self, *args: Any, **options: Any) -> Any:
        """Return a connection on which nothing is left to be read.

        Raises:
          redis.RedisError: When there is none and none can be made.
        """
        if self._process != os.getpid():
            # They are the other process'.
            self._at_hand, self._process = [], os.getpid()
        try:
            connection = self._at_hand.pop()
        except IndexError:
            return super().get_connection(*args, **options)
        if _may_be_used(connection) and is_idle(connection._sock):
            return connection
        # It was closed, by either side, or says what nobody asked: redis-py knows what to do.
        super().release(connection)
        return super().get_connection(*args, **options)

    def release(self, connection: Any) -> None:
        """Take a connection back."""
        if connection.pid == os.getpid() and _may_be_used(connection):
            self._at_hand.append(connection)
        else:
            super().release(connection)


def _may_be_used(connection: Any) -> bool:
    # One that is to be opened again, elsewhere, since its server is being replaced: redis-py knows that from 7.0 on.
    return connection._sock is not None and not getattr(connection, "_should_reconnect", False)
