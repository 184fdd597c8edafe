"""Shares the revenue of a tenant's conversions among the touches that led to them. One window, one transaction.

What counts is what occurred in the half-open window ``[start, end)``: conversions and touches alike. A touch led to a
conversion when it is of the same visitor and not later; one at the very same time counts as before it. Touches are
ordered by (``occurred_at``, ``event_id`` byte by byte) and numbered from 1: their *position*.

- A conversion without touches is one allocation: position 0, no touch, channel ``direct``, the full revenue.
- ``first_touch``, ``last_touch``: everything to that touch, which is the only row written.
- ``linear``: equal weights.
- ``time_decay``: a weight halves with every 7 days between touch and conversion:
  ``greatest(1, floor(2^30 * 0.5^(age / 7 days)))``.
- ``position_based``: 40 % to the first touch, 40 % to the last, 20 % to those between in equal parts; one touch has it
  all, two have half each. As integers: ``2 * (n - 2)`` at the ends and 1 between.

Money is whole cents that add up to the conversion exactly. A touch's quota is ``revenue * weight / total``, in exact
arithmetic; it gets the floor of it, and the cents left over go one each to the largest remainders, to the lower
position among equals. So the result depends on the events alone, not on the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from enum import StrEnum
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.models import AttributionAllocation, AttributionChannelDay, AttributionEvent, AttributionRecomputeJob
from db.tenancy import current_correlation_id
from worker.arguments import check_text, shown
from worker.channel_days import replace_channel_days
from worker.table_shapes import check_tables
from worker.tenants import naming_tenant

#: What Postgres' bigint holds at most.
MAX_CENTS = 2**63 - 1

MODEL_VERSION_LENGTH = 50


class Model(StrEnum):
    """How revenue is shared; see this module's text."""

    FIRST_TOUCH = "first_touch"
    LAST_TOUCH = "last_touch"
    LINEAR = "linear"
    TIME_DECAY = "time_decay"
    POSITION_BASED = "position_based"


@dataclass(frozen=True, slots=True)
class Window:
    """The half-open window ``[start, end)``; aware, in UTC. Made by :func:`parse_window`."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        return " to ".join(t.isoformat().replace("+00:00", "Z") for t in (self.start, self.end))


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What a recompute wrote.

    Attributes:
      job_id: The row of ``attribution_recompute_jobs``.
      run_count: How often this window was recomputed under this model and version, this time included.
      conversions: Conversions in the window.
      allocations: Rows written to ``attribution_allocations``.
      revenue_cents: Revenue of the conversions, which is also what was allocated.
    """

    job_id: UUID
    run_count: int
    conversions: int
    allocations: int
    revenue_cents: int


def parse_window(window_start: object, window_end: object) -> Window:
    """Return the window between two times.

    Arguments:
      window_start, window_end: ISO 8601 strings (with ``Z``, an offset, or none; a date alone is its midnight),
        datetimes or dates. A time without an offset is UTC.

    Raises:
      ValueError: When one is no time, or the start is not before the end; the text names argument and value.
    """
    start, end = _parse_time("window_start", window_start), _parse_time("window_end", window_end)
    if start >= end:
        raise ValueError(
            f"window_start {start.isoformat()} must be before window_end {end.isoformat()}: "
            "the window holds its start and not its end"
        )
    return Window(start, end)


def _parse_time(argument: str, value: object) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{argument}: {shown(value)} is not an ISO 8601 timestamp") from None
    if isinstance(value, datetime):
        try:
            return utc(value)
        except OverflowError:
            raise ValueError(f"{argument}: {shown(value.isoformat())} is out of range in UTC") from None
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    raise ValueError(f"{argument}: {shown(value)} is not an ISO 8601 timestamp")


def utc(value: datetime) -> datetime:
    """Return ``value`` in UTC, which is also what a time without an offset is taken for.

    Raises:
      OverflowError: When that falls outside the years 1 to 9999.
    """
    return value.replace(tzinfo=UTC) if value.utcoffset() is None else value.astimezone(UTC)


def parse_model(value: object) -> Model:
    """Return the model of that name.

    Raises:
      ValueError: When there is none; the text names the value and the models there are.
    """
    try:
        return Model(value)  # type: ignore[arg-type]
    except ValueError:
        known = ", ".join(model.value for model in Model)
        raise ValueError(f"model: {shown(value)} is not one of {known}") from None


def parse_model_version(value: object) -> str:
    """Return ``value`` if it can be a model's version: 1 to 50 characters, none of them NUL.

    Raises:
      ValueError: Naming the value and what is wrong with it.
    """
    return check_text("model_version", value, MODEL_VERSION_LENGTH)


