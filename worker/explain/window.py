"""Explains a window: from what is stored, or by a call that limits and budget allow."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from db.models import (
    AttributionAllocation,
    AttributionRecomputeJob,
    LlmAnswer,
    LlmBudget,
    LlmReservation,
    LlmSpending,
)
from db.session import transaction
from worker.explain import budget
from worker.explain.answers import Answer, store_answer, stored_answer
from worker.explain.budget import Reservation, Usage
from worker.explain.call import LanguageModel, Reply, ask
from worker.explain.errors import UpstreamFailed
from worker.explain.limits import Limits
from worker.explain.patience import wait_for
from worker.explain.prompt import Prompt, make_prompt
from worker.recompute import Model, Window
from worker.table_shapes import check_tables
from worker.windows import channel_totals

_TABLES: Final = (
    AttributionRecomputeJob,
    AttributionAllocation,
    LlmAnswer,
    LlmBudget,
    LlmSpending,
    LlmReservation,
)


@dataclass(frozen=True, slots=True)
class Asking:
    """How to ask.

    Arguments:
      language_model: Whom.
      limits: How often.
      monthly_budget: Cents that a tenant without a budget of its own may spend in a month; None for no limit.
    """

    language_model: LanguageModel
    limits: Limits
    monthly_budget: int | None


@dataclass(frozen=True, slots=True)
class Explained:
    """An answer, and what a call for it took; None where it was stored already."""

    text: str
    called: Usage | None


def explain(
    tenant_id: UUID,
    window: Window,
    model: Model,
    model_version: str,
    asking: Asking,
    *,
    call_id: UUID,
    waits: int = 0,
    force: bool = False,
    at: datetime | None = None,
    call: Callable[[LanguageModel, Prompt, int], Reply] = ask,
) -> Explained:
    """Return the explanation of a recomputed window: the stored one while its totals are the same, else a new one.

    No transaction is open during the call. A new answer, and what it cost, are committed together. Whoever dies
    between the call and that commit makes one more call.

    Arguments:
      tenant_id: Whose; must be bound.
      window, model, model_version: What was recomputed.
      asking: How to ask.
      call_id: Of the message: an answer that it brought already is not asked for again, forced or not.
      waits: How often the message has waited its turn.
      force: Ask though the stored answer is of the same totals.
      at: The time; Postgres' by default.
      call: Makes the call.

    Raises:
      ValueError: When the window was not recomputed, or the API refuses to explain it.
      ConfigurationError, BudgetExceeded: When it cannot be asked; the former also when a table of ours is missing.
      LimitReached, UpstreamFailed: When it should be asked again, later.
    """
    language_model, default = asking.language_model, asking.monthly_budget
    with transaction() as session:
        check_tables(session, _TABLES)
        totals = channel_totals(session, tenant_id, window, model, model_version)
        prompt = make_prompt(window, model, model_version, totals)
        stored = stored_answer(session, tenant_id, window, model, model_version)
        if stored is not None and _is_it(stored, prompt, call_id, force=force):
            return Explained(stored.text, None)
        most = language_model.cost_at_most(prompt).microcents
        # Before the limits, so that one without money takes no turn of others.
        budget.check(session, tenant_id, most, default, at)
    asking.limits.take(tenant_id, waits)
    with transaction() as session:
        reserved = budget.reserve(
            session,
            tenant_id,
            call_id,
            most,
            default,
            lasts=timedelta(seconds=2 * language_model.timeout + 60),
            wait=wait_for(waits),
            at=at,
        )
    reply = _call(lambda: call(language_model, prompt, waits), reserved)
    problem = reply.problem()
    with transaction() as session:
        budget.settle(session, reserved, reply.usage)
        if problem is None:
            store_answer(
                session,
                tenant_id,
                window,
                model,
                model_version,
                fingerprint=prompt.fingerprint,
                language_model=reply.language_model,
                answer=reply.text,
                usage=reply.usage,
                call_id=call_id,
            )
    if problem is not None:
        # Only now: it has cost what it has cost.
        raise problem
    return Explained(reply.text, reply.usage)


def _is_it(stored: Answer, prompt: Prompt, call_id: UUID, *, force: bool) -> bool:
    return stored.call_id == call_id or (not force and stored.fingerprint == prompt.fingerprint)


def _call(call: Callable[[], Reply], reserved: Reservation) -> Reply:
    """Call, and give back what was reserved where the API did no work for it."""
    try:
        return call()
    except Exception as e:
        if not (isinstance(e, UpstreamFailed) and e.may_have_cost):
            # What cannot be given back counts no more after a while, and the error at hand says more.
            with suppress(SQLAlchemyError), transaction() as session:
                budget.release(session, reserved)
        raise
