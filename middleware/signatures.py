"""What an actor's function takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from types import FunctionType

from dramatiq import Broker


def parameters_of(broker: Broker, actor_name: str) -> dict[str, inspect.Parameter] | None:
    """Return an actor's parameters by name; ``None`` where the actor, or its signature, is not known here."""
    try:
        # Not get_actor: of a message that is not to be run the actor may be known nevertheless.
        fn = broker.actors[actor_name].fn
        return dict(_known(fn) if isinstance(fn, FunctionType) else inspect.signature(fn).parameters)
    except (KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=1_024)
def _known(fn: FunctionType) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(fn).parameters


def positional_names(broker: Broker, actor_name: str, count: int) -> tuple[str, ...]:
    """Return the names under which an actor takes its first ``count`` positional arguments, as far as known."""
    parameters = parameters_of(broker, actor_name) or {}
    names: list[str] = []
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [parameter.name] * (count - len(names))
        elif parameter.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
    return tuple(names[:count])
