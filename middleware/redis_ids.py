"""The ids under which Redis keeps messages, which say whose they are, so that taking turns needs no look into them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def redis_id_of(unique: str, options: Mapping[str, Any]) -> str:
    """Return the id of a message with ``options``: ``TENANT:unique``, with the tenant's 32 hexadecimal digits, or ``-``
    for nobody's. ``unique`` alone where it names a tenant in another way, as stock producers' ids do all; those are
    looked into.
    """
    tenant = options.get("tenant_id")
    if tenant is None:
        return f"-:{unique}"
    if isinstance(tenant, str) and _UUID.fullmatch(tenant):
        return f"{tenant.replace('-', '')}:{unique}"
    return unique
