"""Imports an application's actors, as its workers do: what is sent is checked against the code of today."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

from dramatiq import Broker

from db.errors import ConfigurationError
from middleware.redaction import Redactor
from middleware.text import message_of
from worker.check.findings import Finding
from worker.check.procfile import read_entries
from worker.procfile import read_procfile
from worker.queues import Queue

#: Where no Procfile says otherwise.
OURS: Final = tuple(f"worker.{queue.value}" for queue in Queue)


class ModuleFailed(ConfigurationError):
    """Raised when a module with actors cannot be imported; the message names it and says why."""


class NoSuchActor(ValueError):
    """Raised when nothing that was imported declares an actor; the message names those that are called nearly so.

    Attributes:
      like: Those.
    """

    def __init__(self, actor: str, like: list[str]) -> None:
        named = f"; there is {', '.join(like)}" if like else ""
        super().__init__(f"there is no actor {actor!r} in the modules that were imported{named}")
        self.like = like


def check_is_there(broker: Broker, actor: str) -> None:
    """Check that there is an actor of that name.

    Raises:
      NoSuchActor: When there is none.
    """
    if actor in broker.actors:
        return
    like = difflib.get_close_matches(actor, broker.actors, n=3, cutoff=0.5)
    like += [name for name in broker.actors if name.endswith(f".{actor.rpartition('.')[2]}") and name not in like]
    raise NoSuchActor(actor, like[:5])


def import_application(
    more: Iterable[str] = (), *, folder: Path | None = None, environ: Mapping[str, str] | None = None
) -> Broker:
    """Import every module with actors, and return the broker that knows them.

    That are the modules of the Procfile's ``dramatiq`` entries, without a Procfile the four of ours, and those that are
    named. Importing them configures :mod:`db.session` from the environment, as in a worker.

    Arguments:
      more: Modules that no entry names.
      folder: Where workers are started; the current one by default.
      environ: For the variables that entries refer to; the process' by default.

    Raises:
      ModuleFailed: When one cannot be imported.
      ConfigurationError: When an entry of the Procfile cannot be read, or a setting is wrong.
    """
    folder = Path.cwd() if folder is None else folder
    modules, path = _of_procfile(folder, os.environ if environ is None else environ)
    for place in reversed([*path, str(folder)]):
        resolved = str((folder / place).resolve())
        if resolved not in sys.path:
            sys.path.insert(0, resolved)
    for module in dict.fromkeys([*modules, *more]):
        _import(module)
    # Not before: a module may make a broker of its own, which it then is.
    import dramatiq

    _import("worker.broker")
    return dramatiq.get_broker()


def _of_procfile(folder: Path, environ: Mapping[str, str]) -> tuple[Collection[str], Collection[str]]:
    try:
        commands = read_procfile(folder / "Procfile")
    except FileNotFoundError:
        return OURS, ()
    entries, wrong = read_entries(commands, environ)
    if wrong:
        raise ConfigurationError(_said(wrong))
    modules = [module for entry in entries for module in entry.command.modules]
    return modules or OURS, [place for entry in entries for place in entry.command.path]


def _said(wrong: Iterable[Finding]) -> str:
    return "Procfile: " + "; ".join(finding.found for finding in wrong)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except ConfigurationError:
        # It names the setting, and no secret.
        raise
    except BaseException as e:
        # A module's text may quote a URL, with its password.
        said = Redactor().text(message_of(e), 1_000)
        raise ModuleFailed(f"module {module} cannot be imported: {type(e).__name__}: {said}") from e
