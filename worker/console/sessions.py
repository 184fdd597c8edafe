"""Cookies: who has logged in, until when; and what is said on the next page. Signed, so nobody makes one."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fastapi import Request, Response
from itsdangerous import BadData, URLSafeTimedSerializer

SESSION: Final = "dramaturg_console"
SAID: Final = "dramaturg_said"
#: Seconds that something waits to be said.
SAID_WITHIN: Final = 60


class Ended(Protocol):
    """Keeps which sessions were ended by their owners before their time."""

    def end(self, session_id: str, seconds: int) -> None:
        """Keep it for so many seconds."""

    def is_ended(self, session_id: str) -> bool:
        """Tell whether it was."""


@dataclass(frozen=True, slots=True)
class Cookie:
    """A session.

    Attributes:
      id: Its own.
      token: What the hash of the token begins with, by which it was opened; it ends with that token.
      csrf: What forms hold.
    """

    id: str
    token: str
    csrf: str


class SessionCookies:
    """Writes and reads them.

    Arguments:
      secret: Signs them.
      max_age: Seconds of a session.
      path: Under which the console is.
      ended: See :class:`Ended`.
      secure: Whether they go by https alone, also where a request did not.
    """

    def __init__(self, secret: str, *, max_age: int, path: str, ended: Ended, secure: bool = False) -> None:
        self._sessions = URLSafeTimedSerializer(secret, salt="session")
        self._said = URLSafeTimedSerializer(secret, salt="said")
        self._max_age = max_age
        self._path = path or "/"
        self._ended = ended
        self._secure = secure

    def read(self, request: Request) -> Cookie | None:
        """Return the session of a request; None where it has none that holds."""
        try:
            values, signed_at = self._sessions.loads(
                request.cookies.get(SESSION, ""), max_age=self._max_age, return_timestamp=True
            )
            cookie = Cookie(str(values["id"]), str(values["token"]), str(values["csrf"]))
        except (BadData, KeyError, TypeError, ValueError):
            return None
        # A clock that was set back would make a session young again.
        if signed_at.timestamp() > time.time() + 60 or self._ended.is_ended(cookie.id):
            return None
        return cookie

    def begin(self, request: Request, response: Response, token: str = "") -> Cookie:
        """Begin a session, with an id and a form token that nobody had before."""
        cookie = Cookie(secrets.token_urlsafe(16), token[:16], secrets.token_urlsafe(24))
        value = self._sessions.dumps({"id": cookie.id, "token": cookie.token, "csrf": cookie.csrf})
        self._set(request, response, SESSION, value, self._max_age)
        return cookie

    def end(self, request: Request, response: Response) -> None:
        """End the session of a request, so that a copy of its cookie is worth nothing, either."""
        cookie = self.read(request)
        if cookie is not None:
            self._ended.end(cookie.id, self._max_age)
        self._drop(response, SESSION)

    def say(self, request: Request, response: Response, text: str, kind: str) -> None:
        """Have something said on the next page: ``good`` or ``bad``."""
        # A cookie holds 4 KB.
        self._set(request, response, SAID, self._said.dumps([text[:1_500], kind]), SAID_WITHIN)

    def said(self, request: Request, response: Response) -> tuple[str, str] | None:
        """Return what is to be said, once."""
        if SAID not in request.cookies:
            return None
        self._drop(response, SAID)
        try:
            text, kind = self._said.loads(request.cookies[SAID], max_age=SAID_WITHIN)
        except (BadData, TypeError, ValueError):
            return None
        return str(text), "good" if kind == "good" else "bad"

    def _set(self, request: Request, response: Response, name: str, value: str, max_age: int) -> None:
        arguments: dict[str, Any] = {"path": self._path, "httponly": True, "samesite": "lax"}
        secure = self._secure or request.url.scheme == "https"
        response.set_cookie(name, value, max_age=max_age, secure=secure, **arguments)

    def _drop(self, response: Response, name: str) -> None:
        response.delete_cookie(name, path=self._path, httponly=True, samesite="lax")
