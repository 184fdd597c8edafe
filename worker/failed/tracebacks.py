"""Reads a stored traceback, and tells the application's own frames from those of libraries by where their files are.

What is stored is text, as Python prints it, of a process on another machine: nothing here looks at files, and what is
no traceback is no error.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import db
import middleware
import worker

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+)(?:, in (?P<function>.*))?')
_BEGIN: Final = "Traceback (most recent call last):"
_LINKS: Final = {
    "The above exception was the direct cause of the following exception:": "caused by",
    "During handling of the above exception, another exception occurred:": "while handling",
}
#: What stands for frames that are not there: ours, and Python's for a recursion.
_ABRIDGED = re.compile(r"  … \[\d+ frames left out\]|  \[Previous line repeated \d+ more times?\]")
#: Markers under code, which say which part of it.
_MARKERS = re.compile(r"\s+[~^]+\s*")

_INSTALLED = re.compile(r"[/\\](?:site-packages|dist-packages|installed_wheels)[/\\](?P<package>[^/\\]+)")
_STANDARD_LIBRARY = re.compile(r"[/\\][Ll]ib(?:64)?[/\\]python\d+\.\d+[/\\]|[/\\]Python\d+[/\\]Lib[/\\]")
_OUR_PACKAGES: Final = (db, middleware, worker)


@dataclass(slots=True)
class Frame:
    """A function that was running."""

    file: str
    line: int
    function: str
    code: list[str] = field(default_factory=list)
    own: bool = False


@dataclass(slots=True)
class Raised:
    """An exception, and the way to it, outermost first."""

    frames: list[Frame] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    #: How what was raised later is connected with it; empty for the last.
    link: str = ""

    @property
    def own(self) -> list[Frame]:
        """Frames of the application's own code."""
        return [frame for frame in self.frames if frame.own]


def parse(traceback: str, actor: str, place: str | None = None) -> list[Raised]:
    """Return the exceptions of a traceback, the last one that was raised first.

    Arguments:
      traceback: As :func:`middleware.traceback_text.traceback_text` writes it.
      actor: Its name: the package that it begins with is the application's, be it installed.
      place: The innermost function of the application's own code as the worker saw it, ``module:function``.
    """
    found = [Raised()]
    frame: Frame | None = None
    for line in traceback.splitlines():
        link = _LINKS.get(line)
        # A message may hold anything, also what looks like frames.
        match = None if any(found[-1].said) else _FRAME.fullmatch(line)
        if link is not None:
            found[-1].link = link
            found.append(Raised())
            frame = None
        elif match:
            frame = Frame(match["file"], int(match["line"]), match["function"] or "<module>")
            found[-1].frames.append(frame)
        elif line.startswith("    ") and frame is not None:
            if not _MARKERS.fullmatch(line):
                frame.code.append(line.strip())
        elif line != _BEGIN and not _ABRIDGED.fullmatch(line):
            # What is indented less than code ends the stack.
            frame = None
            found[-1].said.append(line)
    for raised in found:
        raised.said = _without_blank_ends(raised.said)
        for each in raised.frames:
            each.own = is_own(each.file, actor) or _is_at(each, place)
    return found[::-1]


def is_own(file: str, actor: str) -> bool:
    """Tell whether a file is the application's: neither Python's, nor an installed package's, nor ours.

    Arguments:
      file: As a traceback names it.
      actor: The package that its name begins with is the application's, also where it is installed, or is ``worker``.
    """
    package = actor.partition(".")[0]
    if file.startswith("<"):
        return False
    installed = _INSTALLED.search(file)
    if installed:
        return installed["package"].removesuffix(".py") == package and package not in {"dramatiq", "db", "middleware"}
    if _STANDARD_LIBRARY.search(file):
        return False
    ours = next((p for p in _OUR_PACKAGES if _is_of(p.__name__, file, package)), None)
    return ours is None or (ours is worker and package == "worker")


def _is_of(package: str, file: str, application: str) -> bool:
    """Tell whether a file is one of ours by the end of its path: a worker's folders are not those of this machine.

    Arguments:
      application: The package that the actor is in; below it is nothing of ours, such as its own ``db/models.py``.
    """
    parts = re.split(r"[/\\]", file)
    return any(
        part == package and "/".join(parts[n + 1 :]) in _files_of(package) and application not in parts[:n]
        for n, part in enumerate(parts[:-1])
    )


@cache
def _files_of(package: str) -> frozenset[str]:
    folders = {"db": db, "middleware": middleware, "worker": worker}[package].__path__
    return frozenset(
        path.relative_to(folder).as_posix() for folder in map(Path, folders) for path in folder.rglob("*.py")
    )


def _is_at(frame: Frame, place: str | None) -> bool:
    """Tell whether a frame is the one that the worker knew to be the application's."""
    if place is None:
        return False
    module, _, function = place.partition(":")
    path = module.replace(".", "/")
    file = frame.file.replace("\\", "/")
    return function.rpartition(".")[2] == frame.function and file.endswith((f"/{path}.py", f"/{path}/__init__.py"))


def _without_blank_ends(lines: list[str]) -> list[str]:
    while lines and not lines[0].strip():
        del lines[0]
    while lines and not lines[-1].strip():
        del lines[-1]
    return lines


def short_path(file: str, components: int = 3) -> str:
    """Return the end of a path, which says where in the application it is."""
    parts = [part for part in re.split(r"[/\\]", file) if part]
    return file if len(parts) <= components else os.path.join("…", *parts[-components:])  # noqa: PTH118 - for the eye
