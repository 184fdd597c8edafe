"""Reads what ``recompute_window`` wrote, in a session bound to the tenant."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.recompute import Model, Window


@dataclass(frozen=True, slots=True)
class ChannelTotal:
    """What a channel earned in a window."""

    channel: str
    allocations: int
    cents: int


@dataclass(frozen=True, slots=True)
class Unbalanced:
    """A conversion whose allocations do not add up to its revenue."""

    conversion_id: str
    revenue_cents: int | None
    allocated_cents: int | None


def job_of(session: Session, tenant_id: UUID, window: Window, model: Model, model_version: str) -> UUID:
    """Return the id of the job that recomputed a window.

    Raises:
      ValueError: When none did.
    """
    job_id = session.execute(
        text(
            """
            SELECT id FROM attribution_recompute_jobs
            WHERE tenant_id = :tenant_id AND window_start = :start AND window_end = :end
              AND model = :model AND model_version = :model_version
            """
        ),
        {
            "tenant_id": tenant_id,
            "start": window.start,
            "end": window.end,
            "model": model.value,
            "model_version": model_version,
        },
    ).scalar()
    if job_id is None:
        raise ValueError(
            f"window_start {window.start.isoformat()}, window_end {window.end.isoformat()}, model {model.value!r}, "
            f"model_version {model_version!r}: this window was not recomputed"
        )
    return UUID(str(job_id))


def channel_totals(
    session: Session, tenant_id: UUID, window: Window, model: Model, model_version: str
) -> list[ChannelTotal]:
    """Return what each channel earned in a window, the most first.

    Raises:
      ValueError: When the window was not recomputed.
    """
    job_id = job_of(session, tenant_id, window, model, model_version)
    rows = session.execute(
        text(
            """
            SELECT channel, count(*), sum(allocated_cents) FROM attribution_allocations
            WHERE tenant_id = :tenant_id AND job_id = :job_id
            GROUP BY channel ORDER BY sum(allocated_cents) DESC, channel
            """
        ),
        {"tenant_id": tenant_id, "job_id": job_id},
    )
    return [ChannelTotal(channel, count, int(cents)) for channel, count, cents in rows]


def unbalanced_conversions(
    session: Session, tenant_id: UUID, window: Window, model: Model, model_version: str, *, limit: int = 10
) -> list[Unbalanced]:
    """Return the first conversions of a window whose allocations do not add up to their revenue, or are missing.

    Raises:
      ValueError: When the window was not recomputed.
    """
    job_id = job_of(session, tenant_id, window, model, model_version)
    rows = session.execute(
        text(
            """
            SELECT coalesce(e.event_id, a.conversion_id), e.revenue_cents, a.cents
            FROM (
                SELECT event_id, revenue_cents FROM attribution_events
                WHERE tenant_id = :tenant_id AND event_type = 'conversion'
                  AND occurred_at >= :start AND occurred_at < :end
            ) e
            FULL JOIN (
                SELECT conversion_id, sum(allocated_cents) AS cents FROM attribution_allocations
                WHERE tenant_id = :tenant_id AND job_id = :job_id GROUP BY conversion_id
            ) a ON a.conversion_id = e.event_id
            WHERE e.revenue_cents IS DISTINCT FROM a.cents
            ORDER BY 1 LIMIT :limit
            """
        ),
        {"tenant_id": tenant_id, "job_id": job_id, "start": window.start, "end": window.end, "limit": limit},
    )
    return [
        Unbalanced(conversion_id, revenue, None if cents is None else int(cents))
        for conversion_id, revenue, cents in rows
    ]
