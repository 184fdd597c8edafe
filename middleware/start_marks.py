"""Notes in Redis which messages a process has begun to run, without waiting for Redis to say so."""

from __future__ import annotations

import threading
import time
from typing import Any

import redis
from loguru import logger

#: Seconds between two complaints that starts cannot be noted.
COMPLAIN_EVERY = 60.0


class StartMarks:
    """Sends on a connection of its own that answers nothing: what is sent arrives though the process dies next.

    A start that was not noted, because Redis is away, makes a crash uncounted, no more.

    Arguments:
      client: Whose kind of connection to open, when the first message starts.
      key: The hash of this process' started messages.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._key = key
        self._lock = threading.Lock()
        self._connection: Any = None
        self._complained = float("-inf")

    def mark(self, name: bytes) -> None:
        """Note that the message ``name`` begins now. Raises nothing."""
        now = int(time.time() * 1000)
        with self._lock:
            try:
                self._open()
                self._connection.send_packed_command(
                    self._connection.pack_command("HSET", self._key, name, now), check_health=False
                )
            except (redis.RedisError, OSError) as e:
                self.close()
                if time.monotonic() - self._complained > COMPLAIN_EVERY:
                    self._complained = time.monotonic()
                    logger.warning("starts of messages cannot be noted, so crashes are not counted: {}", e)

    def _open(self) -> None:
        # Nothing is ever to be read, so what can be is the end.
        if self._connection is not None and not self._connection.can_read(0):
            return
        self.close()
        connection = self._client.connection_pool.get_connection()
        try:
            connection.send_command("CLIENT", "REPLY", "OFF")
        except BaseException:
            connection.disconnect()
            self._client.connection_pool.release(connection)
            raise
        self._connection = connection

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._client.connection_pool.release(connection)
