"""Times that Postgres knows and Python does not, as they are in Python: see :mod:`db.times`, which loads them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, SupportsIndex

_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_INFINITE = {"infinity", "-infinity"}
_WRITTEN = re.compile(r"\d{4,6}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{1,6})?[+-]\d\d(:\d\d){0,2}( BC)?", re.ASCII)


class FarTime(datetime):
    """The first or the last moment of Python's, for one of Postgres' beyond it.

    Attributes:
      written: As Postgres writes it, in ISO 8601 but for what that has no words for.
    """

    written = ""

    @classmethod
    def of(cls, written: str) -> FarTime:
        """Return what Postgres wrote."""
        early = written.startswith(("-", "0")) or written.endswith("BC")
        edge = _FIRST if early else _LAST
        found = cls.combine(edge.date(), edge.timetz())
        found.written = written
        return found

    @classmethod
    def parse(cls, value: str) -> FarTime:
        """Return what :meth:`isoformat` gave.

        Raises:
          ValueError: When it is none.
        """
        if value in _INFINITE or (_WRITTEN.fullmatch(value) and _is_far(value)):
            return cls.of(value)
        raise ValueError(f"no time of Postgres' that Python does not have: {value!r}")

    def isoformat(self, sep: str = "T", timespec: str = "auto") -> str:
        """Return it as Postgres writes it."""
        return self.written or super().isoformat(sep, timespec)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # What is copied remembers it, too.
        return (FarTime.of, (self.written,)) if self.written else super().__reduce_ex__(protocol)


def _is_far(written: str) -> bool:
    """Tell of what looks like a time; of those of Python's first and last year some are, in zones of theirs."""
    return written.endswith("BC") or written[4] != "-" or written[:4] in {"0001", "9999"}


def moment_of(value: str) -> datetime:
    """Return what ``isoformat()`` of a time gave, whichever of both it was.

    Raises:
      ValueError: When it is none.
    """
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return FarTime.parse(value)
