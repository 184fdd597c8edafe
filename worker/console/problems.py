"""What goes wrong, in words: as a page for people, as problem+json (RFC 9457) for programs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import psycopg
from dramatiq.errors import ConnectionClosed
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from loguru import logger
from psycopg.errors import QueryCanceled
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from db.errors import ConfigurationError
from db.failed.statuses import IllegalMove
from db.replays.runs import IllegalChange
from worker.console.access import Identity, NotAllowed, NotLoggedIn, TooManyAttempts
from worker.console.rendering import href, render
from worker.console.shared import TakesTooLong
from worker.failed.asked import NoSuchJob
from worker.failed.choosing import NothingToReplay
from worker.postgres_words import explain
from worker.replay.messages import NotReplayable

#: For people, who know no HTTP.
_HEADINGS: Final = {
    400: "Not understood",
    403: "Not allowed",
    404: "Not found",
    409: "Not possible as it is",
    422: "Not understood",
    429: "Too many attempts",
    500: "A fault of the console",
    503: "Not available now",
}
#: Jobs that are named, and characters of a value.
_NAMED: Final = 5
_VALUE: Final = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong: a status of HTTP, and a sentence without secrets."""

    status: int
    detail: str

    @property
    def title(self) -> str:
        """What HTTP calls it."""
        return HTTPStatus(self.status).phrase

    @property
    def heading(self) -> str:
        """What a page calls it."""
        return _HEADINGS.get(self.status, self.title)

    @property
    def sentence(self) -> str:
        """What a page says of it."""
        if self.detail == self.title:
            # A router's, which says no more than its status.
            return "There is nothing at this address." if self.status == HTTPStatus.NOT_FOUND else f"{self.title}."
        return self.detail if self.detail.endswith((".", "?", "!")) else f"{self.detail}."


class Illegal(ValueError):
    """Raised when something cannot be done to what is there as it is now; the message says why."""


class Gone(Exception):
    """Raised when there was something that is no more."""


def problem_of(error: Exception) -> Problem | None:
    """Return what an error means to whoever asked; None where it is our own."""
    match error:
        case NotLoggedIn():
            return Problem(401, "log in first: with a token, or with Authorization: Bearer")
        case NotAllowed():
            return Problem(403, str(error))
        case TooManyAttempts():
            return Problem(429, "too many wrong tokens came from this address; wait a minute")
        case NoSuchJob():
            return Problem(404, str(error))
        case LookupError() if type(error) is LookupError:
            # Not a KeyError, which is ours.
            return Problem(404, str(error))
        case Gone():
            return Problem(410, str(error))
        case NothingToReplay():
            why = "; ".join(f"{job_id} {reason}" for job_id, reason in list(error.refused.items())[:_NAMED])
            return Problem(409, f"{error}: {why or 'no failed job matches that could be sent'}")
        case IllegalChange() | IllegalMove() | NotReplayable() | Illegal():
            return Problem(409, str(error))
        case RequestValidationError():
            return Problem(422, "; ".join(_of_field(each) for each in error.errors()[:5]))
        case DBAPIError(orig=QueryCanceled()):
            return Problem(503, "Postgres took too long for that: ask for less, with a filter or a shorter time")
        case DBAPIError(orig=psycopg.Error(sqlstate=None)):
            # Not what it says: where Postgres is, is nobody's business who has one tenant.
            return Problem(503, "Postgres cannot be reached")
        case DBAPIError():
            return Problem(503, explain(error.orig))
        case PoolTimeout():
            return Problem(503, "all connections to Postgres are in use; try again in a moment")
        case TakesTooLong():
            return Problem(503, str(error))
        case ConnectionClosed():
            return Problem(503, "Redis does not answer")
        case ConfigurationError():
            return Problem(503, str(error))
        case ValueError():
            return Problem(400, str(error))
        case ClientDisconnect():
            return Problem(400, "the request ended before its body did")
        case HTTPException():
            return Problem(error.status_code, str(error.detail))
    return None


def _of_field(error: Any) -> str:
    """Return what is wrong with a field; its value where that is in an address, or else may be secret."""
    where, *names = error["loc"]
    given = f", not {str(error['input'])[:_VALUE]!r}" if where in {"query", "path"} and "input" in error else ""
    return f"{'.'.join(map(str, names or [where]))}: {error['msg']}{given}"


def is_for_programs(request: Request) -> bool:
    """Tell whether it is a program that asks."""
    path = str(request.scope["path"]).removeprefix(request.scope.get("root_path", ""))
    return path.startswith(("/api/", "/health/")) or path == "/metrics"


def install(app: FastAPI) -> None:
    """Have every error of ``app`` answered in words; before other middleware is added, which is then around this."""

    async def answer(request: Request, error: Exception) -> Response:
        problem = problem_of(error)
        if problem is None:
            # Its text may hold anything, and who asked cannot mend it.
            logger.opt(exception=error).error("{} {}", request.method, request.url.path)
            problem = Problem(500, "the console has a fault, which its log tells")
        elif problem.status == 503 and isinstance(error, DBAPIError):
            logger.warning("{}", explain(error.orig))
        if is_for_programs(request):
            body = {"type": "about:blank", "title": problem.title, "status": problem.status, "detail": problem.detail}
            headers = {"www-authenticate": "Bearer"} if problem.status == 401 else {}
            return JSONResponse(body, problem.status, headers, "application/problem+json")
        if isinstance(error, NotLoggedIn):
            after = request.url.path.removeprefix(request.scope.get("root_path", ""))
            query = f"?{request.url.query}" if request.url.query else ""
            then = f"?{urlencode({'then': after + query})}" if request.method == "GET" and after != "/" else ""
            return RedirectResponse(href(request, f"/login{then}"), 303)
        who: Identity | None = getattr(request.state, "identity", None)
        return render(
            request, "problem.html", who=who, now=datetime.now(UTC), status_code=problem.status, problem=problem
        )

    for kind in _EXPECTED:
        app.add_exception_handler(kind, answer)
    app.add_middleware(_Faults, answer=answer)


class _Faults:
    """Answers where we are at fault, inside of what gives each answer its headers, and knows the path prefix."""

    def __init__(self, app: ASGIApp, answer: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app, self._answer = app, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as e:
            if begun or scope["type"] != "http":
                raise
            response = await self._answer(Request(scope, receive), e)
            await response(scope, receive, send)


_EXPECTED: Final = (
    Gone,
    NotReplayable,
    NotLoggedIn,
    NotAllowed,
    TooManyAttempts,
    LookupError,
    RequestValidationError,
    DBAPIError,
    PoolTimeout,
    TakesTooLong,
    ConnectionClosed,
    ConfigurationError,
    ValueError,
    ClientDisconnect,
    HTTPException,
)
