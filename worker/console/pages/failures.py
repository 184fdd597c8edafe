"""The list of failures, with every filter of the command line in its address; and what is done to all that match."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
from sqlalchemy.orm import Session

from db.failed import STATUSES, Filter, Page, count_up_to, find
from db.failed.search import LOOKED_AT
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
    asked = asked_in(request.query_params, also=("after", "through"))
    with work.begin() as session:
        where = to_filter(session, asked, work.now, by_default=OPEN)
        after, through = request.query_params.get("after") or None, bool(request.query_params.get("through"))
        page = find(session, where, after=after, limit=ROWS, look_through=through)
        count, is_all = _count(session, where, page, is_first="after" not in request.query_params)
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
        older=query(asked, after=page.next, through="all" if through else None) if page.next else None,
        looked_to=page.looked_to,
        looked_at=LOOKED_AT,
        through=query(asked, after=after, through="all"),
        query=query(asked),
        # Where nothing is found among those that are open.
        in_all=query(asked, status="all") if asked.status != ["all"] else None,
    )


def _count(session: Session, where: Filter, page: Page, *, is_first: bool) -> tuple[int, bool]:
    """Return how many jobs match, or are known to, and whether that is all."""
    if is_first and page.next is None:
        return len(page.jobs), True
    if where.text is not None:
        # To look for the text in more of them takes longer than the page.
        return len(page.jobs), False
    return count_up_to(session, where, COUNTED)
