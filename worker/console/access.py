"""Who asks, what he may do, and the transactions he gets: the one way from a request to the database."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from db.failed.actions import Begin
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from worker.console.attempts import Attempts
from worker.console.sessions import SessionCookies
from worker.console_tokens import Role, Token, find_token

#: Milliseconds that a statement of a page may take.
STATEMENT_TIMEOUT: Final = 10_000


class NotLoggedIn(Exception):
    """Raised when nobody is known to ask."""


class NotAllowed(Exception):
    """Raised when whoever asks may not do that; the message says why."""


class TooManyAttempts(Exception):
    """Raised when tokens were guessed too often."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks.

    Attributes:
      name: For the history of what he changes.
      role: See :data:`~worker.console_tokens.Role`.
      tenant_id: The one tenant that he sees; None for all.
      csrf: What a form of his must hold; None where he sent a token with the request, which no browser does by itself.
    """

    name: str
    role: Role
    tenant_id: UUID | None
    csrf: str | None

    @property
    def may_act(self) -> bool:
        """Whether he may change anything."""
        return self.role == "operator"


@dataclass(frozen=True, slots=True)
class Work:
    """What a page works with.

    Attributes:
      who: Asks.
      now: When he did.
    """

    who: Identity
    now: datetime

    @property
    def tenant_id(self) -> UUID | None:
        """The tenant that everything is bound to; None for all."""
        return self.who.tenant_id

    @property
    def begin(self) -> Begin:
        """Gives transactions: of the operator, or bound to the one tenant by row-level security; and to whoever may
        only look, such as change nothing."""
        return self._begin

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        with _bound(self.tenant_id) as session:
            read_only = "" if self.who.may_act else "SET TRANSACTION READ ONLY; "
            session.connection().exec_driver_sql(
                f"{read_only}SET LOCAL statement_timeout = {STATEMENT_TIMEOUT}",
                execution_options={"no_parameters": True},
            )
            yield session


@contextmanager
def _bound(tenant_id: UUID | None) -> Iterator[Session]:
    if tenant_id is None:
        with operator_transaction() as session:
            yield session
        return
    # Both here: a request's steps run in threads, and what is bound in one is not in the next.
    with tenant_context(tenant_id), transaction() as session:
        yield session


@dataclass(frozen=True, slots=True)
class Doorkeeper:
    """Knows who asks.

    Arguments:
      tokens: All there are; none where this machine's user needs none.
      sessions: Of those who logged in with one.
      attempts: Counts the wrong ones.
      local_user: What whoever needs no token is called.
    """

    tokens: tuple[Token, ...]
    sessions: SessionCookies
    attempts: Attempts
    local_user: str

    def identify(self, request: Request) -> Identity:
        """Return who asks.

        Raises:
          NotLoggedIn: When that is nobody.
          TooManyAttempts: When he guesses.
        """
        scheme, _, said = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.tokens:
            # A program that has its token is not kept out by somebody who guesses behind the same router.
            token = find_token(self.tokens, said.strip()) or self.token(request, said.strip())
            return Identity(token.name, token.role, token.tenant_id, None)
        cookie = self.sessions.read(request)
        if not self.tokens:
            return Identity(self.local_user, "operator", None, cookie.csrf if cookie else "")
        token_ = None if cookie is None else next((t for t in self.tokens if t.digest[:16] == cookie.token), None)
        if cookie is None or token_ is None:
            raise NotLoggedIn
        return Identity(token_.name, token_.role, token_.tenant_id, cookie.csrf)

    def token(self, request: Request, said: str) -> Token:
        """Return the token that somebody said.

        Raises:
          NotLoggedIn: When there is no such token.
          TooManyAttempts: When he has said too many that there are not.
        """
        address = self.attempts.address(request)
        if self.attempts.too_many(address):
            raise TooManyAttempts
        token = find_token(self.tokens, said)
        if token is None:
            self.attempts.failed(address)
            raise NotLoggedIn
        return token


def identify(request: Request) -> Identity:
    """Return who asks; see :meth:`Doorkeeper.identify`."""
    known: Identity | None = getattr(request.state, "identity", None)
    if known is None:
        doorkeeper: Doorkeeper = request.app.state.doorkeeper
        known = request.state.identity = doorkeeper.identify(request)
    return known


def _looking(request: Request) -> Work:
    return Work(identify(request), datetime.now(UTC))


async def _acting(request: Request, work: Annotated[Work, Depends(_looking)]) -> Work:
    # Who it is was found out in a thread: Redis may not answer, and everybody would wait.
    who = work.who
    if who.csrf is not None:
        await _check_origin(request, who.csrf)
    if not who.may_act:
        raise NotAllowed(f"{who.name} may look, and not change anything")
    return work


def _for_all(work: Annotated[Work, Depends(_looking)]) -> Work:
    if work.tenant_id is not None:
        raise NotAllowed(f"{work.who.name} sees one tenant, and this is about all of them")
    return work


async def _acting_for_all(work: Annotated[Work, Depends(_acting)]) -> Work:
    return _for_all(work)


def check_site(request: Request) -> None:
    """Check that no page of another site sent this, as far as the browser says.

    Raises:
      NotAllowed: When one did.
    """
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise NotAllowed("this was sent from a page of another site")


async def _check_origin(request: Request, csrf: str) -> None:
    """Check that a page of ours sent this, and no other's that a browser has open.

    Raises:
      NotAllowed: When that is not plain.
    """
    check_site(request)
    said: Any = request.headers.get("x-csrf-token")
    if said is None and request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        said = (await request.form()).get("csrf")
    if not isinstance(said, str) or not csrf or not hmac.compare_digest(said.encode(), csrf.encode()):
        raise NotAllowed("the page that this was sent from is too old: load it again, and try again")


#: For routes that show: whoever is logged in.
Looking = Annotated[Work, Depends(_looking)]
#: For routes that change: operators, from a page of ours or with a token.
Acting = Annotated[Work, Depends(_acting)]
#: The same, for those who see all tenants alone.
LookingAtAll = Annotated[Work, Depends(_for_all)]
ActingForAll = Annotated[Work, Depends(_acting_for_all)]
