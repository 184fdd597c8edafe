"""What filters can be set to: names that there are, offered while somebody types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.session import tenant_of
from worker.console.shared import Shared

#: Names of each kind that are offered.
_AT_MOST: Final = 200


@dataclass(frozen=True, slots=True)
class Choices:
    """Names that groups have."""

    queue: list[str]
    actor: list[str]
    error_type: list[str]
    exception: list[str]


def choices(session: Session) -> Choices:
    """Return the names of the groups that the session sees, of each kind in order.

    From groups and not from failures, of which there may be a million.
    """
    # Few are different, and those are put in order here.
    rows = session.execute(
        text(
            """
            SELECT DISTINCT queue, task_name, error_type, exception_class FROM (
                SELECT queue, task_name, error_type, exception_class
                FROM worker_failed_job_groups ORDER BY last_seen DESC LIMIT 5000
            ) newest
            """
        )
    ).all()
    return Choices(*(sorted({row[n] for row in rows if row[n] is not None})[:_AT_MOST] for n in range(4)))


def offered(shared: Shared, session: Session) -> Choices:
    """Return :func:`choices`, the same for a while for all who see the same."""
    return shared.get(("choices", tenant_of(session)), lambda: choices(session))


def people(session: Session) -> list[str]:
    """Return who did anything lately, by name: people and programs, as they said."""
    return list(
        session.execute(
            text(
                """
                SELECT DISTINCT changed_by FROM (
                    SELECT changed_by FROM worker_failed_job_events
                    WHERE event NOT IN ('captured', 'failed_again') ORDER BY id DESC LIMIT 1000
                ) newest ORDER BY changed_by LIMIT :at_most
                """
            ),
            {"at_most": _AT_MOST},
        ).scalars()
    )
