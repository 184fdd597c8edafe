"""How long a server asks to be left alone: the header ``Retry-After``, as seconds or as a date.

https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Final

#: Seconds that are granted: a server that asks for more is asked again, and may say so again.
AT_MOST: Final = 3_600.0


def retry_after(
    headers: Mapping[str, str], now: datetime, uniform: Callable[[float, float], float] = random.uniform
) -> int | None:
    """Return the milliseconds that ``headers`` ask for, and a little more; None where they say nothing of the kind.

    The little, up to a tenth and a second, keeps many that were told the same from coming back together.

    Arguments:
      headers: Of the answer, by names in any case.
      now: The time, for a date; that of the answer's own header ``Date`` goes before, which is the same clock's.
      uniform: Jitter.
    """
    asked = _seconds(headers.get("retry-after"), _date(headers.get("date")) or now)
    if asked is None:
        return None
    seconds = min(max(asked, 0.0), AT_MOST)
    return int(1000 * (seconds + uniform(0, seconds / 10 + 1)))


def _seconds(value: str | None, now: datetime) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        date = _date(value)
        return None if date is None else (date - now).total_seconds()
    return seconds if isfinite(seconds) and seconds >= 0 else None


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
        return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None
