"""Whether anything is wrong, at a glance."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from db.failed import InvalidFilter
from worker.console.access import Looking
from worker.console.glance import GROUPS, HOURS, QUEUES, REPLAYS, RUNNING, WORKERS, glance, is_stranded
from worker.console.rendering import render

router = APIRouter()


@router.get("/")
def overview(request: Request, work: Looking, hours: str = "3") -> Response:
    """Show what is open, what fails, and who works on what."""
    if hours not in {str(each) for each in HOURS}:
        raise InvalidFilter(f"hours must be one of {', '.join(map(str, HOURS))}, not {hours!r}")
    state = request.app.state
    found = glance(work, int(hours), shared=state.shared, client=state.client, settings=state.settings)
    live = found.live.value if found.live is not None else None
    return render(
        request,
        "overview.html",
        who=work.who,
        now=work.now,
        found=found,
        live=live,
        standing=found.failures.value.standing if found.failures.value else None,
        groups=found.failures.value.groups[:GROUPS] if found.failures.value else [],
        replays=found.replays.value,
        shown={"replays": REPLAYS, "queues": QUEUES, "workers": WORKERS, "running": RUNNING},
        hours_offered=HOURS,
        is_stranded=is_stranded,
        seconds_ago=lambda seconds: live.now - timedelta(seconds=seconds) if live else None,
    )
