"""Which middleware has something to do at a signal: of twenty, most inherit most hooks, which do nothing, a message."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast

from dramatiq import Broker, Message, Middleware


class BeforeEnqueue(Middleware):
    """Middleware of ours that looks at messages before they are enqueued: at many at once where many are sent.

    What it does to a message depends on no other middleware having seen the one before it, and done twice it changes
    nothing.
    """

    def before_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        self.before_enqueue_many(broker, [message], delay)

    def before_enqueue_many(self, broker: Broker, messages: Sequence[Message[Any]], delay: int | None) -> None:
        """Do what :meth:`before_enqueue` does for each.

        Raises:
          MiddlewareError: When one is refused.
        """
        raise NotImplementedError


def _takes_many(middleware: Middleware) -> bool:
    # No heir of ours that does it otherwise.
    return (
        isinstance(middleware, BeforeEnqueue)
        and type(middleware).before_enqueue is BeforeEnqueue.before_enqueue
        and "before_enqueue" not in middleware.__dict__
    )


class Hooks:
    """Remembers it for one broker, until its list of middleware changes."""

    def __init__(self) -> None:
        # In one, so that no thread sees half of a change.
        self._known: tuple[list[Middleware], dict[str, list[Middleware]]] = ([], {})
        self._enqueuing: tuple[Sequence[Middleware], list[BeforeEnqueue], Sequence[Middleware]] = ([], [], [])

    def of(self, middleware: list[Middleware], hook: str) -> Sequence[Middleware]:
        """Return those of ``middleware`` that have a ``hook`` of their own, in order."""
        seen, by_hook = self._known
        if seen != middleware:
            seen, by_hook = self._known = list(middleware), {}
        found = by_hook.get(hook)
        if found is None:
            found = by_hook[hook] = [one for one in seen if _has_own(one, hook)]
        return found

    def before_enqueue(self, middleware: list[Middleware]) -> tuple[Sequence[BeforeEnqueue], Sequence[Middleware]]:
        """Return those of ``middleware`` that look at messages before they are enqueued: those that come first and can
        be given all at once; and from the first on that cannot, all others.
        """
        hooks = self.of(middleware, "before_enqueue")
        seen, at_once, rest = self._enqueuing
        if seen is not hooks:
            at_once = cast("list[BeforeEnqueue]", list(takewhile(_takes_many, hooks)))
            rest = hooks[len(at_once) :]
            self._enqueuing = hooks, at_once, rest
        return at_once, rest


def _has_own(middleware: Middleware, hook: str) -> bool:
    return getattr(type(middleware), hook, None) is not getattr(Middleware, hook) or hook in getattr(
        middleware, "__dict__", ()
    )
