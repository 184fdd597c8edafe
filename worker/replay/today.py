"""Whether a message would run with the code, the tenants and the workers of today."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from dramatiq import Actor, Broker
from dramatiq.errors import ActorNotFound

from middleware.message_checks import InvalidMessage, decode
from worker.replay.messages import Content, NotReplayable

_SOME_ID: Final = "00000000-0000-4000-8000-000000000000"


class NoConsumer(NotReplayable):
    """Raised when a job could be sent again, and no worker would take it at this moment."""

    def __init__(self, queue_name: str) -> None:
        super().__init__(f"no worker consumes its queue, {queue_name!r}")
        self.queue_name = queue_name


def _without_what_travels_elsewhere(content: Content, actor: Actor[..., Any], tenant_id: UUID | None) -> Content:
    """Leave out arguments that the Celery system's tasks took, and that a message's options hold here.

    Raises:
      NotReplayable: When they name another tenant than the row's.
    """
    try:
        parameters = inspect.signature(actor.fn).parameters
    except ValueError:
        # What is written in C may have no signature.
        return content
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return content
    more = {name for name in ("tenant_id", "correlation_id") if name in content.kwargs and name not in parameters}
    if not more:
        return content
    named = content.kwargs.get("tenant_id")
    if "tenant_id" in more and named is not None and str(named).lower() != str(tenant_id):
        # Not which: that may be anything, what Postgres does not take included.
        raise NotReplayable(f"its argument tenant_id is not the row's tenant, {tenant_id}")
    return replace(content, kwargs={name: value for name, value in content.kwargs.items() if name not in more})


class Today:
    """Checks what replays would send.

    Arguments:
      broker: With every actor that is to be known, imported.
      existing: Returns those of the tenants that it is given that there are.
      consumed: Queues that live workers consume; None where that cannot be told.
      knows_all: Whether every actor there is, is imported here; where not, one that is unknown is taken to be
        elsewhere.
      queue_of: Gives the queue of a module's actors, where it has one; :func:`worker.routing.queue_of`.
    """

    def __init__(
        self,
        broker: Broker,
        existing: Callable[[Collection[UUID]], Collection[UUID]],
        consumed: Collection[str] | None = None,
        *,
        knows_all: bool = True,
        queue_of: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self._queue_of = queue_of
        self._broker = broker
        self._knows_all = knows_all
        self._existing = existing
        self._tenants: dict[UUID, bool] = {}
        self._consumed = consumed

    def look_up(self, tenant_ids: Iterable[UUID | None]) -> None:
        """Ask for several tenants at once."""
        unknown = {tenant_id for tenant_id in tenant_ids if tenant_id is not None} - self._tenants.keys()
        if unknown:
            there = set(self._existing(unknown))
            self._tenants |= {tenant_id: tenant_id in there for tenant_id in unknown}

    def check(self, content: Content, tenant_id: UUID | None, *, waits: bool = False) -> Content:
        """Return ``content`` on the queue that its actor has today.

        Arguments:
          content: What the message is to say.
          tenant_id: Of the job's row.
          waits: Whether it may wait in its queue until a worker consumes that.

        Raises:
          NoConsumer: When it would wait because nobody consumes its queue at this moment.
          NotReplayable: When it would fail for want of an actor, a parameter or a tenant.
        """
        checked = self._fits(content, tenant_id)
        # What no worker could read would become a row that knows nothing of its replay.
        message = checked.message(_SOME_ID, {})
        try:
            decode(message.encode(), message.queue_name, _SOME_ID)
        except InvalidMessage as e:
            # Without the value: a tenant reads why, and options are not redacted.
            raise NotReplayable(e.kind) from None
        except (ValueError, RecursionError) as e:
            raise NotReplayable(f"its message cannot be written: {type(e).__name__}") from None
        if not waits and self._consumed is not None and checked.queue_name not in self._consumed:
            raise NoConsumer(checked.queue_name)
        return checked

    def _fits(self, content: Content, tenant_id: UUID | None) -> Content:
        try:
            actor = self._broker.get_actor(content.actor_name)
        except ActorNotFound:
            queue_name = None if self._knows_all else self._elsewhere(content)
            if queue_name:
                return replace(content, queue_name=queue_name)
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
        if not actor.options.get("tenant_scoped", True):
            if tenant_id is not None and not content.chosen:
                # Whoever is bound to the tenant may have written the row.
                raise NotReplayable(
                    f"{content.actor_name} works across tenants, and the job belongs to one; to send it all the same, "
                    f"say --as {content.actor_name}"
                )
        else:
            if tenant_id is None:
                raise NotReplayable(f"{content.actor_name} is tenant-scoped, and the job belongs to no tenant")
            self.look_up([tenant_id])
            if not self._tenants[tenant_id]:
                raise NotReplayable(f"there is no tenant {tenant_id} any more")
        return replace(content, queue_name=actor.queue_name)

    def _elsewhere(self, content: Content) -> str | None:
        """Return the queue of an actor that other processes may know: what its module says, or where it was before."""
        return self._queue_of(content.actor_name.rpartition(".")[0]) or (
            content.queue_name if content.actor_name == content.was else None
        )