def recompute(session: Session, tenant_id: UUID, window: Window, model: Model, model_version: str) -> Recomputed:
    """Recompute a window: replace its allocations, and the totals of its days, by what the events say now.

    A re-run writes the same rows and counts one up in ``run_count``. A second recompute of the same window under the
    same model and version waits until the first commits; others do not wait. All work is done by Postgres, so memory
    here does not grow with the window.

    Arguments:
      session: A :func:`db.session.transaction` bound to ``tenant_id``. The caller commits.
      tenant_id: Whose events.
      window: See :func:`parse_window`.
      model: See this module's text.
      model_version: Tells results of different releases of a model apart.

    Raises:
      ValueError: When there is no such tenant (or the session is bound to another), when an argument is bad, or when
        the window's revenue is more cents than a bigint holds.
      ConfigurationError: When an ``attribution_*`` table is missing or has another shape than ours.
      sqlalchemy.exc.DBAPIError: When Postgres fails or waits too long for another recompute of this window. The
        transaction is of no further use then.
    """
    model, version = parse_model(model), parse_model_version(model_version)
    check_tables(session, (AttributionEvent, AttributionRecomputeJob, AttributionChannelDay, AttributionAllocation))
    with naming_tenant(tenant_id):
        job_id, run_count = session.execute(
            _TAKE_JOB,
            {
                "tenant_id": tenant_id,
                "start": window.start,
                "end": window.end,
                "model": model.value,
                "model_version": version,
                "correlation_id": current_correlation_id(),
            },
        ).one()
    job = {"tenant_id": tenant_id, "job_id": job_id}
    session.execute(_DELETE, job)
    with _merge_joins(session):
        session.execute(_ALLOCATE[model], {**job, "start": window.start, "end": window.end})
    conversions, allocations, revenue = session.execute(_COUNT, {**job, "one_each": model is Model.LAST_TOUCH}).one()
    if revenue > MAX_CENTS:
        raise ValueError(
            f"window_start {window.start.isoformat()}, window_end {window.end.isoformat()}: "
            f"the revenue adds up to {revenue} cents, more than the {MAX_CENTS} a bigint holds; use a smaller window"
        )
    done = Recomputed(UUID(str(job_id)), run_count, conversions, allocations, int(revenue))
    session.execute(
        _FINISH,
        {**job, "conversions": conversions, "allocations": allocations, "revenue_cents": done.revenue_cents},
    )
    # Last, because others may wait for it.
    with _merge_joins(session):
        replace_channel_days(session, tenant_id, window, model, version, done.job_id)
    return done


# --- SQL ------------------------------------------------------------------------------------------

# The row lock is what a second recompute of the same window waits for; it then sees what the first committed.
_TAKE_JOB = text(
    """
    INSERT INTO attribution_recompute_jobs
        (tenant_id, window_start, window_end, model, model_version, correlation_id)
    VALUES (:tenant_id, :start, :end, :model, :model_version, CAST(:correlation_id AS uuid))
    ON CONFLICT (tenant_id, window_start, window_end, model, model_version) DO UPDATE SET
        run_count = attribution_recompute_jobs.run_count + 1,
        last_run_at = CURRENT_TIMESTAMP,
        correlation_id = EXCLUDED.correlation_id
    RETURNING id, run_count
    """
)

_DELETE = text("DELETE FROM attribution_allocations WHERE tenant_id = :tenant_id AND job_id = :job_id")

# Every conversion has exactly one row at position 0 or 1, except where only its last touch has a row at all.
_COUNT = text(
    """
    SELECT count(*) FILTER (WHERE position <= 1 OR :one_each), count(*), coalesce(sum(allocated_cents), 0)
    FROM attribution_allocations WHERE tenant_id = :tenant_id AND job_id = :job_id
    """
)

_FINISH = text(
    """
    UPDATE attribution_recompute_jobs
    SET conversions = :conversions, allocations = :allocations, revenue_cents = :revenue_cents
    WHERE tenant_id = :tenant_id AND id = :job_id
    """
)

