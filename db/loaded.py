"""What others do to :mod:`db.session`, for which they need not import it: where nobody has, no statement runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from threading import Thread, current_thread, main_thread
from types import ModuleType
from typing import Final

from db import configuration

_SESSION: Final = "db.session"


def is_loaded() -> bool:
    """Tell whether somebody has imported it, or does so now."""
    return _SESSION in sys.modules


def load(name: str = _SESSION) -> ModuleType:
    """Import a module that imports it, in a thread that nobody interrupts: half of SQLAlchemy would stay behind, in
    which the next import would not find its way.

    Raises:
      ImportError: As the module does.
    """
    found = sys.modules.get(name)
    if found is not None or current_thread() is main_thread():
        # Where it is being imported, it waits until that is done.
        return import_module(name)
    problems: list[BaseException] = []

    def do() -> None:
        try:
            import_module(name)
        except BaseException as e:  # noqa: BLE001 - whoever asked is told
            problems.append(e)

    thread = Thread(target=do, name="import", daemon=True)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return import_module(name)


def running_statements(job: object) -> Callable[[], None] | None:
    """As :func:`db.session.running_statements`."""
    if not is_loaded():
        return None
    from db import session

    return session.running_statements(job)


def close_for_good(within: float) -> None:
    """As :func:`db.session.close_for_good`."""
    # Before looking: whoever imports it from now on finds this.
    configuration.close()
    if is_loaded():
        from db import session

        session.close_for_good(within)


def dispose() -> None:
    """As :func:`db.session.dispose`; also where :mod:`db.glance` has a connection instead."""
    from db import glance

    glance.close()
    if is_loaded():
        from db import session

        session.dispose()


async def dispose_async() -> None:
    """As :func:`db.session.dispose_async`."""
    if is_loaded():
        from db import session

        await session.dispose_async()
