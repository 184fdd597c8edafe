"""Whose jobs fail."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from db.failed import failures_by_tenant
from worker.console.access import LookingAtAll
from worker.console.rendering import render
from worker.tenants import tenant_names, tenants_like

router = APIRouter()

#: Rows of a page; and tenants that a search looks for.
ROWS: Final = 50
FOUND: Final = 1_000
#: Tenants that never had a failure that a search names.
WELL: Final = 20


@router.get("/tenants")
def tenants(request: Request, work: LookingAtAll, name: str = "", after: str = "") -> Response:
    """Show the tenants whose jobs failed, those with most open ones first; or those of a name."""
    name = name.strip()
    with work.begin() as session:
        like = tenants_like(session, name, limit=FOUND) if name else None
        page = failures_by_tenant(session, now=work.now, among=like, after=after or None, limit=ROWS)
        names = tenant_names(session, (tenant.tenant_id for tenant in page.tenants))
        # Of those that were searched for, all are on the one page, or there are too many to say.
        well = (
            [(tenant_id, like[tenant_id]) for tenant_id in like.keys() - {one.tenant_id for one in page.tenants}]
            if like and not after and page.next is None
            else []
        )
    return render(
        request,
        "tenants.html",
        who=work.who,
        now=work.now,
        name=name,
        page=page,
        names=names,
        well=sorted(well, key=lambda one: (one[1] or "", one[0])),
        shown=WELL,
        first=bool(after),
    )
