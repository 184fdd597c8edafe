"""Notes in Redis which messages a process has begun to run, without waiting for Redis to say so."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import redis
from loguru import logger

from middleware.sending import is_quiet, send_at_once

#: Seconds between two looks whether an encrypted connection still stands, after which Redis is tried again at the
#: earliest, or as long as the last try took, and between two complaints that starts cannot be noted.
LOOK_EVERY, AGAIN_AFTER, COMPLAIN_EVERY = 1.0, 0.5, 60.0

#: Seconds after which a note should have arrived.
ON_ITS_WAY = 0.5


def _bulk(value: bytes) -> bytes:
    """Return ``value`` in Redis' protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return b"$%d\r\n%b\r\n" % (len(value), value)


class _OfThread(threading.local):
    connection: Any = None
    looked: float = float("-inf")


class StartMarks:
    """Sends on connections that answer nothing, one for each thread, so that none waits for another's: what is sent
    arrives though the process dies next.

    Nor do they say that Redis was full, or not the server any more: what was not noted is told to Redis with the next
    sign of life, and a crash before that is not counted.

    Arguments:
      client: Whose kind of connection to open, when a thread's first message starts.
      key: The hash of this process' started messages.
    """

    def __init__(self, client: redis.Redis, key: str) -> None:
        self._client = client
        self._head = b"*4\r\n$4\r\nHSET\r\n" + _bulk(key.encode())
        self._local = _OfThread()
        self._open: list[Any] = []
        self._running: dict[bytes, int] = {}
        self._complained = float("-inf")
        self._not_before = float("-inf")

    def mark(self, name: bytes) -> None:
        """Note that the message ``name`` begins now. Raises nothing."""
        now = time.time()
        milliseconds = int(now * 1000)
        self._running[name] = milliseconds
        if now < self._not_before:
            # Whoever starts a job should not wait for Redis each time.
            return
        command = self._head + _bulk(name) + _bulk(b"%d" % milliseconds)
        try:
            try:
                self._send(command)
            except (redis.RedisError, OSError):
                # It may be this connection alone: a crash should not go uncounted for that.
                self._drop()
                self._send(command)
        except (redis.RedisError, OSError) as e:
            self._drop()
            took = time.time() - now
            self._not_before = now + took + max(AGAIN_AFTER, took)
            if now - self._complained > COMPLAIN_EVERY:
                self._complained = now
                logger.warning("starts of messages cannot be noted, so crashes are not counted: {}", e)

    def _send(self, command: bytes) -> None:
        connection = self._connection()
        if not send_at_once(getattr(connection, "_sock", None), command):
            connection.send_packed_command([command], check_health=False)

    def _connection(self) -> Any:
        local, now = self._local, time.monotonic()
        if local.connection is not None:
            # Nothing is ever to be read, so what can be is the end.
            ended = not is_quiet(getattr(local.connection, "_sock", None))
            if not ended and now - local.looked > LOOK_EVERY:
                local.looked = now
                ended = local.connection.can_read(0)
            if ended:
                self._drop()
        if local.connection is None:
            # Not of the pool: it never answers again, and the pool would count it for ever among those it may make.
            pool = self._client.connection_pool
            connection = pool.connection_class(**pool.connection_kwargs)
            connection.connect()
            connection.send_command("CLIENT", "REPLY", "OFF")
            local.connection, local.looked = connection, now
            self._open.append(connection)
        return local.connection

    def _drop(self) -> None:
        connection, self._local.connection = self._local.connection, None
        if connection is not None:
            with suppress(ValueError):
                self._open.remove(connection)
            connection.disconnect()

    def forget(self, name: bytes) -> None:
        """Note, here alone, that the message ``name`` has ended."""
        self._running.pop(name, None)

    def running(self) -> dict[bytes, int]:
        """Return what should have been noted by now, and when it began, in milliseconds since 1970."""
        latest = int((time.time() - ON_ITS_WAY) * 1000)
        return {name: began for name, began in list(self._running.items()) if began < latest}

    def close(self) -> None:
        """Close all connections; threads that go on open new ones."""
        while self._open:
            self._open.pop().disconnect()
        self._local = _OfThread()
