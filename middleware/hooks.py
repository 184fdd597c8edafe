"""Which middleware has something to do at a signal: of twenty, most inherit most hooks, which do nothing, a message."""

from __future__ import annotations

from collections.abc import Sequence

from dramatiq import Middleware


class Hooks:
    """Remembers it for one broker, until its list of middleware changes."""

    def __init__(self) -> None:
        # In one, so that no thread sees half of a change.
        self._known: tuple[list[Middleware], dict[str, list[Middleware]]] = ([], {})

    def of(self, middleware: list[Middleware], hook: str) -> Sequence[Middleware]:
        """Return those of ``middleware`` that have a ``hook`` of their own, in order."""
        seen, by_hook = self._known
        if seen != middleware:
            seen, by_hook = self._known = list(middleware), {}
        found = by_hook.get(hook)
        if found is None:
            found = by_hook[hook] = [one for one in seen if _has_own(one, hook)]
        return found


def _has_own(middleware: Middleware, hook: str) -> bool:
    return getattr(type(middleware), hook, None) is not getattr(Middleware, hook) or hook in getattr(
        middleware, "__dict__", ()
    )
