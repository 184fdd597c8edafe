"""Failures over time, by what kind of error they are: whether something is wrong, and since when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.session import tenant_of

#: Bars of a chart at most, and error types that are told apart.
BUCKETS, TYPES = 120, 6
#: Minutes that a bar may be of, as people count time: from a minute to a day. Longer ones are of so many days.
_WIDTHS: Final = (1, 2, 3, 5, 10, 15, 20, 30, 60, 120, 180, 240, 360, 720, 1_440)
_DAY: Final = 1_440


@dataclass(frozen=True, slots=True)
class Series:
    """The failures of one error type, or of all the rest (None), in each bucket."""

    error_type: str | None
    failures: tuple[int, ...]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.failures)


@dataclass(frozen=True, slots=True)
class FailureRates:
    """Failures in times of equal length, oldest first, of which the last is not over yet.

    A job counts once, when it last failed: one that was replayed and failed again has moved on.
    """

    #: When the first bucket began: a multiple of ``width`` since 1970, so that bars stay where they are.
    since: datetime
    #: How long each is.
    width: timedelta
    buckets: int
    #: The most frequent error type first, then the rest, where there is one. Nothing where nothing failed.
    series: tuple[Series, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """Failures of any type in each bucket."""
        return tuple(sum(one.failures[n] for one in self.series) for n in range(self.buckets))


def failures_per_minute(
    session: Session,
    *,
    since: datetime,
    now: datetime,
    tenant_id: UUID | None = None,
    buckets: int = BUCKETS,
    types: int = TYPES,
) -> FailureRates:
    """Return how many jobs failed in each minute, or in longer times where there would be too many, by error type.

    Arguments:
      session: An operator's, or one that is bound to a tenant.
      since: From the bucket that this is in, to the one that ``now`` is in; both with a time zone.
      tenant_id: Of this one alone. What a session may see it does not widen.
      buckets: How many there may be.
      types: How many error types are told apart, the most frequent; the others are one series.

    Raises:
      ValueError: When ``since`` is not before ``now``, or either has no time zone.
    """
    for name, time in (("since", since), ("now", now)):
        if time.tzinfo is None:
            raise ValueError(f"{name} must have a time zone, not {time!r}")
    if since >= now:
        raise ValueError(f"since ({since.isoformat()}) must be before now ({now.isoformat()})")
    width = _width(since, now, buckets)
    first, last = _bucket(since, width), _bucket(now, width)
    begin = datetime.fromtimestamp(first * width, UTC)
    tenant_id = tenant_of(session) if tenant_id is None else tenant_id
    rows = session.execute(
        text(_OF_ALL if tenant_id is None else _OF_TENANT),
        {"since": begin, "now": now, "width": timedelta(seconds=width), "tenant_id": tenant_id},
    )
    counts: dict[str, Counter[int]] = {}
    for row in rows:
        counts.setdefault(row.error_type, Counter())[_bucket(row.began, width) - first] = row.failures
    return FailureRates(begin, timedelta(seconds=width), last - first + 1, _stacked(counts, last - first + 1, types))


_BUCKET: Final = "date_bin(:width, failed_at, :since)"
# Both columns are in an index with the type first, so of each type a range of it is read and no row. Postgres skips
# from type to type by itself only from 18 on.
_OF_ALL: Final = f"""
WITH RECURSIVE types AS (
    (SELECT error_type FROM worker_failed_jobs ORDER BY error_type LIMIT 1)
    UNION ALL
    SELECT (
        SELECT job.error_type FROM worker_failed_jobs job
        WHERE job.error_type > types.error_type ORDER BY job.error_type LIMIT 1
    )
    FROM types WHERE types.error_type IS NOT NULL
)
SELECT types.error_type, counted.began, counted.failures
FROM types
CROSS JOIN LATERAL (
    SELECT {_BUCKET} AS began, count(*) AS failures FROM worker_failed_jobs
    WHERE error_type = types.error_type AND failed_at >= :since AND failed_at <= :now
    GROUP BY 1
) counted
WHERE types.error_type IS NOT NULL
"""
_OF_TENANT: Final = f"""
SELECT error_type, {_BUCKET} AS began, count(*) AS failures FROM worker_failed_jobs
WHERE tenant_id = CAST(:tenant_id AS uuid) AND failed_at >= :since AND failed_at <= :now
GROUP BY 1, 2
"""


def _width(since: datetime, now: datetime, buckets: int) -> int:
    """Return seconds, the fewest with which there are no more than so many buckets, wherever they begin."""
    if buckets < 2:
        raise ValueError(f"buckets must be 2 at least, not {buckets!r}")
    minutes = (now - since).total_seconds() / 60 / (buckets - 1)
    return 60 * next((width for width in _WIDTHS if width >= minutes), -(-int(minutes + 1) // _DAY) * _DAY)


def _bucket(moment: datetime, width: int) -> int:
    return int(moment.timestamp() // width)


def _stacked(counts: dict[str, Counter[int]], buckets: int, types: int) -> tuple[Series, ...]:
    ranked = sorted(counts, key=lambda name: (-counts[name].total(), name))
    series = [Series(name, tuple(counts[name][n] for n in range(buckets))) for name in ranked[:types]]
    rest: Counter[int] = sum((counts[name] for name in ranked[types:]), Counter[Any]())
    if rest:
        series.append(Series(None, tuple(rest[n] for n in range(buckets))))
    return tuple(series)