# One scan and one sort number everything: a touch's seq is its position among its visitor's touches, a conversion's
# is how many touches came before it. Collation "C" makes the order the same on every server, and sorts faster.
_EVENTS = """
    WITH events AS MATERIALIZED (
        SELECT
            event_id COLLATE "C" AS event_id,
            visitor_id COLLATE "C" AS visitor_id,
            event_type = 'touch' AS is_touch,
            channel,
            revenue_cents,
            occurred_at,
            count(*) FILTER (WHERE event_type = 'touch') OVER (
                PARTITION BY visitor_id COLLATE "C"
                ORDER BY occurred_at, event_type = 'conversion', event_id COLLATE "C"
                ROWS UNBOUNDED PRECEDING
            ) AS seq
        FROM attribution_events
        WHERE tenant_id = :tenant_id AND event_type IN ('touch', 'conversion')
          AND occurred_at >= :start AND occurred_at < :end
    ),
    conversions AS (
        SELECT event_id, visitor_id, revenue_cents, occurred_at, seq AS touches FROM events WHERE NOT is_touch
    )
    INSERT INTO attribution_allocations
        (tenant_id, job_id, conversion_id, position, touch_id, channel, allocated_cents)
    SELECT :tenant_id, :job_id, event_id, 0, NULL, 'direct', revenue_cents FROM conversions WHERE touches = 0
    UNION ALL
    SELECT :tenant_id, :job_id, conversion_id, position, touch_id, channel, cents FROM ({shares}) shares
"""

_ONE_TOUCH = """
    SELECT c.event_id AS conversion_id, t.seq AS position, t.event_id AS touch_id, t.channel, {cents} AS cents
    FROM conversions c JOIN events t ON t.visitor_id = c.visitor_id AND t.is_touch AND {which}
"""

# All remainders are equal, so the cents left over go to the first positions, and nothing needs sorting.
_EQUAL = "c.revenue_cents / c.touches + CASE WHEN t.seq <= mod(c.revenue_cents, c.touches) THEN 1 ELSE 0 END"

_BY_WEIGHT = """
    SELECT conversion_id, position, touch_id, channel,
           quota + CASE
               WHEN row_number() OVER (PARTITION BY conversion_id ORDER BY remainder DESC, position)
                    <= revenue_cents - given THEN 1 ELSE 0
           END AS cents
    FROM (
        SELECT *, sum(quota) OVER (PARTITION BY conversion_id) AS given
        FROM (
            SELECT *, div(revenue_cents * weight, total) AS quota, mod(revenue_cents * weight, total) AS remainder
            FROM (
                SELECT *, sum(weight) OVER (PARTITION BY conversion_id) AS total
                FROM (
                    SELECT c.event_id AS conversion_id, c.revenue_cents, t.seq AS position, t.event_id AS touch_id,
                           t.channel, CAST({weight} AS numeric) AS weight
                    FROM conversions c
                    JOIN events t ON t.visitor_id = c.visitor_id AND t.is_touch AND t.seq <= c.touches
                ) weighted
            ) totalled
        ) quoted
    ) summed
"""

_POSITION_WEIGHT = "CASE WHEN c.touches < 3 THEN 1 WHEN t.seq IN (1, c.touches) THEN 2 * (c.touches - 2) ELSE 1 END"

# 604800 s are 7 days. From 30 half-lives on the weight is 1, and 2^-x of a large x would be an underflow error.
_DECAY_WEIGHT = """
    floor(power(
        CAST(2 AS double precision),
        30 - least(30, CAST(extract(epoch FROM c.occurred_at - t.occurred_at) AS double precision) / 604800)
    ))
"""

_ALLOCATE = {
    model: text(_EVENTS.format(shares=shares))
    for model, shares in {
        Model.FIRST_TOUCH: _ONE_TOUCH.format(cents="c.revenue_cents", which="t.seq = 1 AND c.touches > 0"),
        Model.LAST_TOUCH: _ONE_TOUCH.format(cents="c.revenue_cents", which="t.seq = c.touches"),
        Model.LINEAR: _ONE_TOUCH.format(cents=_EQUAL, which="t.seq <= c.touches"),
        Model.TIME_DECAY: _BY_WEIGHT.format(weight=_DECAY_WEIGHT),
        Model.POSITION_BASED: _BY_WEIGHT.format(weight=_POSITION_WEIGHT),
    }.items()
}


@contextmanager
def _merge_joins(session: Session) -> Iterator[None]:
    """Have visitors joined by sorting, whatever the planner believes.

    After a load there are no statistics yet, and workers may not make them: the planner then expects one event where a
    million are, and a nested loop over them does not end. A hash join would, but holds all events of a visitor in
    memory, and "anonymous" may be one visitor.
    """
    switch = text(
        "SELECT set_config('enable_nestloop', :nestloop, true), set_config('enable_hashjoin', :hashjoin, true)"
    )
    before = session.execute(
        text("SELECT current_setting('enable_nestloop') AS nestloop, current_setting('enable_hashjoin') AS hashjoin")
    ).one()
    session.execute(switch, {"nestloop": "off", "hashjoin": "off"})
    yield
    # Not when it failed: the settings end with the transaction.
    session.execute(switch, before._asdict())
