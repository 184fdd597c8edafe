"""From the stacks that py-spy saw to shares of the interpreter's time by package and by function."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

_FRAME = re.compile(r"^(?P<function>.*) \((?P<path>[^()]*?)(?::\d+)?\)$")
_INSTALLED = re.compile(r".*/(?:site|dist)-packages/")
_STANDARD = re.compile(r".*/lib/python3\.\d+/")
#: Of our own; what is below any other folder is told by its last name.
_OURS = re.compile(r".*?/?((?:worker|middleware|db|tests)/[^ ]*)$")


@dataclass(frozen=True)
class Folded:
    """Shares of all samples, the largest first.

    Attributes:
      packages: Of the code that ran, by package; all that is not installed is told by folder.
      functions: The same by function: ``redis/connection.py: send``.
      samples: How many there were.
    """

    packages: list[tuple[str, float]]
    functions: list[tuple[str, float]]
    samples: int


def place(path: str) -> tuple[str, str]:
    """Return package and file of a path, which names no machine's folders.

    A relative path, as py-spy shortens some, is one of an installed package, of ours or of the standard library.
    """
    if _INSTALLED.match(path):
        file = _INSTALLED.sub("", path)
        return file.partition("/")[0].removesuffix(".py"), file
    if _STANDARD.match(path):
        return "standard library", _STANDARD.sub("", path)
    if found := _OURS.match(path):
        return found[1].partition("/")[0], found[1]
    if "/" in path.lstrip("/") and not path.startswith("/"):
        return path.partition("/")[0], path
    if path.startswith("/"):
        return "application", path.rpartition("/")[2]
    return "standard library", path


def fold(lines: Iterable[str], *, top: int = 15) -> Folded:
    """Fold lines of ``outermost;...;innermost COUNT``, as ``py-spy record --format raw`` writes them.

    Whose the time is says the innermost frame.

    Arguments:
      lines: Of any process and thread.
      top: How many functions and packages to return.
    """
    packages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    samples = 0
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if not stack:
            continue
        seen, frame = int(count), _FRAME.match(stack.rpartition(";")[2])
        samples += seen
        package, file = place(frame["path"]) if frame else ("unknown", "")
        function = f"{file}: {frame['function']}" if frame else stack.rpartition(";")[2]
        packages[package] += seen
        functions[function] += seen
    if not samples:
        return Folded([], [], 0)

    def shares(counted: Counter[str]) -> list[tuple[str, float]]:
        return [(name, seen / samples) for name, seen in counted.most_common(top)]

    return Folded(shares(packages), shares(functions), samples)
