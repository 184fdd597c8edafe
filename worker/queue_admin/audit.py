"""Whom an operator's deeds are told, before they are done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from uuid import UUID

from loguru import logger

#: What may be told.
PAUSED, RESUMED, PURGED, SHARED = "queue_paused", "queue_resumed", "messages_purged", "queue_shared"


class Audit(Protocol):
    """Keeps events. It is called *before* the deed, because no transaction spans Redis and the place where events are
    kept: no deed goes without its event, and an event whose deed then failed may be there. What it raises prevents the
    deed.
    """

    def __call__(
        self,
        event: str,
        *,
        changed_by: str,
        reason: str | None,
        tenant_id: UUID | None,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> object:
        """Keep an event.

        Arguments:
          event: One of :data:`PAUSED`, :data:`RESUMED`, :data:`PURGED` and :data:`SHARED`.
          changed_by: The operator.
          reason: Why, in the operator's words.
          tenant_id: Whose messages it is about, where it is about one tenant's only.
          before, after: What there was and will be, as JSON takes it: queue, pause, share, counts of messages.
        """


def log_event(
    event: str,
    *,
    changed_by: str,
    reason: str | None,
    tenant_id: UUID | None,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> None:
    """Write an event to the log."""
    logger.warning(
        "{} by {} ({}), tenant {}: {} becomes {}",
        event,
        changed_by,
        reason or "no reason given",
        tenant_id or "-",
        dict(before),
        dict(after),
    )
