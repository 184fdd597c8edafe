"""An application whose jobs succeed, or fail until somebody mends them."""

from __future__ import annotations

from worker.broker import broker
from worker.routing import actor, register

register("tests.e2e.measured", "attribution")

#: A set in Redis.
MENDED = "mended"


@actor(tenant_scoped=False)
def good(n: int) -> None:
    """Succeed."""


@actor(tenant_scoped=False, max_retries=2, min_backoff=1, max_backoff=1)
def bad(what: str) -> None:
    """Fail until it is mended."""
    if not broker.client.sismember(MENDED, what):  # type: ignore[attr-defined]
        raise ValueError(what)
