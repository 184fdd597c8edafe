"""Replays that are made here, and begin at once."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from db.errors import ConfigurationError
from db.replays import runs
from worker.console.access import Work
from worker.console.api import shapes
from worker.console.deployment import Deployment
from worker.failed.asked import NoSuchReplay
from worker.replay.application import check_is_there


def check_actor(work: Work, deployment: Deployment, actor: str | None) -> None:
    """Check that there is the actor that is to run jobs, where this process can tell.

    Raises:
      NoSuchActor: When there is none.
    """
    if actor is None or work.tenant_id is not None:
        return
    try:
        broker = deployment.broker
    except ConfigurationError:
        # Whoever runs it says so of each job.
        return
    check_is_there(broker, actor)


def started(work: Work, deployment: Deployment, replay_id: UUID) -> dict[str, Any]:
    """Have a replay run that was made and committed, and return it."""
    deployment.run_soon(replay_id)
    return shown(work, replay_id)


def shown(work: Work, replay_id: UUID) -> dict[str, Any]:
    """Return a replay as it stands.

    Raises:
      NoSuchReplay: When there is none.
    """
    with work.begin() as session:
        found = runs.get(session, replay_id)
    if found is None:
        raise NoSuchReplay(f"there is no replay {replay_id}")
    return shapes.replay(found)
