"""``/metrics``: for Prometheus, with a token of somebody who sees all tenants."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from worker.console.access import LookingAtAll
from worker.metrics.exposition import Exposition

router = APIRouter()


@router.get("/metrics")
def metrics(request: Request, _: LookingAtAll) -> Response:
    """Say what has been counted, and how things stand; also where Postgres or Redis is away."""
    exposition: Exposition = request.app.state.metrics
    body, content_type = exposition.render(request.headers.get("accept"))
    return Response(body, headers={"content-type": content_type})
