"""What a tenant may spend in a calendar month (UTC): reserved before a call, settled after it.

Money is counted in millionths of a cent, *microcents*: a price in cents for a million tokens is that many of them for
one token. Before a call what it may cost at most is reserved, under a lock on the tenant's row of the month, so that
two at once cannot both have the last of it. What it did cost takes the reservation's place. If nobody learns that,
because the worker was killed or the answer never came, the reservation is taken over by the message's next execution,
or counts no more after a while; what the provider then charges is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from worker.explain.errors import BudgetExceeded, LimitReached

MICROCENTS: Final = 1_000_000
#: What a bigint still holds after many calls of it: a price or a count beyond is nonsense.
_COST_AT_MOST: Final = 10**15


@dataclass(frozen=True, slots=True)
class Prices:
    """Cents for 1,000,000 tokens."""

    input: Decimal
    output: Decimal

    def cost(self, input_tokens: int, output_tokens: int) -> int:
        """Return what so many tokens cost, in microcents, rounded up."""
        exact = self.input * input_tokens + self.output * output_tokens
        return min(int(exact.to_integral_value(ROUND_CEILING)), _COST_AT_MOST)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call took, and what that cost, in microcents."""

    input_tokens: int
    output_tokens: int
    microcents: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is held for a call; see :func:`reserve`."""

    tenant_id: UUID
    call_id: UUID
    month: date


def check(session: Session, tenant_id: UUID, microcents: int, default: int | None, at: datetime | None = None) -> None:
    """Look whether a call can still be paid for this month, reserving nothing.

    Arguments:
      session: Bound to the tenant.
      tenant_id: Whose.
      microcents: What it may cost at most.
      default: Cents that a tenant without a budget of its own may spend; None for no limit.
      at: The time; Postgres' by default.

    Raises:
      BudgetExceeded: When it would take the tenant past its budget.
    """
    row = session.execute(_LOOK, {"tenant_id": tenant_id, "at": at}).one()
    budget = _budget(row, default)
    if not _fits(row.spent, microcents, budget):
        raise _exceeded(row, microcents, budget)


def reserve(
    session: Session,
    tenant_id: UUID,
    call_id: UUID,
    microcents: int,
    default: int | None,
    *,
    lasts: timedelta,
    wait: int,
    at: datetime | None = None,
) -> Reservation:
    """Reserve what a call may cost at most. Others of the tenant wait until the transaction ends, so make it short.

    A reservation for the same ``call_id``, of an execution that ended otherwise, is replaced.

    Arguments:
      session, tenant_id, microcents, default, at: As for :func:`check`.
      call_id: Of the message.
      lasts: How long it counts if it is never settled: longer than a call may take.
      wait: Milliseconds to wait where others hold what is left.

    Raises:
      BudgetExceeded: When the call would take the tenant past its budget.
      LimitReached: When it would if all calls under way cost what they may: those that do not leave room.
    """
    session.execute(_LOCK, {"tenant_id": tenant_id, "at": at})
    # After the lock, as a statement of its own, which sees what those before have committed.
    row = session.execute(_LOOK, {"tenant_id": tenant_id, "at": at}).one()
    budget = _budget(row, default)
    if not _fits(row.spent, microcents, budget):
        raise _exceeded(row, microcents, budget)
    session.execute(_FORGET, {"tenant_id": tenant_id, "at": at})
    held = session.execute(_HELD, {"tenant_id": tenant_id, "call_id": call_id, "month": row.month}).scalar_one()
    if not _fits(row.spent + int(held), microcents, budget):
        raise LimitReached(f"what is left of the budget for {row.month:%Y-%m} is held by calls under way", delay=wait)
    session.execute(
        _RESERVE,
        {
            "tenant_id": tenant_id,
            "call_id": call_id,
            "month": row.month,
            "microcents": microcents,
            "lasts": lasts,
            "at": at,
        },
    )
    return Reservation(tenant_id, call_id, row.month)


def settle(session: Session, reservation: Reservation, usage: Usage) -> None:
    """Put what a call did cost in the place of what was reserved for it, in the month in which it was."""
    values = {"tenant_id": reservation.tenant_id, "month": reservation.month}
    session.execute(
        _SPEND,
        {**values, "input": usage.input_tokens, "output": usage.output_tokens, "microcents": usage.microcents},
    )
    release(session, reservation)


def release(session: Session, reservation: Reservation) -> None:
    """Give back what was reserved for a call that cost nothing."""
    session.execute(_RELEASE, {"tenant_id": reservation.tenant_id, "call_id": reservation.call_id})


def _budget(row: Any, default: int | None) -> int | None:
    cents = row.own if row.has_own else default
    return None if cents is None else cents * MICROCENTS


def _fits(spent: int, microcents: int, budget: int | None) -> bool:
    # A budget of nothing allows no call, not even one that costs nothing.
    return budget is None or (budget > 0 and spent + microcents <= budget)


def _exceeded(row: Any, microcents: int, budget: int | None) -> BudgetExceeded:
    assert budget is not None  # noqa: S101 - without one everything fits
    return BudgetExceeded(
        f"the budget for {row.month:%Y-%m} is {_cents(budget)} cents, of which {_cents(row.spent)} are spent, "
        f"and this call may cost {_cents(microcents)}"
    )


def _cents(microcents: int) -> str:
    return f"{Decimal(microcents) / MICROCENTS:,.4f}".rstrip("0").rstrip(".")


# --- SQL ------------------------------------------------------------------------------------------

_AT = "coalesce(CAST(:at AS timestamptz), now())"
_MONTH = f"CAST(date_trunc('month', {_AT} AT TIME ZONE 'UTC') AS date)"

_LOOK = text(
    f"""
    SELECT {_MONTH} AS month, own.tenant_id IS NOT NULL AS has_own, own.monthly_cents AS own,
        coalesce(spending.spent_microcents, 0) AS spent
    FROM (SELECT CAST(:tenant_id AS uuid) AS id) tenant
    LEFT JOIN worker_llm_budgets own ON own.tenant_id = tenant.id
    LEFT JOIN worker_llm_spending spending ON spending.tenant_id = tenant.id AND spending.month = {_MONTH}
    """
)

_LOCK = text(
    f"""
    INSERT INTO worker_llm_spending (tenant_id, month) VALUES (:tenant_id, {_MONTH})
    ON CONFLICT (tenant_id, month) DO UPDATE SET month = EXCLUDED.month
    """
)

_FORGET = text(f"DELETE FROM worker_llm_reservations WHERE tenant_id = :tenant_id AND reserved_until <= {_AT}")

_HELD = text(
    """
    SELECT coalesce(sum(microcents), 0) FROM worker_llm_reservations
    WHERE tenant_id = :tenant_id AND month = :month AND call_id <> :call_id
    """
)

_RESERVE = text(
    f"""
    INSERT INTO worker_llm_reservations (tenant_id, call_id, month, microcents, reserved_until)
    VALUES (:tenant_id, :call_id, :month, :microcents, {_AT} + CAST(:lasts AS interval))
    ON CONFLICT (tenant_id, call_id) DO UPDATE SET
        month = EXCLUDED.month, microcents = EXCLUDED.microcents, reserved_until = EXCLUDED.reserved_until
    """
)

_SPEND = text(
    """
    INSERT INTO worker_llm_spending AS known (tenant_id, month, calls, input_tokens, output_tokens, spent_microcents)
    VALUES (:tenant_id, :month, 1, :input, :output, :microcents)
    ON CONFLICT (tenant_id, month) DO UPDATE SET
        calls = known.calls + 1,
        input_tokens = known.input_tokens + EXCLUDED.input_tokens,
        output_tokens = known.output_tokens + EXCLUDED.output_tokens,
        spent_microcents = known.spent_microcents + EXCLUDED.spent_microcents
    """
)

_RELEASE = text("DELETE FROM worker_llm_reservations WHERE tenant_id = :tenant_id AND call_id = :call_id")
