"""Text for people's terminals: short, and harmless whatever a failure holds."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from db.far_time import FarTime

#: Format characters that scripts and emoji are written with; the others turn text around, or hide it.
_JOINERS = frozenset("\u200c\u200d")
_UNITS = (("w", 7 * 86_400), ("d", 86_400), ("h", 3_600), ("m", 60))


def printable(text: str) -> str:
    """Return ``text`` with everything that drives a terminal written as an escape: ``\\x1b``. Lines stay lines."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_harmless(c) else _escape(c) for c in text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return the first line of ``text`` that says something, harmless."""
    line = next((line for line in text.splitlines() if line and not line.isspace()), "")
    return printable(" ".join(line.split()))


def _is_harmless(c: str) -> bool:
    return c in "\n\t" or c in _JOINERS or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


def last_name(name: str) -> str:
    """Return what follows the last dot."""
    return name.rpartition(".")[2] or name


def short(value: UUID) -> str:
    """Return the beginning of an id, which commands take as well."""
    return str(value)[:8]


def counted(count: int, what: str, whats: str | None = None) -> str:
    """Return ``1 job``, ``2 jobs``, ``1,000 jobs``."""
    return f"{count:,} {what if count == 1 else whats or what + 's'}"


def listed(words: Iterable[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def age(then: datetime, now: datetime) -> str:
    """Return how long ago, in one unit: ``45s``, ``12m``, ``3h``, ``5d``, ``8w``."""
    seconds = int(max(timedelta(0), now - then).total_seconds())
    for unit, size in _UNITS:
        if seconds >= (2 * size if unit == "w" else size):
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def short_age(seconds: float | None) -> str:
    """Return so many seconds in one unit that leaves two of it at least: ``119 s``, ``2 min``; a dash for None."""
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(then: datetime, now: datetime) -> str:
    """Return how long ago and when exactly, in UTC as logs are."""
    return f"{age(then, now)} ago ({moment(then)})"


def moment(then: datetime) -> str:
    """Return a time to the second."""
    from datetime import UTC

    if isinstance(then, FarTime):
        return then.isoformat()
    return f"{then.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def to_json(value: object) -> str:
    """Return ``value`` as one line of JSON in ASCII: dataclasses as objects, ids and times as strings."""
    # What JSON leaves as it is and a terminal does not.
    return json.dumps(_plain(value)).replace("\x7f", "\\u007f")


def as_dict(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields as they are; :func:`dataclasses.asdict` would copy them, and a Counter wrongly."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(v) for name, v in as_dict(value).items()}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, UUID) else value
