"""``worker dramatiq``: the command ``dramatiq``, whose main process logs as its workers do.

``dramatiq`` itself loads nothing of ours there, so that its few lines keep Dramatiq's form.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from middleware.dramatiq_internals import ChildLogging, parse_command, run_command
from worker.logs.setup import configure_dramatiq
from worker.settings import Settings


def run(arguments: list[str]) -> int:
    """Be ``dramatiq`` with ``arguments``, until it ends; return the status to exit with.

    Raises:
      ConfigurationError: When a variable is wrong or missing, before any worker starts.
    """
    parsed = parse_command(arguments)
    if sys.argv[0].endswith("__main__.py"):
        # What Dramatiq executes to start itself anew.
        sys.argv[:1] = [sys.executable, "-m", "worker"]
    return run_command(parsed, partial(_set_up, Settings.load()))


def _set_up(settings: Settings, stream: Any, told: ChildLogging, is_child: bool) -> None:
    configure_dramatiq(settings, stream, told, is_child=is_child)
