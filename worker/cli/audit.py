"""Keeps the events of what operators do to queues, beside those of failed jobs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from db.errors import ConfigurationError
from db.failed import write_event
from db.session import operator_transaction
from worker.cli.common import configure_sessions
from worker.queue_admin import log_event


def keep_event(
    event: str,
    *,
    changed_by: str,
    reason: str | None,
    tenant_id: UUID | None,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
) -> None:
    """Keep an event in Postgres, or raise, so that what cannot be undone is not done without one.

    Raises:
      ConfigurationError: When there is no ``DATABASE_URL``.
      sqlalchemy.exc.SQLAlchemyError: When Postgres does not take it.
    """
    configure_sessions()
    with operator_transaction() as session:
        write_event(session, event, by=changed_by, reason=reason, tenant_id=tenant_id, before=before, after=after)


def keep_event_if_possible(event: str, **said: Any) -> None:
    """Keep an event in Postgres; where that is away, in the log: a queue is paused at night because of just that."""
    try:
        keep_event(event, **said)
    except (ConfigurationError, SQLAlchemyError) as e:
        sys.stderr.write(f"worker: this is in the log alone, because Postgres does not take it: {type(e).__name__}\n")
        log_event(event, **said)
