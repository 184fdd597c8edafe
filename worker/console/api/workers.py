"""Worker processes: which live, and what they run."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel

from worker.console.access import LookingAtAll
from worker.console.api import shapes
from worker.console.api.routing import make_router
from worker.live import WorkerState, list_workers
from worker.settings import Settings

router = make_router("workers")

AWorker = shapes.shape("Worker", WorkerState)


class Workers(BaseModel):
    """All of them."""

    workers: list[AWorker]  # type: ignore[valid-type]


@router.get("/workers", response_model=Workers)
def get_workers(request: Request, _: LookingAtAll) -> dict[str, Any]:
    """Every worker process that lives, and what it runs at this moment. For those who see all tenants."""
    settings: Settings = request.app.state.settings
    found = list_workers(request.app.state.client, namespace=settings.redis_namespace)
    return {"workers": [shapes.plain(one) for one in found]}
