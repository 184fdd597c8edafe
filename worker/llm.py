"""Queue ``llm``: what is put to, or comes from, a language model."""

from __future__ import annotations

from loguru import logger

from db.session import transaction
from db.tenancy import require_tenant
from worker.recompute import parse_model, parse_model_version, parse_window
from worker.routing import actor
from worker.windows import channel_totals


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
