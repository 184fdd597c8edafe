"""All that is checked in Redis."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import redis

from worker.check.clock import check_clock
from worker.check.consumers import judge_queues, read_queues
from worker.check.findings import Finding, error
from worker.check.guard import Guard, Task
from worker.check.redis_rights import check_rights
from worker.check.redis_server import address, judge_server, read_config
from worker.redis_client import make_redis
from worker.settings import Settings

#: Seconds to wait for a connection, and for each answer.
TIMEOUT = 5.0


class RedisDatabase:
    """The Redis of ``settings``."""

    def __init__(self, settings: Settings, guard: Guard) -> None:
        self._settings = settings.model_copy(update={"redis_timeout": min(TIMEOUT, settings.redis_timeout)})
        self._guard = guard
        self._named = f"REDIS_URL ({address(settings.redis_url)})"
        self._answered = False

    def server_task(self) -> Iterator[Task]:
        """Give a task for the server, unless there is none."""
        if not self._settings.stub:
            yield self._task("redis.reachable", self._ask)

    def queues_task(self, declared: Collection[str]) -> Iterator[Task]:
        """Give a task for the queues, if the server answered; after :meth:`server_task`.

        Arguments:
          declared: The queues that messages may be sent to.
        """

        def check(client: redis.Redis) -> Iterator[Finding]:
            yield from judge_queues(read_queues(client, self._settings.redis_namespace, declared), declared)

        if self._answered:
            yield self._task("queues", check)

    def _task(self, name: str, check: Callable[[redis.Redis], Iterable[Finding]]) -> Task:
        advice = (
            "See that the server runs, and that REDIS_URL is right: its host, port, user and password, and rediss:// "
            "where it speaks TLS."
        )

        def run() -> list[Finding]:
            def connected() -> Iterator[Finding]:
                with make_redis(self._settings) as client:
                    yield from check(client)

            return self._guard.run(name, connected, about=self._named, advice=advice)

        late = error(name, f"{self._named}: no answer within {2 * TIMEOUT:g} seconds", advice)
        return Task(run, 2 * TIMEOUT, late)

    def _ask(self, client: redis.Redis) -> Iterator[Finding]:
        client.ping()
        self._answered = True
        run, namespace = self._guard.run, self._settings.redis_namespace
        yield from run("redis.server", lambda: self._judge(client))
        yield from run("redis.rights", lambda: check_rights(client, namespace))
        yield from run("clock", lambda: check_clock("Redis", lambda: _time(client)))

    def _judge(self, client: redis.Redis) -> Iterator[Finding]:
        try:
            info: Any = client.info()
        except redis.ResponseError:
            # Not allowed; what is missing is then named.
            info = {}
        yield from judge_server(info, read_config(client), address(self._settings.redis_url))


def _time(client: redis.Redis) -> float:
    answer: Any = client.time()
    seconds, micros = answer
    return float(seconds + micros / 1e6)
