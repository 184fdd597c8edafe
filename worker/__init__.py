"""The application: settings, broker, queues, routing, actor modules, command line, testing.

Import what you need from its modules; importing the package itself configures nothing and connects to nothing.
"""

import gc
from importlib import import_module
from types import ModuleType

#: Lets other parts tell this package from a user's own ``worker`` that shadows it.
__distribution__ = "dramaturg"


def _refuse_shadows() -> None:
    for name in ("db", "middleware"):
        module = _import(name)
        if getattr(module, "__distribution__", None) != __distribution__:
            where = module.__file__ or next(iter(module.__path__), "somewhere on sys.path")
            raise ImportError(
                f"'import {name}' finds {where}, which hides the package {name!r} of dramaturg. "
                f"Rename it, or move it into a package of your own (myapp.{name})."
            )


def _import(name: str) -> ModuleType:
    """Import a package without looking for garbage meanwhile: there is none, and looking takes a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        return import_module(name)
    finally:
        if enabled:
            gc.enable()


_refuse_shadows()
