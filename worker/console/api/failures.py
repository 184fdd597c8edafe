"""Failed jobs: a page of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel

from db.failed import find
from worker.console.access import Looking
from worker.console.api import shapes
from worker.console.api.asking import FiltersOfAPage
from worker.console.api.cursors import opened, sealed
from worker.console.api.routing import make_router
from worker.failed.asked import OPEN, to_filter
from worker.tenants import tenant_names

router = make_router("failures")


class Failures(BaseModel):
    """Some failed jobs, and the cursor of the next; null after the last."""

    failures: list[shapes.Failure]  # type: ignore[valid-type]
    next: str | None


@router.get("/failures", response_model=Failures)
def list_failures(work: Looking, asked: Annotated[FiltersOfAPage, Query()]) -> dict[str, Any]:
    """Failed jobs, newest first: open ones, where neither a status nor ids are asked for."""
    with work.begin() as session:
        where = to_filter(session, asked.asked(), work.now, by_default=OPEN)
        page = find(session, where, after=opened(asked.after), limit=asked.limit)
        names = tenant_names(session, (job.tenant_id for job in page.jobs))
    return {"failures": [shapes.failure(job, names) for job in page.jobs], "next": sealed(page.next)}
