"""Why an alert did not arrive. None of these holds the address or a secret: they are raised ``from None``."""

from __future__ import annotations

from dramatiq.errors import Retry

from db.errors import DramaturgError
from middleware.classification import TIMEOUT, UPSTREAM_ERROR, Classifier


class AlertNotDelivered(Retry):
    """Raised when the receiver is away, busy or failing. Tried again, after its ``delay`` where it has one."""


class AlertTimeout(AlertNotDelivered):
    """Raised when the receiver does not answer in time."""


class AlertRefused(DramaturgError):
    """Raised when the receiver will not have it, now or ever. Not tried again."""


def classify(classifier: Classifier) -> None:
    """Tell ``classifier`` what these are, as an application tells it of its own."""
    classifier.add(AlertNotDelivered, UPSTREAM_ERROR)
    classifier.add(AlertTimeout, TIMEOUT)
    classifier.add(AlertRefused, UPSTREAM_ERROR)
