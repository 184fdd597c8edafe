"""Queue ``llm``: what is put to, or comes from, a language model."""

from __future__ import annotations

from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import dramatiq
from loguru import logger

from db.current_message import current_execution
from db.errors import ConfigurationError
from db.session import transaction
from db.tenancy import require_tenant
from worker.arguments import shown
from worker.broker import classifier, settings
from worker.explain.call import LanguageModel
from worker.explain.errors import BudgetExceeded, classify
from worker.explain.limits import limits_of
from worker.explain.patience import counting_waits, retry_when
from worker.explain.window import Asking, explain
from worker.recompute import parse_model, parse_model_version, parse_window
from worker.routing import actor
from worker.windows import channel_totals

classify(classifier)


@actor(throws=ValueError)
def describe_window(window_start: str, window_end: str, model: str = "linear", model_version: str = "1.0.0") -> None:
    """Log a recomputed window's result in a sentence: the facts that a language model is given to explain.

    Arguments:
      window_start, window_end, model, model_version: As :func:`worker.attribution.recompute_window` was given them.

    Raises:
      ValueError: Naming the argument and its value; also when the window was never recomputed.
    """
    window = parse_window(window_start, window_end)
    chosen, version = parse_model(model), parse_model_version(model_version)
    tenant_id = require_tenant()
    with transaction() as session:
        totals = channel_totals(session, tenant_id, window, chosen, version)
    shares = ", ".join(f"{t.channel} {t.cents / 100:,.2f}" for t in totals) or "no revenue"
    logger.info("{} by {}: {}", window, chosen.value, shares)


@actor(throws=(ValueError, ConfigurationError, BudgetExceeded), retry_when=retry_when)
def explain_window(
    window_start: str,
    window_end: str,
    model: str = "linear",
    model_version: str = "1.0.0",
    force: bool = False,
) -> None:
    """Have a language model explain a recomputed window in plain words, and store its answer, its tokens and its cost.

    Asked again while the window's totals are the same, it makes no call. It waits its turn for about a day, and is
    otherwise tried again six times; see :mod:`worker.explain.patience`.

    Arguments:
      window_start, window_end, model, model_version: As :func:`worker.attribution.recompute_window` was given them.
      force: Ask again though the totals are the same.

    Raises:
      ValueError: Naming the argument and its value; when the window was never recomputed; when the API refuses to
        explain it. Not retried.
      db.errors.ConfigurationError: When there is no key, or key, address, model or account do not let us. Not retried.
      worker.explain.errors.BudgetExceeded: When the call would take the tenant past its monthly budget. Not retried.
      worker.explain.errors.LimitReached: When it must wait its turn.
      worker.explain.errors.UpstreamFailed: When the API cannot be reached, or fails.
    """
    window = parse_window(window_start, window_end)
    chosen, version = parse_model(model), parse_model_version(model_version)
    if not isinstance(force, bool):
        raise ValueError(f"force: must be true or false, not {shown(force)}")  # noqa: TRY004 - as all bad input
    tenant_id = require_tenant()
    asking = Asking(
        LanguageModel.of(settings),
        limits_of(dramatiq.get_broker(), overall=settings.llm_rate, tenant=settings.llm_tenant_rate),
        settings.llm_monthly_budget,
    )
    with counting_waits() as waits:
        done = explain(tenant_id, window, chosen, version, asking, call_id=_call_id(), waits=waits, force=force)
    if done.called is None:
        logger.info("{} by {} is explained already", window, chosen.value)
    else:
        logger.info(
            "explained {} by {}: {} and {} tokens, {:.4f} cents",
            window,
            chosen.value,
            done.called.input_tokens,
            done.called.output_tokens,
            done.called.microcents / 1_000_000,
        )


def _call_id() -> UUID:
    """Return what names the call of the message at hand, in all its executions."""
    execution = current_execution()
    if execution is None:
        return uuid4()
    # Other producers' ids may be anything, lone surrogates included.
    return uuid5(NAMESPACE_URL, execution.message_id.encode("utf-8", "backslashreplace").decode())
