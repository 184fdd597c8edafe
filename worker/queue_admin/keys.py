"""What the names of keys in Redis tell: queues, and which processes hold messages of them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from dramatiq.errors import ConnectionClosed

#: Seconds that looking through the keys may take; a database may be shared with many others.
LOOK_FOR = 2.0

#: Broker ids are UUIDs; what follows in a key is a queue.
_HELD = re.compile(r"(__acks__|__dramaturg__\.taking)\.([0-9a-f-]{36})\.(.+)")


@dataclass(frozen=True, slots=True)
class Keys:
    """What the names of keys tell."""

    #: The names of all keys, without the namespace.
    names: frozenset[str]
    #: Whether all were looked at.
    complete: bool

    def queues(self) -> set[str]:
        """Return the queues that have messages, if only delayed ones. What stock Dramatiq keeps of its dead is none."""
        queues = {name.removesuffix(".msgs").removesuffix(".DQ") for name in self.names if name.endswith(".msgs")}
        return {queue for queue in queues if not queue.endswith(".XQ")}

    def holders(self) -> dict[str, set[str]]:
        """Return the queues, delay queues counted as theirs, of which each broker holds messages, by broker id."""
        found: dict[str, set[str]] = {}
        for match in filter(None, map(_HELD.fullmatch, self.names)):
            found.setdefault(match[2], set()).add(match[3].removesuffix(".DQ"))
        return found

    def acks(self) -> list[tuple[str, str, str]]:
        """Return the keys of what brokers have fetched and not ended, each with the broker's id and the queue."""
        found = filter(None, map(_HELD.fullmatch, self.names))
        return [(match[0], match[2], match[3]) for match in found if match[1] == "__acks__"]


def read_keys(client: redis.Redis, namespace: str) -> Keys:
    """Return the names of our keys; as many as can be looked at within :data:`LOOK_FOR`."""
    pattern = re.sub(r"([\\*?\[\]^-])", r"\\\1", namespace) + ":*"
    found, cursor, end = set[str](), 0, time.monotonic() + LOOK_FOR
    while time.monotonic() < end:
        cursor, keys = answer(client.scan(cursor, match=pattern, count=5_000))
        found |= {key.decode("utf-8", "replace").removeprefix(f"{namespace}:") for key in keys}
        if cursor == 0:
            return Keys(frozenset(found), complete=True)
    return Keys(frozenset(found), complete=False)


def answer(value: Any) -> Any:
    """Return ``value``: redis-py types every answer as that of its asynchronous client, too."""
    return value


@contextmanager
def asking() -> Iterator[None]:
    """Raise what scripts raise, too, for every error of Redis in the ``with`` block."""
    try:
        yield
    except (redis.RedisError, OSError) as e:
        raise ConnectionClosed(f"Redis: {e}") from e
