"""How many calls may be made within a minute: by each tenant, and by all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from dramatiq import Broker
from dramatiq.rate_limits import RateLimiterBackend, WindowRateLimiter
from dramatiq.rate_limits.backends import RedisBackend, StubBackend

from worker.explain.errors import LimitReached
from worker.explain.patience import wait_for

#: Seconds.
WINDOW: Final = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """Dramatiq's limiters, which all processes on one Redis share.

    Arguments:
      backend: Where calls are counted.
      namespace: Prefix of keys.
      overall: Calls within a minute of all tenants.
      tenant: Calls within a minute of each.
    """

    backend: RateLimiterBackend
    namespace: str
    overall: int
    tenant: int

    def take(self, tenant_id: UUID, waits: int) -> None:
        """Count a call of ``tenant_id`` that is about to be made.

        The tenant's own limit comes first: one that sends too much is stopped there, and takes nothing of what all
        share. What it has taken of its own is gone if then the other is reached.

        Arguments:
          tenant_id: Whose.
          waits: How often this one has waited before.

        Raises:
          LimitReached: When there were too many, with the milliseconds to wait.
          redis.RedisError: When Redis cannot be asked.
        """
        own = f"{self.namespace}:__dramaturg__.llm_rate.{tenant_id}"
        for key, limit, whose in (
            (own, self.tenant, "LLM_TENANT_RATE"),
            (f"{self.namespace}:__dramaturg__.llm_rate", self.overall, "LLM_RATE"),
        ):
            with WindowRateLimiter(self.backend, key, limit=limit, window=WINDOW).acquire(raise_on_failure=False) as ok:
                if not ok:
                    raise LimitReached(f"{whose}: {limit} calls within a minute were reached", delay=wait_for(waits))


def limits_of(broker: Broker, *, overall: int, tenant: int) -> Limits:
    """Return the limiters on ``broker``, under its namespace."""
    return Limits(_backend(broker), getattr(broker, "namespace", "dramatiq"), overall, tenant)


@lru_cache(maxsize=8)
def _backend(broker: Broker) -> RateLimiterBackend:
    """Return where calls are counted: in the broker's Redis, or, in tests without one, in memory."""
    client: Any = getattr(broker, "client", None)
    return StubBackend() if client is None else RedisBackend(client=client)
