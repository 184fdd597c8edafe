"""Queue ``maintenance``: checks on what other jobs have written."""

from __future__ import annotations

from loguru import logger

from db.session import transaction
from db.tenancy import require_tenant
from worker.recompute import parse_model, parse_model_version, parse_window
from worker.routing import actor
from worker.windows import unbalanced_conversions


class UnbalancedAllocations(Exception):
    """Raised when a conversion's allocations do not add up to its revenue."""


@actor(throws=(ValueError, UnbalancedAllocations))
def verify_window(window_start: str, window_end: str, model: str = "linear", model_version: str = "1.0.0") -> None:
    """Check that the allocations of a recomputed window still add up, cent by cent, to the tenant's conversions.

    They stop doing so when events arrive late: the failure row says that the window wants recomputing.

    Arguments:
      window_start, window_end, model, model_version: As :func:`worker.attribution.recompute_window` was given them.

    Raises:
      ValueError: Naming the argument and its value; also when the window was never recomputed.
      UnbalancedAllocations: Naming the first conversions that do not add up.
    """
    window = parse_window(window_start, window_end)
    chosen, version = parse_model(model), parse_model_version(model_version)
    tenant_id = require_tenant()
    with transaction() as session:
        wrong = unbalanced_conversions(session, tenant_id, window, chosen, version)
    if wrong:
        raise UnbalancedAllocations(
            f"recompute {window} with {chosen.value}: "
            + "; ".join(
                f"{w.conversion_id}: {w.revenue_cents} cents earned, {w.allocated_cents} allocated" for w in wrong
            )
        )
    logger.info("{} adds up", window)
