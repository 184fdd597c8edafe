"""Waits in Redis that end when something comes, or before that when their process wants them to.

So a worker with nothing to do may wait long, and asks Redis seldom: what else it should see to ends its wait.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import redis
from loguru import logger

#: Seconds after which the end of a wait is told again that Redis may not have heard of yet.
AGAIN_AFTER = 0.005


class Waits:
    """The waits of a process, of which each queue has one at a time. Safe to use from any thread.

    Arguments:
      client: For waiting.
      other: For saying that a wait is to end.
    """

    def __init__(self, client: redis.Redis, other: redis.Redis) -> None:
        self._client = client
        self._other = other
        self._can_end: bool | None = None
        self._lock = threading.Lock()
        # By queue, the number that its connection has in Redis; and which are told to end, and by a thread right now.
        self._under_way: dict[str, int] = {}
        self._told: set[str] = set()
        self._telling: set[str] = set()
        # By connection, its socket, which it may change, and the number of that.
        self._numbers: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()

    def can_end(self) -> bool:
        """Tell whether this user of Redis may end a wait, which is asked once.

        Raises:
          redis.RedisError: When that cannot be asked.
        """
        if self._can_end is None:
            try:
                # Nobody's number.
                self._other.execute_command("CLIENT", "UNBLOCK", 0)
                self._can_end = True
            except redis.ResponseError as e:
                logger.info("waits in Redis are short, because it does not let this user end them: {}", e)
                self._can_end = False
        return self._can_end

    def wait(self, queue_name: str, *words: str | float) -> Any:
        """Say a command that waits, and return what Redis answers: None where the wait is over, or was ended.

        Raises:
          redis.RedisError: For any error of Redis. It is not said again.
        """
        pool = self._client.connection_pool
        connection = pool.get_connection()
        try:
            number = self._number_of(connection) if self.can_end() else 0
            with self._lock:
                if queue_name in self._told:
                    self._told.discard(queue_name)
                    return None
                self._under_way[queue_name] = number

            def say() -> Any:
                connection.send_command(*words)
                return connection.read_response()

            try:
                return connection.retry.call_with_retry(say, lambda _: connection.disconnect())
            finally:
                with self._lock:
                    del self._under_way[queue_name]
                    self._told.discard(queue_name)
        except redis.ResponseError:
            raise
        except BaseException:
            # Whoever had it next would read what is answered to this, where that is on its way still.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _number_of(self, connection: Any) -> int:
        socket, number = self._numbers.get(connection, (None, 0))
        if socket is None or socket is not connection._sock:
            connection.send_command("CLIENT", "ID")
            number = int(connection.read_response())
            self._numbers[connection] = connection._sock, number
        return number

    def end(self, queue_name: str) -> None:
        """Have a queue's wait end in a moment, or its next one before it begins. Raises nothing."""
        with self._lock:
            self._told.add(queue_name)
            number = self._under_way.get(queue_name)
            if not number or queue_name in self._telling:
                return
            self._telling.add(queue_name)
        tells = threading.Thread(target=self._tell, args=(queue_name, number), name="wake", daemon=True)
        try:
            tells.start()
        except RuntimeError:
            # Out of threads: the wait ends by itself, some seconds later.
            with self._lock:
                self._telling.discard(queue_name)

    def _tell(self, queue_name: str, number: int) -> None:
        try:
            # Where Redis is away, so is who waits there.
            with suppress(redis.RedisError, OSError):
                while self._is_to_end(queue_name, number):
                    if self._other.execute_command("CLIENT", "UNBLOCK", number):
                        return
                    # It has ended by itself, or Redis is yet to read that it has begun.
                    time.sleep(AGAIN_AFTER)
        finally:
            with self._lock:
                self._telling.discard(queue_name)

    def _is_to_end(self, queue_name: str, number: int) -> bool:
        with self._lock:
            return queue_name in self._told and self._under_way.get(queue_name) == number
