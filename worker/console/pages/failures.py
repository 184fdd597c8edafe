"""The list of failures, with every filter of the command line in its address; and what is done to all that match."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from db.failed import STATUSES, count_up_to, find
from worker.console.access import Looking
from worker.console.asking import asked_in, query
from worker.console.choices import offered
from worker.console.rendering import render
from worker.failed.asked import OPEN, to_filter
from worker.tenants import tenant_names

router = APIRouter()

#: Rows of a page; and up to how many are counted where that takes looking at each.
ROWS: Final = 50
COUNTED: Final = 10_000


@router.get("/failures")
def failures(request: Request, work: Looking) -> Response:
    """Show what matches, newest first, open ones where the address does not say."""
    asked = asked_in(request.query_params, also=("after",))
    with work.begin() as session:
        where = to_filter(session, asked, work.now, by_default=OPEN)
        page = find(session, where, after=request.query_params.get("after") or None, limit=ROWS)
        count, is_all = count_up_to(session, where, COUNTED)
        names = tenant_names(session, (job.tenant_id for job in page.jobs))
        names_offered = offered(request.app.state.shared, session)
    return render(
        request,
        "failures.html",
        who=work.who,
        now=work.now,
        asked=asked,
        statuses=STATUSES,
        offered=names_offered,
        jobs=page.jobs,
        count=count,
        is_all=is_all,
        names=names,
        first="after" in request.query_params,
        older=query(asked, after=page.next) if page.next else None,
        query=query(asked),
        # Where nothing is found among those that are open.
        in_all=query(asked, status="all") if asked.status != ["all"] else None,
    )
