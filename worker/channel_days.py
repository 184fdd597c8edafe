"""What each channel earned by day (UTC): a rollup of what ``recompute_window`` wrote, for those who chart it.

A recompute replaces, in its own transaction, the days that its window holds whole. Of a day that it holds in part it
knows a part alone, so that one's total is left as it was. A day may be in several windows, and windows differ in which
touches they know of: what the last of them to be recomputed says is what stands, all of it, and ``job_id`` tells which
that was.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

if TYPE_CHECKING:
    from worker.recompute import Model, Window


@dataclass(frozen=True, slots=True)
class Days:
    """The days from ``first`` on, up to and without ``until``."""

    first: date
    until: date


@dataclass(frozen=True, slots=True)
class ChannelDay:
    """What a channel earned on a day."""

    day: date
    channel: str
    cents: int


def whole_days(window: Window) -> Days | None:
    """Return the days (UTC) that a window holds whole, or ``None``."""
    first, until = window.start.date(), window.end.date()
    # Only where another day follows: there is none after 9999-12-31.
    if first < until and window.start.time() != time():
        first += timedelta(days=1)
    return Days(first, until) if first < until else None


def replace_channel_days(
    session: Session, tenant_id: UUID, window: Window, model: Model, model_version: str, job_id: UUID
) -> None:
    """Replace the totals of the days that a window holds whole by those of its allocations.

    Another recompute that would replace totals of the same tenant, model and version waits until this one commits.

    Arguments:
      session: The recompute's own, which has written the allocations.
      tenant_id, window, model, model_version: What was recomputed.
      job_id: Its row of ``attribution_recompute_jobs``.
    """
    days = whole_days(window)
    if days is None:
        return
    values = {
        "tenant_id": tenant_id,
        "model": model.value,
        "model_version": model_version,
        "job_id": job_id,
        "first": days.first,
        "until": days.until,
        "start": datetime.combine(days.first, time(), UTC),
        "end": datetime.combine(days.until, time(), UTC),
    }
    # Rows alone would not do: those of one that commits meanwhile are not seen, and totals of both would stand.
    session.execute(_LOCK, {"key": f"dramaturg.channel_days:{tenant_id}:{model.value}:{model_version}"})
    session.execute(_DELETE, values)
    alone = days.until - days.first == timedelta(days=1) and window.end - window.start == timedelta(days=1)
    session.execute(_INSERT_ONE if alone else _INSERT, values)


def channel_days(session: Session, tenant_id: UUID, days: Days, model: Model, model_version: str) -> list[ChannelDay]:
    """Return what each channel earned on each of these days, by day, the most first."""
    rows = session.execute(
        text(
            """
            SELECT day, channel, allocated_cents FROM attribution_channel_days
            WHERE tenant_id = :tenant_id AND day >= :first AND day < :until
              AND model = :model AND model_version = :model_version
            ORDER BY day, allocated_cents DESC, channel
            """
        ),
        {
            "tenant_id": tenant_id,
            "first": days.first,
            "until": days.until,
            "model": model.value,
            "model_version": model_version,
        },
    )
    return [ChannelDay(day, channel, int(cents)) for day, channel, cents in rows]


# --- SQL ------------------------------------------------------------------------------------------

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))")

_DELETE = text(
    """
    DELETE FROM attribution_channel_days
    WHERE tenant_id = :tenant_id AND day >= :first AND day < :until
      AND model = :model AND model_version = :model_version
    """
)

_INTO = """
    INSERT INTO attribution_channel_days
        (tenant_id, day, model, model_version, channel, allocated_cents, job_id)
"""

# A window of one day: what it allocated is of that day.
_INSERT_ONE = text(
    f"""
    {_INTO}
    SELECT :tenant_id, CAST(:first AS date), :model, :model_version, channel, sum(allocated_cents), :job_id
    FROM attribution_allocations
    WHERE tenant_id = :tenant_id AND job_id = :job_id
    GROUP BY channel
    """
)

_INSERT = text(
    f"""
    {_INTO}
    SELECT :tenant_id, CAST(e.occurred_at AT TIME ZONE 'UTC' AS date), :model, :model_version, a.channel,
           sum(a.allocated_cents), :job_id
    FROM attribution_allocations a
    JOIN attribution_events e ON e.tenant_id = :tenant_id AND e.event_id = a.conversion_id
    WHERE a.tenant_id = :tenant_id AND a.job_id = :job_id
      AND e.event_type = 'conversion' AND e.occurred_at >= :start AND e.occurred_at < :end
    GROUP BY 2, a.channel
    """
)
