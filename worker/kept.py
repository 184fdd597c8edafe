"""Importing this has a worker process that ``dramatiq`` has started kept from here on.

First of all that :mod:`worker.broker` imports: what is imported before it the keeper holds, too, and all of it for
itself once the worker has written to it.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import Any

from middleware import keeper
from middleware.dramatiq_internals import child_logging
from middleware.shared_starts import SharedStarts

#: As :mod:`worker.fields` reads them, which is not loaded yet.
_NO = {"0", "off", "f", "false", "n", "no"}
#: What loguru itself reads.
_AUTOINIT = "LOGURU_AUTOINIT"


def _tell(starts: SharedStarts, how: str) -> None:
    # In the keeper, which holds none of it until then.
    from middleware.lossless_broker import BEAT, tell_end
    from middleware.lua_scripts import Scripts
    from worker.logs.setup import configure_worker
    from worker.redis_client import make_redis
    from worker.settings import Settings

    settings = Settings.load()
    configure_worker(settings)
    if starts.broker_id():
        tell_end(Scripts(make_redis(settings, answers_within=BEAT), settings.redis_namespace), starts, how)


def _import_loguru() -> None:
    """Import it without the handler that it has by default, which takes 3 ms to make and is removed at once."""
    if "loguru" in sys.modules or _AUTOINIT in os.environ:
        return
    os.environ[_AUTOINIT] = "no"
    try:
        import loguru as loguru
    finally:
        # It is none of the business of what jobs start.
        del os.environ[_AUTOINIT]


#: Whether garbage is to be looked for once all is imported.
_looks = False


def look_for_garbage() -> None:
    """Have garbage looked for again; not in what was imported until now, which is there for good."""
    if _looks:
        gc.freeze()
        gc.enable()


def give_up() -> None:
    """Leave the process as it was before, as far as that can be: an application may go on where the import failed."""
    look_for_garbage()
    begun = keeper.begun()
    if begun is not None:
        # Signals are let through again.
        begun[1].close()
    loguru: Any = sys.modules.get("loguru")
    if loguru is not None and not loguru.logger._core.handlers:
        loguru.logger.add(sys.stderr)


if child_logging() is not None:
    if os.environ.get("KEEPER", "").strip().lower() not in _NO:
        keeper.begin(_tell)
    # There is none in what is imported next, and to look a hundred times takes 4 ms.
    _looks = gc.isenabled()
    gc.disable()
    _import_loguru()
