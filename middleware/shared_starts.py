"""Memory in which a process notes what it begins to run, and which its keeper reads once that process has died.

Redis is told some milliseconds later: a process may be dead by then, its keeper is not.
"""

from __future__ import annotations

import mmap
import struct
import threading

#: Threads that have a place, and bytes of each: the length of a name, when it began, the name.
PLACES, SIZE = 256, 512
_BEGAN = struct.Struct("<Hq")
_EMPTY = b"\0\0"


class _OfThread(threading.local):
    place: int | None = None


class SharedStarts:
    """One place for each thread, which holds what it runs now; and before these, whose they are."""

    def __init__(self) -> None:
        # Anonymous and shared: what is forked from this process sees what it writes, and the other way round.
        self._memory = mmap.mmap(-1, (1 + PLACES) * SIZE)
        self._lock = threading.Lock()
        self._taken = 0
        self._local = _OfThread()

    def name(self, broker_id: str) -> None:
        """Say which broker runs them."""
        said = broker_id.encode()
        self._memory[1 : 1 + len(said)] = said
        self._memory[0] = len(said)

    def broker_id(self) -> str:
        """Return which broker runs them; empty where none does yet."""
        return self._memory[1 : 1 + self._memory[0]].decode()

    def note(self, name: bytes, milliseconds: int) -> bool:
        """Note that this thread begins to run the message ``name``; tell whether there is a place for that.

        Arguments:
          milliseconds: When, since 1970.
        """
        at, end = self._place(), _BEGAN.size + len(name)
        if at < 0 or end > SIZE:
            return False
        memory = self._memory
        # Its length last: without it there is nothing here.
        memory[at + 2 : at + end] = _BEGAN.pack(0, milliseconds)[2:] + name
        memory[at : at + 2] = len(name).to_bytes(2, "little")
        return True

    def clear(self) -> None:
        """Note that this thread runs nothing any more."""
        at = self._place()
        if at >= 0:
            self._memory[at : at + 2] = _EMPTY

    def _place(self) -> int:
        at = self._local.place
        if at is None:
            with self._lock:
                at = self._local.place = (1 + self._taken) * SIZE if self._taken < PLACES else -1
                self._taken += 1
        return at

    def running(self) -> dict[bytes, int]:
        """Return what is noted, and when it began."""
        found: dict[bytes, int] = {}
        for at in range(SIZE, (1 + PLACES) * SIZE, SIZE):
            length, began = _BEGAN.unpack_from(self._memory, at)
            if 0 < length <= SIZE - _BEGAN.size:
                first = at + _BEGAN.size
                found[self._memory[first : first + length]] = began
        return found
