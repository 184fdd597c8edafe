"""Log lines of this process as a process of ours writes them, for tests; afterwards all is as it was."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loguru import logger

from worker.logs.options import options_of
from worker.logs.setup import configure
from worker.settings import Settings


class Written(io.StringIO):
    """Where lines go."""

    def lines(self) -> list[dict[str, Any]]:
        """Return them, each of which must be a flat JSON object."""
        found = [json.loads(line, parse_constant=_no_json) for line in self.getvalue().splitlines()]
        for line in found:
            assert not any(isinstance(value, dict | list) for value in line.values()), line
        return found

    def line(self) -> dict[str, Any]:
        """Return the only one."""
        (line,) = self.lines()
        return line


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@contextmanager
def logging_to(
    stream: Any = None, *, terminal: bool = False, verbose: bool = False, streams: bool = False, **settings: str
) -> Iterator[Written]:
    """Configure this process as one with these settings, whose lines go to ``stream``, by default to what is given."""
    kind: Any = type(logger)
    saved = (logging.getLogRecordFactory(), kind._log, threading.excepthook, sys.excepthook, sys.stdout, sys.stderr)
    root = logging.getLogger()
    handlers, level, written = list(root.handlers), root.level, Written()
    loaded = Settings.load({"REDIS_URL": "stub://", **settings})
    levels = {name: logging.getLogger(name).level for name in [*loaded.logger_levels, "pika"]}
    try:
        options = options_of(loaded, terminal=terminal, verbose=verbose)
        configure(options, stream=written if stream is None else stream, standard_streams=streams)
        yield written
    finally:
        logger.remove()
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        factory, kind._log, threading.excepthook, sys.excepthook, sys.stdout, sys.stderr = saved
        logging.setLogRecordFactory(factory)
