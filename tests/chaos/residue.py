"""What is left in Redis."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable

import redis

#: Groups are remembered for 30 days, and that a replay was sent; how many messages ended, for three hours; what
#: processes say of themselves, have counted, and is kept of those that have left; what share tenants have; and whose
#: turn it is to relay, for a second.
RESTS = (
    *("group.", "replay.", "ended.", "metrics.", "alive", "leases", "departed", "facts", "queues.", "grace"),
    *("shares.", "limits.", "weights.", "recounted.", "relay"),
)

#: Seconds for which messages may go on beyond the time that was given, and between two that end after it.
GRACE = 60.0
#: Messages that are looked for in every key.
LOOKED_FOR = 50


def kept(client: redis.Redis) -> dict[str, str]:
    """Return the message ids of all that is in Redis, and where; the digest that stands for it where it has none."""
    found: dict[str, str] = {}
    for key in client.scan_iter("dramatiq:*.msgs"):
        # Stock Dramatiq keeps what is dead there, which has had its ending.
        if key.endswith(b".XQ.msgs"):
            continue
        queue = key.removeprefix(b"dramatiq:").removesuffix(b".msgs")
        entries: dict[bytes, bytes] = client.hgetall(key)  # type: ignore[assignment]
        for redis_id, raw in entries.items():
            try:
                message_id = json.loads(raw)["message_id"]
            except (ValueError, TypeError, KeyError):
                message_id = hashlib.sha256(b"\0".join([queue, redis_id, raw])).hexdigest()
            # Each look goes through every key.
            where = _where(client, queue, redis_id) if len(found) < LOOKED_FOR else "(not looked for)"
            found[message_id] = f"{queue.decode()} {redis_id.decode()} in {where}"
    return found


def _where(client: redis.Redis, queue: bytes, redis_id: bytes) -> list[str]:
    found = []
    for key in client.scan_iter("dramatiq:*"):
        match client.type(key):
            case b"list":
                has = redis_id in client.lrange(key, 0, -1)
            case b"set":
                has = bool({redis_id, queue + b":" + redis_id} & client.smembers(key))
            case b"zset":
                has = client.zscore(key, redis_id) is not None
            case b"hash":
                has = client.hexists(key, queue + b":" + redis_id)
            case _:
                has = False
        if has:
            found.append(key.decode())
    return found


def residue(client: redis.Redis, rests: tuple[str, ...] = RESTS) -> Counter[str]:
    """Return what should not be in Redis once every message has ended: keys, and how many entries they have.

    Arguments:
      rests: How the names of keys begin that may stay.
    """
    sizes = {b"list": client.llen, b"set": client.scard, b"zset": client.zcard, b"hash": client.hlen}
    left: Counter[str] = Counter()
    for key in client.scan_iter("dramatiq:*"):
        name = key.decode().removeprefix("dramatiq:")
        if not name.removeprefix("__dramaturg__.").startswith(rests):
            size = sizes.get(client.type(key))  # type: ignore[arg-type]
            left[name] = int(size(key)) if size else 1
    return +left


def settle(look: Callable[[], Counter[str]], until: float) -> Counter[str]:
    """Wait until nothing is left, or until it does not get less any more, and return what is left.

    Arguments:
      look: Tells what is left: see :func:`residue`.
      until: On the monotonic clock; :data:`GRACE` after it got less the last time, where that is later.
    """
    least = sys.maxsize
    while (left := look()) and time.monotonic() < until:
        if left.total() < least:
            # A queue that got more than it can do is not stuck.
            least, until = left.total(), max(until, time.monotonic() + GRACE)
        time.sleep(0.5)
    return left
