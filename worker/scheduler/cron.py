"""When a cron expression ticks in a time zone; a calculation, in which no clock is asked.

What reads expressions is cronsim, which follows Debian's cron. Two things are added. An expression that names hours in
any way, also as ``*/2`` or beside ``*`` minutes, ticks once for each local time that it names: at the first of two
where the clock goes back, right after the gap where it goes forward. And whatever cronsim gives, time goes forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

#: Any time will do to see whether an expression ever ticks.
_SOMETIME: Final = datetime(2024, 1, 1, tzinfo=UTC)
#: The most that a clock was ever set back: a day and an hour, where a country changes its side of the date line.
_SET_BACK_AT_MOST: Final = timedelta(hours=25)
#: In which the last tick is looked for, before all the time there is.
_WINDOWS: Final = (timedelta(minutes=1), timedelta(hours=1), timedelta(days=1), timedelta(days=32))
_FORM: Final = "five fields, minute hour day month weekday, or six with seconds before them"


class InvalidExpression(ValueError):
    """Raised when a cron expression or a time zone is none; the message says what is wrong with which."""


@dataclass(frozen=True)
class Cron:
    """A cron expression in a time zone.

    Arguments:
      expression: Five fields, or six with seconds before them, which only an expression may have whose hours are ``*``.
      timezone: An IANA name.

    Raises:
      InvalidExpression: When either is none, or the expression never ticks.
    """

    expression: str
    timezone: str = "UTC"
    _zone: ZoneInfo = field(init=False, repr=False, compare=False)
    _read: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = str(self.expression).split()
        # Frozen, but not made yet.
        object.__setattr__(self, "expression", " ".join(words))
        object.__setattr__(self, "_zone", _zone(self.timezone))
        object.__setattr__(self, "_read", _once_for_each_local_time(self.expression, words))
        try:
            # It may be that no year has such a day.
            ticks = self.after(_SOMETIME) is not None
        except CronSimError as e:
            said = str(e)
            raise InvalidExpression(f"{self.expression!r}: {said[:1].lower()}{said[1:]}; {_FORM}") from None
        if not ticks:
            raise InvalidExpression(f"{self.expression!r} never comes")

    def after(self, moment: datetime) -> datetime | None:
        """Return the first tick after ``moment``, in UTC; None where there is none within fifty years."""
        since = moment
        # Where a clock goes back, cronsim gives the first of two times, also to whoever asks after it.
        while since - moment < _SET_BACK_AT_MOST:
            tick = next(CronSim(self._read, since.astimezone(self._zone)), None)
            if tick is None:
                return None
            found = tick.astimezone(UTC)
            if found > moment:
                return found
            since += timedelta(minutes=1)
        return None

    def latest(self, first: datetime, until: datetime) -> datetime:
        """Return the last tick that is not after ``until``.

        Arguments:
          first: A tick, not after ``until``.
          until: When.
        """
        for window in _WINDOWS:
            since = until - window
            if since <= first:
                break
            found = self.after(since)
            if found is not None and found <= until:
                first = found
                break
        while (later := self.after(first)) is not None and later <= until:
            first = later
        return first


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError, TypeError):
        # Among them a folder, and what leads out of the folder of zones.
        raise InvalidExpression(f"there is no time zone {name!r}: say one by its IANA name, as Europe/Berlin") from None


def _once_for_each_local_time(expression: str, words: list[str]) -> str:
    """Return the expression as cronsim takes it for one that ticks once for each local time, if hours are named."""
    if len(words) not in {5, 6}:
        raise InvalidExpression(f"{expression!r}: {len(words)} fields; {_FORM}")
    *seconds, minutes, hours, day, month, weekday = words
    if hours == "*":
        return expression
    if seconds:
        raise InvalidExpression(f"{expression!r}: seconds are for what runs in every hour, and hours then *")
    # A star at their beginning is how cron tells the others.
    minutes, hours = (
        f"{every}{said[1:]}" if said.startswith("*") else said for said, every in ((minutes, "0-59"), (hours, "0-23"))
    )
    return f"{minutes} {hours} {day} {month} {weekday}"
