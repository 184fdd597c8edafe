"""A line as one JSON object: flat, with the fields that the README lists, and no longer than it may be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from worker.logs.line import Line
from worker.logs.options import Options

#: What extras may not be called; those that are become ``extra_NAME``.
FIELDS: Final = frozenset(
    {
        *("time", "level", "logger", "message", "process", "pid", "thread", "function", "line", "stack"),
        *("queue", "actor", "message_id", "tenant_id", "correlation_id", "attempt"),
        *("exception_type", "exception_message", "exception_traceback"),
        "trace_id",
    }
)
#: What stands where something was cut off.
CUT: Final = "… [cut]"
_CUT_AMID: Final = "\n… [cut] …\n"
#: Kept whole, however long the rest is.
_WHOLE: Final = {"time", "level"}


def as_json(line: Line, options: Options, pid: int, limit: int) -> str:
    """Return ``line`` as JSON, with its end, in at most ``limit`` bytes; what is too long is cut, the longest first."""
    return fit(_fields(line, options, pid), limit - 1, ascii=options.ascii) + "\n"


def _fields(line: Line, options: Options, pid: int) -> dict[str, Any]:
    moment = datetime.fromtimestamp(line.time, UTC)
    fields: dict[str, Any] = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": line.level,
        "logger": line.logger,
        "message": line.message,
    }
    if line.job is not None:
        fields.update(line.job)
    if line.raised is not None:
        fields["exception_type"] = line.raised.kind
        fields["exception_message"] = line.raised.message
        if line.raised.traceback is not None:
            fields["exception_traceback"] = line.raised.traceback
    if line.stack is not None:
        fields["stack"] = line.stack
    for name, value in line.extras.items():
        # Flat: what is not is a text.
        flat = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        fields[f"extra_{name}" if name in FIELDS else name] = flat
    fields |= {"process": options.process, "pid": pid, "thread": line.thread}
    if line.function is not None:
        fields |= {"function": line.function, "line": line.number}
    return fields


def fit(fields: Mapping[str, Any], limit: int, *, ascii: bool = False) -> str:  # noqa: A002
    """Return ``fields`` as JSON of at most ``limit`` bytes: texts give way, the longest first, then extras."""
    encoded = _dumps(fields, ascii=ascii)
    if len(encoded) * 4 <= limit or _size(encoded) <= limit:
        return encoded
    for kept in (fields, {name: value for name, value in fields.items() if name in FIELDS}):
        texts = {n: v for n, v in kept.items() if isinstance(v, str) and n not in _WHOLE}
        room = limit - _size(_dumps({**kept, **dict.fromkeys(texts, "")}, ascii=ascii))
        sizes = {name: _size(_dumps(text, ascii=ascii)) - 2 for name, text in texts.items()}
        shares = _shares(sizes, max(0, room))
        # Texts of a few characters say nothing: rather no extras.
        if all(shares[name] == size or shares[name] >= 100 for name, size in sizes.items()):
            break
    short = {name: _cut(name, text, shares[name], sizes[name], ascii=ascii) for name, text in texts.items()}
    return _dumps({**kept, **short}, ascii=ascii)


def _dumps(value: object, *, ascii: bool) -> str:  # noqa: A002
    return json.dumps(value, ensure_ascii=ascii)


def _size(encoded: str) -> int:
    return len(encoded) if encoded.isascii() else len(encoded.encode("utf-8", "surrogatepass"))


def _shares(sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """Return how much of ``room`` each text gets; extras a quarter of it, and what ours leave of the rest."""
    ours = {name: size for name, size in sizes.items() if name in FIELDS}
    extras = {name: size for name, size in sizes.items() if name not in FIELDS}
    given = _equally(extras, max(room // 4, room - sum(ours.values())))
    return {**_equally(ours, room - sum(given.values())), **given}


def _equally(sizes: Mapping[str, int], room: int) -> dict[str, int]:
    """Return how much of ``room`` each gets: what needs less than an equal part leaves the rest to the others."""
    shares, left = dict[str, int](), room
    for n, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, left // (len(sizes) - n))
        left -= shares[name]
    return shares


def _cut(name: str, text: str, share: int, size: int, *, ascii: bool) -> str:  # noqa: A002
    if size <= share:
        return text
    amid = name in {"exception_traceback", "stack"}

    def shortened(kept: int) -> str:
        # Of a traceback both ends tell something: where it began, and what was raised.
        return f"{text[: kept // 3]}{_CUT_AMID}{text[len(text) - (kept - kept // 3) :]}" if amid else text[:kept] + CUT

    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if _size(_dumps(shortened(middle), ascii=ascii)) - 2 <= share:
            low = middle
        else:
            high = middle - 1
    return shortened(low)
