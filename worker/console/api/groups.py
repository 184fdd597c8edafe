"""Failures of one cause together."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Path, Query
from pydantic import BaseModel

from db.failed import Touched, find_groups, hours_of_group, tenants_of_group
from worker.console.access import Looking
from worker.console.api import shapes
from worker.console.api.asking import FiltersOfAPage
from worker.console.api.cursors import opened, sealed
from worker.console.api.routing import make_router
from worker.console.pages.groups import the_group
from worker.failed.asked import OPEN, to_filter
from worker.tenants import tenant_names

router = make_router("groups")

#: Tenants of a group that are named.
TENANTS: Final = 100


class Groups(BaseModel):
    """Some groups, and the cursor of the next; null after the last."""

    groups: list[shapes.FailureGroup]  # type: ignore[valid-type]
    next: str | None


@router.get("/groups", response_model=Groups)
def list_groups(work: Looking, asked: Annotated[FiltersOfAPage, Query()]) -> dict[str, Any]:
    """Groups, those that are back after they were resolved first, then those last seen: with open jobs, where neither a
    status nor ids are asked for."""
    with work.begin() as session:
        where = to_filter(session, asked.asked(), work.now, by_default=OPEN)
        found, following = find_groups(session, where, after=opened(asked.after), limit=asked.limit)
    return {"groups": [shapes.group(one) for one in found], "next": sealed(following)}


ATenant = shapes.shape("TenantOfGroup", Touched, tenant_name=str | None)


class Hour(BaseModel):
    """How many jobs failed in an hour."""

    since: datetime
    jobs: int


class OneGroup(BaseModel):
    """A group, whom it touched, the most open jobs first, and its last 24 hours, the oldest first."""

    group: shapes.FailureGroup  # type: ignore[valid-type]
    tenants: list[ATenant]  # type: ignore[valid-type]
    hours: list[Hour]


@router.get("/groups/{fingerprint}", response_model=OneGroup)
def get_group(
    work: Looking,
    fingerprint: Annotated[str, Path(max_length=100, description="Or what it begins with, four characters at least.")],
) -> dict[str, Any]:
    """All that is known of one."""
    with work.begin() as session:
        found = the_group(session, fingerprint)
        touched = tenants_of_group(session, found.fingerprint, limit=TENANTS)
        hours = hours_of_group(session, found.fingerprint, now=work.now)
        names = tenant_names(session, (one.tenant_id for one in touched))
    return {
        "group": shapes.group(found),
        "tenants": [
            shapes.plain(one, tenant_name=names.get(one.tenant_id) if one.tenant_id else None) for one in touched
        ],
        "hours": [{"since": since, "jobs": jobs} for since, jobs in hours],
    }
