"""Which transaction the code at hand is in."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING
from uuid import UUID

from db.outgoing import Courier, Outgoing

if TYPE_CHECKING:
    # Whoever sends looks in here, in processes that use no database, too.
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


class OpenTransaction:
    """One transaction, from entering its block to leaving it. Making one makes it the innermost of this context.

    Attributes:
      session: What the block was given; ``None`` once it was left.
      tenant_id: The tenant that Postgres was told when it began.
      outer: The open transaction around it, if any.
      rolled_back: Whether the block was left without a commit that is known to have succeeded.
      recorded: The keys that were recorded in it; see :mod:`db.once`.
      outgoing: What leaves with it.
      leaving: Whether the end of the block has been reached.
    """

    __slots__ = ("leaving", "outer", "outgoing", "recorded", "rolled_back", "session", "tenant_id")

    def __init__(self, session: Session | AsyncSession, tenant_id: UUID | None) -> None:
        self.session: Session | AsyncSession | None = session
        self.tenant_id = tenant_id
        self.outer = innermost()
        self.rolled_back = False
        self.recorded: set[str] = set()
        self.outgoing = Outgoing(tenant_id)
        self.leaving = False
        _innermost.set(self)

    def take_along(self, courier: Courier, thing: object) -> bool:
        """Let ``thing`` leave with it; tell whether it does, which it does not once it is being committed, nor in hooks
        that are called after it was committed or rolled back."""
        session = self.session
        if session is None:
            return False
        # An AsyncSession's own, or what is one.
        sync: Session = getattr(session, "sync_session", session)  # type: ignore[arg-type]
        if not sync.in_transaction():
            if self.leaving:
                # Nobody would commit another.
                return False
            # The block has ended one before. Without another there is nothing that could be rolled back.
            sync.begin()
        return self.outgoing.add(courier, thing)

    def leave(self) -> None:
        """Note that the block is left, be it in another context than it was entered in, as generators may."""
        self.session = None
        self.outgoing.close()
        # No token: it could be used in the context of entering only. Where the variable stays, it is skipped.
        if _innermost.get() is self:
            _innermost.set(self.outer)


_innermost: ContextVar[OpenTransaction | None] = ContextVar("dramaturg_transaction", default=None)


def innermost() -> OpenTransaction | None:
    """Return the innermost transaction of this context that is still open, or ``None``."""
    found = _innermost.get()
    while found is not None and found.session is None:
        found = found.outer
    return found


def forget() -> None:
    """Be in no transaction, whatever was left open in this context: for a thread that begins something new."""
    _innermost.set(None)
