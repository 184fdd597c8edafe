"""Whether a message would run with the code, the tenants and the workers of today."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any
from uuid import UUID

from dramatiq import Actor, Broker
from dramatiq.errors import ActorNotFound

from middleware.message_checks import InvalidMessage, check_options
from worker.replay.messages import Content, NotReplayable


def _without_what_travels_elsewhere(content: Content, actor: Actor[..., Any], tenant_id: UUID | None) -> Content:
    """Leave out arguments that the Celery system's tasks took, and that a message's options hold here.

    Raises:
      NotReplayable: When they name another tenant than the row's.
    """
    parameters = inspect.signature(actor.fn).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return content
    more = {name for name in ("tenant_id", "correlation_id") if name in content.kwargs and name not in parameters}
    if not more:
        return content
    named = content.kwargs.get("tenant_id")
    if "tenant_id" in more and named is not None and str(named).lower() != str(tenant_id):
        raise NotReplayable(f"its argument tenant_id is {named}, and the row's tenant is {tenant_id}")
    return replace(content, kwargs={name: value for name, value in content.kwargs.items() if name not in more})


class Today:
    """Checks what replays would send.

    Arguments:
      broker: With every actor that is to be known, imported.
      tenant_exists: Tells whether a tenant does.
      consumed: Queues that live workers consume; None where that cannot be told.
      knows_all: Whether every actor there is, is imported here; where not, one that is unknown is taken to be
        elsewhere.
    """

    def __init__(
        self,
        broker: Broker,
        tenant_exists: Callable[[UUID], bool],
        consumed: Collection[str] | None = None,
        *,
        knows_all: bool = True,
    ) -> None:
        self._broker = broker
        self._knows_all = knows_all
        self._tenant_exists = tenant_exists
        self._consumed = consumed

    def check(self, content: Content, tenant_id: UUID | None) -> Content:
        """Return ``content`` on the queue that its actor has today.

        Raises:
          NotReplayable: When it would fail for want of an actor, a parameter, a tenant or a worker.
        """
        try:
            actor = self._broker.get_actor(content.actor_name)
        except ActorNotFound:
            if not self._knows_all and content.queue_name:
                return content
            raise NotReplayable(
                f"there is no actor {content.actor_name!r} any more; if it has another name now, say --as"
            ) from None
        content = _without_what_travels_elsewhere(content, actor, tenant_id)
        try:
            inspect.signature(actor.fn).bind(*content.args, **content.kwargs)
        except TypeError as e:
            raise NotReplayable(f"its arguments do not fit {content.actor_name}: {e}") from None
        except ValueError:
            # What is written in C may have no signature.
            pass
        try:
            check_options(content.options)
        except InvalidMessage as e:
            raise NotReplayable(str(e)) from None
        if actor.options.get("tenant_scoped", True):
            if tenant_id is None:
                raise NotReplayable(f"{content.actor_name} is tenant-scoped, and the job belongs to no tenant")
            if not self._tenant_exists(tenant_id):
                raise NotReplayable(f"there is no tenant {tenant_id} any more")
        if self._consumed is not None and actor.queue_name not in self._consumed:
            raise NotReplayable(f"no worker consumes its queue, {actor.queue_name!r}")
        return replace(content, queue_name=actor.queue_name)
