"""Regular expressions that are compiled when they are first needed, which is when something has failed, as a rule."""

from __future__ import annotations

import re


class LatePattern:
    """Compiled for the first text: all of ours take each process 4 ms, before its first job if they were not."""

    __slots__ = ("_compiled", "_flags", "_pattern")

    def __init__(self, pattern: str, flags: re.RegexFlag = re.NOFLAG) -> None:
        self._pattern, self._flags = pattern, flags
        self._compiled: re.Pattern[str] | None = None

    def sub(self, replacement: str, text: str) -> str:
        """Return ``text`` as the method of a compiled one does."""
        compiled = self._compiled
        if compiled is None:
            compiled = self._compiled = re.compile(self._pattern, self._flags)
        return compiled.sub(replacement, text)
