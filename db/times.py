"""Times that Postgres knows and Python does not: infinity, years before 1 and after 9999.

psycopg raises where it meets one, so a single row of a tenant that wrote one would keep an operator from seeing all
others. In our sessions it is the nearest time that Python has, and remembers what it was in Postgres: given back, it
is that.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, SupportsIndex

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.pq import Format

_NAME = "timestamptz"
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


class _FarTimeDumper(Dumper):
    oid = psycopg.adapters.types[_NAME].oid

    def dump(self, obj: FarTime) -> bytes:
        return (obj.written or datetime.isoformat(obj)).encode("ascii")


class _TimeLoader(Loader):
    """psycopg's own, but for what that cannot load. Around it and not below, because that written in C is final."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        self._usual = psycopg.adapters.get_loader(oid, Format.TEXT)(oid, context)  # type: ignore[misc]

    def load(self, data: Buffer) -> datetime:
        try:
            found: datetime = self._usual.load(data)
            if found.year in {1, 9999}:
                # In another zone it may be beyond.
                found.astimezone(UTC)
        except (psycopg.DataError, OverflowError):
            return FarTime.of(bytes(data).decode("ascii"))
        return found


def adapt(adapters: AdaptersMap) -> None:
    """Let a connection load and take such times; ``adapters`` are its own."""
    adapters.register_loader(_NAME, _TimeLoader)
    adapters.register_dumper(FarTime, _FarTimeDumper)
