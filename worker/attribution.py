"""Queue ``attribution``: a tenant's marketing attribution, recomputed window by window."""

from __future__ import annotations

from loguru import logger

from db.session import transaction
from db.tenancy import require_tenant
from worker.recompute import parse_model, parse_model_version, parse_window, recompute
from worker.routing import actor


# What is wrong with the input is as wrong at the fourth try.
@actor(throws=ValueError)
def recompute_window(
    window_start: str,
    window_end: str,
    model: str = "linear",
    model_version: str = "1.0.0",
    fail: bool = False,
) -> None:
    """Share the revenue of the tenant's conversions in a window among the touches that led to them.

    Running it again gives the same rows, with ``run_count`` one higher.

    Arguments:
      window_start, window_end: ISO 8601; a time without an offset is UTC. The window holds its start and not its end.
      model: One of :class:`worker.recompute.Model`.
      model_version: Tells results of different releases of a model apart; at most 50 characters.
      fail: Fail on purpose, to see what a failure looks like.

    Raises:
      ValueError: Naming the argument and its value. Not retried.
      db.errors.ConfigurationError: When the tables have another shape than ours.
    """
    if fail:
        raise ValueError("attribution recompute failure requested")
    window = parse_window(window_start, window_end)
    chosen, version = parse_model(model), parse_model_version(model_version)
    tenant_id = require_tenant()
    with transaction() as session:
        done = recompute(session, tenant_id, window, chosen, version)
    logger.info(
        "recomputed {} with {}: {} conversions, {} allocations, run {}",
        window,
        chosen.value,
        done.conversions,
        done.allocations,
        done.run_count,
    )
