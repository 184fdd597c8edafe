"""Redis ids say whose a message is."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from middleware.redis_ids import redis_id_of

TENANT = UUID("6f1c7a52-6c0e-4a43-9d2b-1f0f8f1f7b11")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tenant_id": str(TENANT)}, f"{TENANT.hex}:one"),
        ({}, "-:one"),
        ({"tenant_id": None}, "-:one"),
        # Whatever is said in another way is found out by looking into the message.
        ({"tenant_id": str(TENANT).upper()}, "one"),
        ({"tenant_id": f"urn:uuid:{TENANT}"}, "one"),
        ({"tenant_id": "no tenant: \ud800"}, "one"),
        ({"tenant_id": 5}, "one"),
    ],
)
def test_it_is_the_tenants(options: dict[str, Any], said: str) -> None:
    assert redis_id_of("one", options) == said
