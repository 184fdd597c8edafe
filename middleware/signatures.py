"""What an actor's function takes."""

from __future__ import annotations

import inspect

from dramatiq import Broker
from dramatiq.errors import ActorNotFound


def parameters_of(broker: Broker, actor_name: str) -> dict[str, inspect.Parameter] | None:
    """Return an actor's parameters by name; ``None`` where the actor, or its signature, is not known here."""
    try:
        return dict(inspect.signature(broker.get_actor(actor_name).fn).parameters)
    except (ActorNotFound, TypeError, ValueError):
        return None
