"""What a process is told about its lines."""

from __future__ import annotations

import socket
from typing import NamedTuple

from middleware.redaction import Limits, Redactor
from worker.logs.levels import LEVELS, Levels
from worker.settings import Settings


class Options(NamedTuple):
    """How lines look, which are written, and what is taken out of them.

    Attributes:
      json: Whether each line is a JSON object; else it is for people.
      colour: Whether those get colours.
      levels: Which lines are written.
      line_limit: Bytes of a line of JSON at most, its end included.
      process: What lines call the process.
      redact: Takes secrets out.
      ascii: Whether whoever passes lines on may not know how to write other characters.
    """

    json: bool
    colour: bool
    levels: Levels
    line_limit: int
    process: str
    redact: Redactor
    ascii: bool = False


def options_of(settings: Settings, *, terminal: bool, verbose: bool = False, ascii: bool = False) -> Options:  # noqa: A002
    """Return what ``settings`` say.

    Arguments:
      settings: Of the deployment.
      terminal: Whether somebody looks at lines as they are written.
      verbose: Whether all loggers that have no level of their own log more, as ``dramatiq --verbose`` asks.
      ascii: See :class:`Options`.
    """
    least = "DEBUG" if verbose and LEVELS[settings.log_level] > LEVELS["DEBUG"] else settings.log_level
    limit = settings.log_line_limit
    return Options(
        json=settings.log_format == "json" or (settings.log_format == "auto" and not terminal),
        colour=terminal,
        levels=Levels(least, settings.logger_levels),
        line_limit=limit,
        process=settings.worker_name or socket.gethostname(),
        # What is cut off a line in the end need not be made.
        redact=Redactor(settings.redact_keys, Limits(string=limit, items=50, depth=6, total=2 * limit)),
        ascii=ascii,
    )
