"""An application with scheduled jobs, which write down what they were sent for."""

from __future__ import annotations

from db.tenancy import current_tenant
from worker.broker import broker
from worker.routing import actor, register
from worker.scheduler import Schedule, scheduled_for

register("tests.e2e.scheduled", "ticks")

#: A list in Redis.
SEEN = "seen"
TENANT = "6f1c7a52-6c0e-4a43-9d2b-1f0f8f1f7b11"


@actor(schedule=Schedule("* * * * * *", kwargs={"said": "x"}, tenant_id=TENANT))
def tick(said: str) -> None:
    """Run every second."""
    broker.client.rpush(SEEN, f"{scheduled_for()} {said} {current_tenant()}")  # type: ignore[attr-defined]


@actor(tenant_scoped=False, schedule=Schedule("30 2 * * *", "Europe/Berlin", missed="skip"))
def nightly() -> None:
    """Run once a night, or when somebody sends it."""
    broker.client.rpush(SEEN, f"{scheduled_for()} nightly")  # type: ignore[attr-defined]
