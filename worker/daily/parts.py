"""A recompute that is a part of a run says so when it has succeeded, in its own transaction."""

from __future__ import annotations

from uuid import UUID

from dramatiq.middleware import CurrentMessage
from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.daily.fan_out import OPTION


def note_success(session: Session, tenant_id: UUID) -> UUID | None:
    """Note that the message at hand has succeeded, if it is a part of a run; return that run if it had failed before.

    Arguments:
      session: The recompute's own, bound to the tenant. The caller commits.
      tenant_id: Whose.
    """
    message = CurrentMessage.get_current_message()
    if message is None or OPTION not in message.options:
        return None
    try:
        child_id = UUID(message.message_id)
    except ValueError:
        # Somebody else's message, with our option.
        return None
    row = session.execute(_SUCCEEDED, {"id": child_id, "tenant_id": tenant_id}).first()
    return row.run_id if row is not None and row.had_failed else None


_SUCCEEDED = text(
    """
    UPDATE attribution_run_children SET succeeded_at = CURRENT_TIMESTAMP
    WHERE id = :id AND tenant_id = :tenant_id AND succeeded_at IS NULL
    RETURNING run_id, failed_at IS NOT NULL AS had_failed
    """
)
