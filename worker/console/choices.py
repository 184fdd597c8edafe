"""What filters can be set to: names that there are, offered while somebody types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

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
    row = session.execute(
        text(
            """
            SELECT
                array_agg(DISTINCT queue) FILTER (WHERE queue IS NOT NULL) AS queue,
                array_agg(DISTINCT task_name) AS actor,
                array_agg(DISTINCT error_type) AS error_type,
                array_agg(DISTINCT exception_class) AS exception
            FROM (SELECT * FROM worker_failed_job_groups ORDER BY last_seen DESC LIMIT 5000) newest
            """
        )
    ).one()
    return Choices(*((names or [])[:_AT_MOST] for names in row))


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
