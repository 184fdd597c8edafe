"""Queues: what they hold, and who consumes them."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel

from worker.console.access import LookingAtAll
from worker.console.api import shapes
from worker.console.api.routing import make_router
from worker.queue_admin import QueueState, list_queues
from worker.settings import Settings

router = make_router("queues")

AQueue = shapes.shape("Queue", QueueState)


class Queues(BaseModel):
    """All of them."""

    queues: list[AQueue]  # type: ignore[valid-type]


@router.get("/queues", response_model=Queues)
def get_queues(request: Request, _: LookingAtAll) -> dict[str, Any]:
    """What every queue holds at this moment. For those who see all tenants: Redis knows none."""
    settings: Settings = request.app.state.settings
    found = list_queues(request.app.state.client, settings.extra_queues, namespace=settings.redis_namespace)
    return {"queues": [shapes.plain(one) for one in found]}
