"""Notes in Redis which messages a process has begun to run, and which have run and not ended yet, without waiting for
Redis to say so.

In a process that has a keeper what it begins is in memory that both share, and Redis is told soon; in others each start
is sent before the message runs.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import redis
from loguru import logger

from middleware.sending import is_quiet, send_at_once
from middleware.shared_starts import SharedStarts

#: Seconds between two looks whether an encrypted connection still stands, after which Redis is tried again at the
#: earliest, or as long as the last try took, and between two complaints that starts cannot be noted.
LOOK_EVERY, AGAIN_AFTER, COMPLAIN_EVERY = 1.0, 0.5, 60.0

#: Seconds after which a note should have arrived.
ON_ITS_WAY = 0.5


def _bulk(value: bytes) -> bytes:
    """Return ``value`` in Redis' protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(words), b"".join(map(_bulk, words)))


class _OfThread(threading.local):
    connection: Any = None
    looked: float = float("-inf")
    #: Of the connections that were not closed meanwhile; and held while something is sent.
    generation: int = 0
    sending: threading.Lock


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
        self._key = key.encode()
        self._shared: SharedStarts | None = None
        self._unsent: dict[bytes, int] = {}
        self._over: deque[bytes] = deque()
        self._local = _OfThread()
        self._open: list[tuple[Any, threading.Lock]] = []
        self._generation = 0
        self._running: dict[bytes, int] = {}
        self._complained = float("-inf")
        self._not_before = float("-inf")

    def share(self, starts: SharedStarts) -> None:
        """Note in ``starts``, too, from now on, and send only what :meth:`send` is called for."""
        self._shared = starts

    def mark(self, name: bytes) -> bool:
        """Note that the message ``name`` begins now; tell whether it is yet to be sent. Raises nothing."""
        now = time.time()
        milliseconds = int(now * 1000)
        self._running[name] = milliseconds
        if self._shared is not None and self._shared.note(name, milliseconds):
            self._unsent[name] = milliseconds
            return True
        self._try_to_send(self._begun({name: milliseconds}))
        return False

    def unsent(self) -> bool:
        """Tell whether something that runs, or does not any more, is yet to be sent."""
        return bool(self._unsent or self._over)

    def send(self) -> None:
        """Send what is yet to be sent of all that have not ended meanwhile. Raises nothing.

        To be called by one thread: what it has sent of a message stays in its order.
        """
        # First: what is in both runs again.
        over = [self._over.popleft() for _ in range(len(self._over))]
        found: dict[bytes, int] = {}
        for one in list(self._unsent):
            milliseconds = self._unsent.pop(one, None)
            if milliseconds is not None:
                found[one] = milliseconds
        if over or found:
            self._try_to_send(self._not_running(over) + self._begun(found))

    def over(self, name: bytes, began: float | None = None) -> bool:
        """Note that the message ``name`` has run, though it has not ended; tell whether that is yet to be sent. Raises
        nothing; otherwise as :meth:`forget`."""
        if not self._take_off(name, began):
            # Another delivery of it runs, or Redis was not told of this one.
            return False
        if self._shared is None:
            # On the connection on which this thread has sent the start.
            self._try_to_send(self._not_running([name]))
            return False
        self._over.append(name)
        return True

    def say(self, *words: bytes) -> None:
        """Send a command now, even if Redis was away a moment ago. Raises nothing."""
        self._try_to_send(_command(*words), insist=True)

    def _begun(self, starts: dict[bytes, int]) -> bytes:
        fields = (part for name, milliseconds in starts.items() for part in (name, b"%d" % milliseconds))
        return _command(b"HSET", self._key, *fields) if starts else b""

    def _not_running(self, names: list[bytes]) -> bytes:
        return _command(b"HDEL", self._key, *names) if names else b""

    def _try_to_send(self, command: bytes, *, insist: bool = False) -> None:
        now = time.time()
        if now < self._not_before and not insist:
            # Whoever starts a job should not wait for Redis each time.
            return
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
        local = self._connected()
        with local.sending:
            if local.generation != self._generation:
                raise redis.ConnectionError("closed meanwhile")
            if not send_at_once(getattr(local.connection, "_sock", None), command):
                local.connection.send_packed_command([command], check_health=False)

    def _connected(self) -> _OfThread:
        local, now = self._local, time.monotonic()
        if local.connection is not None:
            # Nothing is ever to be read, so what can be is the end.
            ended = local.generation != self._generation or not is_quiet(getattr(local.connection, "_sock", None))
            if not ended and now - local.looked > LOOK_EVERY:
                local.looked = now
                ended = local.connection.can_read(0)
            if ended:
                self._drop()
        if local.connection is None:
            # Not of the pool: it never answers again, and the pool would count it for ever among those it may make.
            pool = self._client.connection_pool
            connection = pool.connection_class(**pool.connection_kwargs)
            generation = self._generation
            connection.connect()
            connection.send_command("CLIENT", "REPLY", "OFF")
            local.connection, local.looked = connection, now
            local.generation, local.sending = generation, threading.Lock()
            self._open.append((connection, local.sending))
        return local

    def _drop(self) -> None:
        local = self._local
        connection, local.connection = local.connection, None
        if connection is not None:
            with suppress(ValueError):
                self._open.remove((connection, local.sending))
            connection.disconnect()

    def forget(self, name: bytes, began: float | None = None) -> None:
        """Note, here alone, that the message ``name`` has ended; called by the thread that ran it.

        Arguments:
          began: When it did, in seconds since 1970, if it has. Since then the lease on it may have been lost, and
            another delivery of it begun in this process: that one runs on.
        """
        self._take_off(name, began)

    def _take_off(self, name: bytes, began: float | None) -> bool:
        """Tell whether Redis was told of this delivery's start, or is in this moment."""
        marked = self._running.get(name)
        if marked is None:
            return False
        if self._shared is not None:
            self._shared.clear()
        if began is not None and marked > began * 1000:
            return False
        self._running.pop(name, None)
        return self._unsent.pop(name, None) is None

    def leave(self) -> None:
        """Note, here alone, that this thread runs nothing any more."""
        if self._shared is not None:
            self._shared.clear()

    def running(self) -> dict[bytes, int]:
        """Return what should have been noted by now, and when it began, in milliseconds since 1970."""
        latest = int((time.time() - ON_ITS_WAY) * 1000)
        return {name: began for name, began in list(self._running.items()) if began < latest}

    def close(self) -> None:
        """Close all connections; threads that go on open new ones."""
        self._generation += 1
        while self._open:
            connection, sending = self._open.pop()
            # Whoever sends ends with that, and nobody's bytes go to another socket that has its number.
            with suppress(OSError, TypeError):
                socket.socket.shutdown(connection._sock, socket.SHUT_RDWR)
            with sending:
                connection.disconnect()
