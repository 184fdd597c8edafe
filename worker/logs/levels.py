"""Which lines are severe enough to be written: one level for all, others by the logger's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

#: What ``LOG_LEVEL`` may say. Loguru has one below the standard library's lowest.
LEVELS: Final = {"TRACE": 5, "DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
#: Names whose level is remembered; some programs make up one for each object.
_REMEMBERED: Final = 10_000


def read_levels(pairs: Iterable[str]) -> dict[str, str]:
    """Return the levels that ``pairs``, each ``logger=LEVEL``, give, by logger.

    Raises:
      ValueError: Naming the pair that is wrong.
    """
    levels = dict[str, str]()
    for pair in pairs:
        name, separator, level = (part.strip() for part in pair.partition("="))
        if not separator or not name or any(c.isspace() for c in name):
            raise ValueError(f"{pair!r} is not of the form logger=LEVEL")
        if level.upper() not in LEVELS:
            raise ValueError(f"{pair!r}: the level must be one of {', '.join(LEVELS)}, not {level!r}")
        if name in levels:
            raise ValueError(f"{name!r} is there twice")
        levels[name] = level.upper()
    return levels


class Levels:
    """Finds the level of a logger: its own, else that of the nearest above it in its dotted name.

    Arguments:
      default: Of loggers that ``by_name`` says nothing about.
      by_name: Levels of loggers, and of those below them.

    Attributes:
      default: As a number.
      by_name: As numbers.
      least: The lowest of all.
    """

    def __init__(self, default: str, by_name: Mapping[str, str]) -> None:
        self.default = LEVELS[default]
        self.by_name = {name: LEVELS[level] for name, level in by_name.items()}
        self.least = min(self.default, *self.by_name.values(), self.default)
        self._known: dict[str, int] = {}

    def of(self, name: str) -> int:
        """Return the least number of a line's level with which it is written."""
        level = self._known.get(name)
        if level is None:
            level = self._find(name)
            if len(self._known) < _REMEMBERED:
                self._known[name] = level
        return level

    def _find(self, name: str) -> int:
        while name:
            if name in self.by_name:
                return self.by_name[name]
            name = name.rpartition(".")[0]
        return self.default
