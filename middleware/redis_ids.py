"""The ids under which Redis keeps messages, which say whose they are, so that taking turns needs no look into them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from db.tenancy import is_canonical

#: So many are drawn at once where many are needed.
_DRAWN = 64


def new_id() -> str:
    """Return what no other message has: 32 hexadecimal digits, in a fifth of the time that ``uuid4()`` takes."""
    return os.urandom(16).hex()


def new_ids() -> Iterator[str]:
    """Give as many as are wanted, in less. To be used up where it was made: another process would draw the same."""
    while True:
        digits = os.urandom(16 * _DRAWN).hex()
        for at in range(0, 32 * _DRAWN, 32):
            yield digits[at : at + 32]


def redis_id_of(unique: str, options: Mapping[str, Any]) -> str:
    """Return the id of a message with ``options``: ``TENANT:unique``, with the tenant's 32 hexadecimal digits, or ``-``
    for nobody's. ``unique`` alone where it names a tenant in another way, as stock producers' ids do all; those are
    looked into.
    """
    tenant = options.get("tenant_id")
    if tenant is None:
        return f"-:{unique}"
    if isinstance(tenant, str):
        return f"{_prefix_of(tenant)}{unique}"
    return unique


@lru_cache(maxsize=1_024)
def _prefix_of(tenant: str) -> str:
    return f"{tenant.replace('-', '')}:" if is_canonical(tenant) else ""
