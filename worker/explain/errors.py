"""Why a window is not explained, now or ever.

Those that are ``Retry`` are tried again, after their ``delay`` where they have one; the others are a row at the first
try. None of them holds the key, nor another exception that could: they are raised ``from None``.
"""

from __future__ import annotations

from typing import Final

from dramatiq.errors import RateLimitExceeded, Retry

from db.errors import DramaturgError
from middleware.classification import TIMEOUT, UPSTREAM_ERROR, Classifier

BUDGET_EXCEEDED: Final = "budget_exceeded"


class LimitReached(RateLimitExceeded, Retry):
    """Raised when it must wait its turn: for our rate limits, the API's, or what calls under way leave of the budget.

    Waits are counted by themselves, see :mod:`worker.explain.patience`.
    """


class UpstreamFailed(Retry):
    """Raised when the API cannot be reached, answers 5xx, or answers with what is no answer.

    Attributes:
      may_have_cost: Whether the API may have worked for it.
    """

    def __init__(self, message: str, delay: int | None = None, *, may_have_cost: bool) -> None:
        super().__init__(message, delay)
        self.may_have_cost = may_have_cost


class UpstreamTimeout(UpstreamFailed):
    """Raised when the API does not answer in time."""


class BudgetExceeded(DramaturgError):
    """Raised before a call that would take the tenant past its monthly budget. Not retried: the month may be long."""


class RequestRefused(DramaturgError, ValueError):
    """Raised when the API will not answer this: it takes the request for a bad one, or its content for forbidden."""


def classify(classifier: Classifier) -> None:
    """Tell ``classifier`` what these are, as an application tells it of its own."""
    classifier.add(BudgetExceeded, BUDGET_EXCEEDED)
    classifier.add(UpstreamFailed, UPSTREAM_ERROR)
    classifier.add(UpstreamTimeout, TIMEOUT)
