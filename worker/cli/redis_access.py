"""Redis, for commands that ask it alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from dramatiq.errors import ConnectionClosed

from worker.cli.common import explained, fail
from worker.redis_client import make_redis
from worker.settings import Settings


@contextmanager
def redis_access(what: str) -> Iterator[tuple[redis.Redis, Settings]]:
    """Give a client and the settings; what a user can mend ends the command with one line and status 2.

    Arguments:
      what: What a stub has none of: ``queues to look at``.
    """
    with explained():
        settings = Settings.load()
        if settings.stub:
            fail(f"REDIS_URL: stub:// has no {what}", 2)
        try:
            with make_redis(settings) as client:
                yield client, settings
        except ConnectionClosed as e:
            fail(f"Redis cannot be asked: {str(e).removeprefix('Redis: ')}", 2)
