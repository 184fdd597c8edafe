"""What leaves with a transaction: none of it before the commit, and nothing where it is rolled back.

This knows neither brokers nor messages. Whoever sends hands in anything, and a :class:`Courier` that takes it further.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Courier(Protocol):
    """Takes further what leaves with transactions."""

    def write(self, connection: Connection, tenant_id: UUID | None, things: Sequence[Any]) -> None:
        """Make things part of the transaction, which is committed next; what it raises rolls that back.

        Arguments:
          connection: On which the transaction is; nothing else is said on it before COMMIT.
          tenant_id: That Postgres was told when it began.
          things: In the order in which they were handed in.
        """

    def committed(self, things: Sequence[Any]) -> None:
        """Take things further, now that they are committed. Raises nothing: what is written is not lost."""

    def left(self, things: Sequence[Any]) -> None:
        """See to it that things are taken further by and by, without waiting for anything."""


#: Adding must not come between writing and the end of the commit. Held for moments, so one does for all;
#: again by its thread, where the garbage collector ends another transaction in such a moment.
_lock = RLock()


class Outgoing:
    """What one transaction has to take along. Any thread may add to it."""

    __slots__ = ("_closed", "_committed", "_ended", "_marks", "_pending", "_savepoints", "_written", "tenant_id")

    def __init__(self, tenant_id: UUID | None) -> None:
        self.tenant_id = tenant_id
        self._pending: list[tuple[Courier, Any]] = []
        #: What is in the database, and what is known to be committed there.
        self._written: list[tuple[Courier, Any]] = []
        self._committed: list[tuple[Courier, Any]] = []
        self._closed = False
        #: How much there was when something began that may be rolled back by itself; and of the last that has ended.
        self._marks: dict[object, int] = {}
        self._ended: tuple[object, int] | None = None
        self._savepoints = 0

    def add(self, courier: Courier, thing: Any) -> bool:
        """Take ``thing`` along; tell whether it is, which it is not once the transaction is being committed."""
        with _lock:
            if self._closed:
                return False
            self._pending.append((courier, thing))
            return True

    def __bool__(self) -> bool:
        """Whether there is anything that has not been written."""
        return bool(self._pending)

    def open(self) -> None:
        """Note that a transaction begins: things may be handed in again."""
        self._closed = False

    def begin(self) -> None:
        """Note that it begins on a connection: savepoints are numbered anew."""
        self._savepoints = 0

    def write(self, connection: Connection) -> None:
        """Make it part of the transaction, right before COMMIT."""
        with _lock:
            self._closed = True
            self._written, self._pending = self._pending, []
        for courier, things in _by_courier(self._written):
            courier.write(connection, self.tenant_id, things)

    def commit(self) -> None:
        """Note that what was written is committed. Nothing more leaves with it."""
        with _lock:
            self._committed += self._written
            self._written = []

    def roll_back(self) -> None:
        """Drop everything that is not committed. Nothing more leaves with it."""
        with _lock:
            self._pending, self._written = [], []
            self._closed = True

    def close(self) -> None:
        """Take nothing along any more."""
        self._closed = True

    def mark(self, which: object) -> None:
        """Note that a part begins that may be rolled back by itself: a savepoint by its name, or what has one later."""
        self._marks[which] = len(self._pending)

    def savepoint(self) -> None:
        """Note that a savepoint is made, to which SQLAlchemy gives its name next."""
        self._savepoints += 1
        self.mark(f"sa_savepoint_{self._savepoints}")

    def end(self, which: object) -> None:
        """Note that such a part has ended; whether it is rolled back is said next."""
        if which in self._marks:
            self._ended = which, self._marks.pop(which)

    def roll_back_to(self, which: object) -> None:
        """Drop what was added since such a part began."""
        self.end(which)
        if self._ended is not None and self._ended[0] == which:
            with _lock:
                del self._pending[self._ended[1] :]

    def deliver(self) -> None:
        """Take what is committed further."""
        for courier, things in _by_courier(self._take()):
            courier.committed(things)

    def leave(self) -> None:
        """The same where nothing may be waited for."""
        for courier, things in _by_courier(self._take()):
            courier.left(things)

    @property
    def is_committed(self) -> bool:
        """Whether there is anything that is committed and not taken further."""
        return bool(self._committed)

    def _take(self) -> list[tuple[Courier, Any]]:
        with _lock:
            taken, self._committed = self._committed, []
        return taken


def _by_courier(things: Sequence[tuple[Courier, Any]]) -> list[tuple[Courier, list[Any]]]:
    return [(courier, [thing for _, thing in group]) for courier, group in groupby(things, key=itemgetter(0))]
