"""How much fails, of what, and since when."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel

from db.failed import Count, stats
from worker.console.access import Looking
from worker.console.api import shapes
from worker.console.api.asking import Filters
from worker.console.api.routing import make_router
from worker.failed.asked import to_filter
from worker.tenants import tenant_names

router = make_router("stats")


class Named(BaseModel):
    """How many jobs have something in common: of all, and of those that wait for somebody."""

    name: str | None
    jobs: int
    open: int


class OfTenant(BaseModel):
    """The same, of a tenant, or of none."""

    tenant_id: UUID | None
    tenant_name: str | None
    jobs: int
    open: int


class Hour(BaseModel):
    """How many jobs failed in an hour."""

    since: datetime
    jobs: int


class Stats(BaseModel):
    """Counts of failed jobs. Of each list the 20 with the most open jobs."""

    jobs: int
    by_status: dict[str, int]
    by_queue: list[Named]
    by_error_type: list[Named]
    by_actor: list[Named]
    by_tenant: list[OfTenant]
    open_groups: int
    regressed_groups: int
    #: When the pending job that waits longest failed.
    oldest_pending: datetime | None
    #: The last 24, the oldest first.
    by_hour: list[Hour]


@router.get("/stats", response_model=Stats)
def get_stats(work: Looking, asked: Annotated[Filters, Query()]) -> dict[str, Any]:
    """Counts of the failed jobs that match, of whatever status."""
    with work.begin() as session:
        found = stats(session, to_filter(session, asked.asked(), work.now), now=work.now)
        names = tenant_names(session, (count.name for count in found.by_tenant if isinstance(count.name, UUID)))
    return shapes.plain(
        found,
        jobs=found.jobs,
        by_tenant=[_of_tenant(count, names) for count in found.by_tenant],
        by_hour=[{"since": since, "jobs": jobs} for since, jobs in found.by_hour],
        **{
            name: [shapes.plain(count) for count in getattr(found, name)]
            for name in ("by_queue", "by_error_type", "by_actor")
        },
    )


def _of_tenant(count: Count, names: dict[UUID, str]) -> dict[str, Any]:
    tenant_id = count.name if isinstance(count.name, UUID) else None
    name = names.get(tenant_id) if tenant_id is not None else None
    return {"tenant_id": tenant_id, "tenant_name": name, "jobs": count.jobs, "open": count.open}
