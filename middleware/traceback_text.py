"""The text of an exception's traceback, however deep the stack and long the chain of causes."""

from __future__ import annotations

import traceback
from collections import deque
from itertools import islice
from types import FrameType, TracebackType

from middleware.text import message_of, name_of

#: Frames kept at either end of one stack: where it was called from, and where it broke.
FRAMES = 25
#: Exceptions kept of a chain, the last raised first.
CAUSES = 10

#: Lines of code that are remembered as they are printed: jobs fail at few, and each is looked up in its file otherwise.
LINES_KNOWN = 4_096

_Place = tuple[FrameType, int]
_Key = tuple[str, int, str]
_known: dict[_Key, str] = {}

_BECAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_DURING = "\nDuring handling of the above exception, another exception occurred:\n\n"


def traceback_text(error: BaseException) -> str | None:
    """Return the traceback as Python prints it, bounded; ``None`` for an exception that was never raised."""
    if error.__traceback__ is None and error.__cause__ is None and error.__context__ is None:
        return None
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if len(seen) == CAUSES:
            parts.append("… [earlier causes left out]\n\n")
            break
        seen.add(id(current))
        parts.append(_one(current))
        if current.__cause__ is not None:
            parts.append(_BECAUSE)
            current = current.__cause__
        elif current.__context__ is not None and not current.__suppress_context__:
            parts.append(_DURING)
            current = current.__context__
        else:
            current = None
    if parts[-1] in (_BECAUSE, _DURING):
        parts.pop()
    return "".join(reversed(parts))


def _one(error: BaseException) -> str:
    lines = ["Traceback (most recent call last):\n", *_stack(error.__traceback__)] if error.__traceback__ else []
    text = message_of(error)
    lines.append(f"{name_of(type(error))}: {text}\n" if text else f"{name_of(type(error))}\n")
    lines.extend(f"{note}\n" for note in getattr(error, "__notes__", ())[:10])
    if isinstance(error, BaseExceptionGroup):
        lines.extend(f"  | {name_of(type(e))}: {message_of(e)}\n" for e in error.exceptions[:CAUSES])
        if len(error.exceptions) > CAUSES:
            lines.append(f"  | … [{len(error.exceptions) - CAUSES} more exceptions]\n")
    return "".join(lines)


def _stack(trace: TracebackType | None) -> list[str]:
    walk = traceback.walk_tb(trace)
    head = list(islice(walk, FRAMES))
    count, tail = 0, deque[_Place](maxlen=FRAMES)
    for place in walk:
        count += 1
        tail.append(place)
    lines = _lines(head)
    if count > FRAMES:
        lines.append(f"  … [{count - FRAMES} frames left out]\n")
    lines.extend(_lines(list(tail)))
    return lines


def _lines(places: list[_Place]) -> list[str]:
    keys = [(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in places]
    if len(set(keys)) < len(keys):
        # Python says once what is the same many times.
        return traceback.StackSummary.extract(iter(places)).format()
    return [_line(place, key) for place, key in zip(places, keys, strict=True)]


def _line(place: _Place, key: _Key) -> str:
    known = _known.get(key)
    if known is None:
        known = "".join(traceback.StackSummary.extract(iter((place,))).format())
        # Of generated code another may come under the same name.
        if not key[0].startswith("<"):
            if len(_known) >= LINES_KNOWN:
                _known.clear()
            _known[key] = known
    return known
