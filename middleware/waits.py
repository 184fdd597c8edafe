"""Waits in Redis that end when something comes, or before that when their process wants them to.

So a worker with nothing to do may wait long, and asks Redis seldom: what else it should see to ends its wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import redis
from loguru import logger

#: Seconds after which the end of a wait is told again that Redis may not have heard of yet, twice as long each time;
#: and how often it is told. Whom that does not reach is another server's.
AGAIN_AFTER, TRIES = 0.005, 10
#: Seconds by which a wait ends before its connection takes Redis for gone.
SOONER = 1.0


@dataclass(eq=False)
class _Wait:
    """One that is under way."""

    queue_name: str
    #: What its connection has in Redis; 0 where it cannot be ended.
    number: int
    #: Whether a thread sees to its end.
    is_told: bool = False


class Waits:
    """The waits of a process. Safe to use from any thread.

    Arguments:
      client: For waiting.
      other: For saying that a wait is to end.
    """

    def __init__(self, client: redis.Redis, other: redis.Redis) -> None:
        self._client = client
        self._other = other
        self._can_end: bool | None = None
        self._longest = 0.0
        self._lock = threading.Lock()
        self._under_way: set[_Wait] = set()
        # Queues of which the next wait is to end.
        self._told: set[str] = set()
        # By connection, its socket, which it may change, and the number of that.
        self._numbers: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()

    def longest(self) -> float:
        """Return for how many seconds one may wait at most, as it can be ended and its connection is that patient; 0
        where this user of Redis may not end it, which is asked once.

        Raises:
          redis.RedisError: When that cannot be asked.
        """
        return max(0.0, self._longest - SOONER) if self._ends() else 0.0

    def _ends(self) -> bool:
        if self._can_end is None:
            try:
                # Nobody's number.
                self._other.execute_command("CLIENT", "UNBLOCK", 0)
                with self._connection() as connection:
                    self._number_of(connection)
                    # As REDIS_URL says, or whoever made the client, or redis-py.
                    patience = connection.socket_timeout
                self._longest = float("inf") if patience is None else patience
                self._can_end = True
            except redis.ResponseError as e:
                self._cannot_end(e)
        return bool(self._can_end)

    def _cannot_end(self, why: redis.ResponseError) -> None:
        logger.info("waits in Redis are short, because it does not let this user end them: {}", why)
        self._can_end = False

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            yield connection
        except redis.ResponseError:
            raise
        except BaseException:
            # Whoever had it next would read what is answered to this, where that is on its way still.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def wait(self, queue_name: str, *words: str | float) -> Any:
        """Say a command that waits, and return what Redis answers: None where the wait is over, or was ended.

        Raises:
          redis.RedisError: For any error of Redis. It is not said again.
        """
        ends = self._ends()
        with self._connection() as connection:
            try:
                wait = _Wait(queue_name, self._number_of(connection) if ends else 0)
            except redis.ResponseError as e:
                # It might: the next is a short one.
                self._cannot_end(e)
                return None
            with self._lock:
                if queue_name in self._told:
                    self._told.discard(queue_name)
                    return None
                self._under_way.add(wait)

            def say() -> Any:
                connection.send_command(*words)
                return connection.read_response()

            try:
                return connection.retry.call_with_retry(say, lambda _: connection.disconnect())
            finally:
                with self._lock:
                    self._under_way.discard(wait)

    def _number_of(self, connection: Any) -> int:
        socket, number = self._numbers.get(connection, (None, 0))
        if socket is None or socket is not connection._sock:
            connection.send_command("CLIENT", "ID")
            number = int(connection.read_response())
            self._numbers[connection] = connection._sock, number
        return number

    def end(self, queue_name: str) -> None:
        """Have a queue's waits end in a moment, or its next one before it begins. Raises nothing."""
        with self._lock:
            waits = [wait for wait in self._under_way if wait.queue_name == queue_name]
            if not waits:
                self._told.add(queue_name)
            waits = [wait for wait in waits if wait.number and not wait.is_told]
            for wait in waits:
                wait.is_told = True
        for wait in waits:
            tells = threading.Thread(target=self._tell, args=(wait,), name="wake", daemon=True)
            try:
                tells.start()
            except RuntimeError:
                # Out of threads: the wait ends by itself, some seconds later.
                wait.is_told = False

    def _tell(self, wait: _Wait) -> None:
        try:
            # Where Redis is away, so is who waits there.
            with suppress(redis.RedisError, OSError):
                for n in range(TRIES):
                    if wait not in self._under_way or self._other.execute_command("CLIENT", "UNBLOCK", wait.number):
                        return
                    # It has ended by itself, or Redis is yet to read that it has begun.
                    time.sleep(AGAIN_AFTER * 2**n)
        finally:
            wait.is_told = False
