"""The application: settings, broker, queues, routing, actor modules, command line, testing.

Import what you need from its modules; importing the package itself configures nothing and connects to nothing.
"""

from importlib import import_module

#: Lets other parts tell this package from a user's own ``worker`` that shadows it.
__distribution__ = "dramaturg"


def _refuse_shadows() -> None:
    for name in ("db", "middleware"):
        module = import_module(name)
        if getattr(module, "__distribution__", None) != __distribution__:
            where = module.__file__ or next(iter(module.__path__), "somewhere on sys.path")
            raise ImportError(
                f"'import {name}' finds {where}, which hides the package {name!r} of dramaturg. "
                f"Rename it, or move it into a package of your own (myapp.{name})."
            )


_refuse_shadows()
