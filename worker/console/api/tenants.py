"""Tenants whose jobs fail."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel

from db.failed import TenantFailures, failures_by_tenant
from worker.console.access import LookingAtAll
from worker.console.api import shapes
from worker.console.api.asking import STRICT, After, Limit
from worker.console.api.cursors import opened, sealed
from worker.console.api.routing import make_router
from worker.tenants import tenant_names

router = make_router("tenants")

ATenant = shapes.shape("Tenant", TenantFailures, tenant_name=str | None, open=int)


class Tenants(BaseModel):
    """Some tenants, and the cursor of the next; null after the last."""

    tenants: list[ATenant]  # type: ignore[valid-type]
    next: str | None
    #: How many there are in all that ever had a failure.
    total: int


class OfAPage(BaseModel):
    """Where a page begins."""

    model_config = STRICT

    after: After | None = None
    limit: Limit = 50


@router.get("/tenants", response_model=Tenants)
def list_tenants(work: LookingAtAll, asked: Annotated[OfAPage, Query()]) -> dict[str, Any]:
    """Tenants that have or had failures, those with most open jobs first; failures of no tenant are one."""
    with work.begin() as session:
        page = failures_by_tenant(session, now=work.now, after=opened(asked.after), limit=asked.limit)
        names = tenant_names(session, (one.tenant_id for one in page.tenants))
    tenants = [
        shapes.plain(one, open=one.open, tenant_name=names.get(one.tenant_id) if one.tenant_id else None)
        for one in page.tenants
    ]
    return {"tenants": tenants, "next": sealed(page.next), "total": page.total}
