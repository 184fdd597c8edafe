"""Which day, and under which models."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from worker.arguments import shown
from worker.recompute import Model, parse_model


def parse_day(value: object, now: datetime) -> date:
    """Return a day (UTC) that is over.

    Arguments:
      value: ISO 8601, as ``2025-01-31``, or a date.
      now: With a time zone.

    Raises:
      ValueError: When it is no date, or not over; the text names the value.
    """
    today = now.astimezone(UTC).date()
    try:
        # A datetime is a date, too.
        day = value if type(value) is date else date.fromisoformat(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"day: {shown(value)} is not an ISO 8601 date") from None
    if day >= today:
        raise ValueError(f"day: {day.isoformat()} is not over: in UTC it is {today.isoformat()}")
    return day


def day_before(moment: datetime) -> date:
    """Return the day (UTC) before that of ``moment``, which has a time zone."""
    return moment.astimezone(UTC).date() - timedelta(days=1)


def parse_models(value: object) -> tuple[Model, ...]:
    """Return models, each once.

    Raises:
      ValueError: When it is no list of them, or an empty one; the text names the value.
    """
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
        # As all bad input.
        raise ValueError(f"models: must be a list of models, not {shown(value)}")  # noqa: TRY004
    models = tuple(dict.fromkeys(_parse_model(each) for each in value))
    if not models:
        raise ValueError("models: must name at least one model")
    return models


def _parse_model(value: object) -> Model:
    try:
        return parse_model(value)
    except ValueError as e:
        raise ValueError(str(e).replace("model:", "models:", 1)) from None
