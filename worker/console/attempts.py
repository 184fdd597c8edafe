"""Counts wrong tokens, so that nobody guesses on; and keeps which sessions were ended. In Redis, for all processes; in
memory while that is away."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from typing import Any, Final

import redis
from fastapi import Request

#: Wrong tokens of one address within a minute, from which on none of its is looked at.
AT_MOST: Final = 10
WITHIN: Final = 60
#: Addresses, and sessions, that are kept in memory.
_KEPT: Final = 10_000


class Attempts:
    """Counts them by address.

    Arguments:
      client: Of Redis, with a short time to answer.
      namespace: Of its keys.
      behind_proxy: Whether requests come from a host's router, which says whom it got them from.
    """

    def __init__(self, client: redis.Redis, namespace: str, *, behind_proxy: bool = False) -> None:
        self._client = client
        self._key = f"{namespace}:__dramaturg__.console."
        self._behind_proxy = behind_proxy
        self._here: dict[str, tuple[int, float]] = {}
        self._ended: dict[str, float] = {}

    def address(self, request: Request) -> str:
        """Return whom a request came from: the last that the router in front of us adds, for the rest anybody can
        say."""
        host = request.client.host if request.client else "?"
        if self._behind_proxy:
            # Some routers add to the line that there is, and some add a line of their own after it.
            last = ",".join(request.headers.getlist("x-forwarded-for")).rpartition(",")[2].strip()
            host = last or host
        return _network(host)

    def too_many(self, address: str) -> bool:
        """Tell whether an address has guessed too often."""
        key = self._of(address)
        count, until = self._here.get(key, (0, 0.0))
        if count >= AT_MOST and until > time.monotonic():
            return True
        found = self._ask(lambda: self._client.get(key))
        return found is not None and int(found) >= AT_MOST

    def failed(self, address: str) -> None:
        """Count a wrong one."""
        key, now = self._of(address), time.monotonic()
        count, until = self._here.get(key, (0, 0.0))
        self._here[key] = (count + 1, until) if until > now else (1, now + WITHIN)
        _shrink(self._here)

        def count_it() -> None:
            with self._client.pipeline() as pipe:
                pipe.incr(key)
                pipe.expire(key, WITHIN, nx=True)
                pipe.execute()

        self._ask(count_it)

    def end(self, session_id: str, seconds: int) -> None:
        """Keep that a session was ended."""
        self._ended[session_id] = time.monotonic() + seconds
        _shrink(self._ended)
        self._ask(lambda: self._client.set(self._of_session(session_id), 1, ex=seconds))

    def is_ended(self, session_id: str) -> bool:
        """Tell whether it was; while Redis is away those are known that were ended here."""
        if session_id in self._ended:
            return True
        return bool(self._ask(lambda: self._client.exists(self._of_session(session_id))))

    def _of(self, address: str) -> str:
        return f"{self._key}wrong.{hashlib.sha256(address.encode()).hexdigest()[:32]}"

    def _of_session(self, session_id: str) -> str:
        return f"{self._key}ended.{session_id}"

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (redis.RedisError, OSError):
            # Whoever looks why Redis is away must get in.
            return None


def _network(host: str) -> str:
    """Return what somebody has an address of: of IPv6 he has all that begin with the same 64 bits."""
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


def _shrink(kept: dict[str, Any]) -> None:
    """Forget what was kept first."""
    while len(kept) > _KEPT:
        kept.pop(next(iter(kept)), None)
