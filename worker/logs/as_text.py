"""A line for people: as loguru writes it, with the job that caused it."""

from __future__ import annotations

import os
from datetime import datetime
from typing import Final

from worker.logs.line import Line
from worker.text import printable

_RESET, _DIM, _TIME, _PLACE = "\x1b[0m", "\x1b[2m", "\x1b[32m", "\x1b[36m"
_OF_LEVELS: Final = {
    "TRACE": "\x1b[36m\x1b[1m",
    "DEBUG": "\x1b[34m\x1b[1m",
    "INFO": "\x1b[1m",
    "SUCCESS": "\x1b[32m\x1b[1m",
    "WARNING": "\x1b[33m\x1b[1m",
    "ERROR": "\x1b[31m\x1b[1m",
    "CRITICAL": "\x1b[41m\x1b[1m",
}


def as_text(line: Line, *, colour: bool) -> str:
    """Return ``line`` with its end, in the time zone of whoever looks at it; a traceback has lines of its own.

    Arguments:
      line: What it says.
      colour: Whether to colour it; ``NO_COLOR`` (https://no-color.org) switches that off.
    """
    colour = colour and not os.environ.get("NO_COLOR")

    def coloured(text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if colour else text

    moment = datetime.fromtimestamp(line.time).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    place = line.logger if line.function is None else f"{line.logger}:{line.function}:{line.number}"
    level = _OF_LEVELS.get(line.level, "\x1b[1m")
    text = f"{coloured(moment, _TIME)} | {coloured(f'{line.level:<8}', level)} | {coloured(printable(place), _PLACE)}"
    if line.job is not None:
        job = line.job
        said = f"{job['actor']} {job['message_id']} tenant {job['tenant_id'] or '-'} attempt {job['attempt']}"
        text += coloured(f" [{printable(said)}]", _DIM)
    text += f" - {coloured(printable(line.message), level)}"
    if line.extras:
        pairs = " ".join(f"{name}={value!r}" for name, value in line.extras.items())
        text += coloured(f" | {printable(pairs)}", _DIM)
    if line.raised is not None:
        text += f"\n{printable(line.raised.traceback or f'{line.raised.kind}: {line.raised.message}')}"
    if line.stack is not None:
        text += f"\n{printable(line.stack)}"
    return f"{text}\n"
