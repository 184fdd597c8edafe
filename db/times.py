"""Times that Postgres knows and Python does not: infinity, years before 1 and after 9999.

psycopg raises where it meets one, so a single row of a tenant that wrote one would keep an operator from seeing all
others. In our sessions it is the nearest time that Python has, and remembers what it was in Postgres: given back, it
is that.
"""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Dumper, Loader
from psycopg.pq import Format

from db.far_time import FarTime

_NAME = "timestamptz"


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
