"""Logging in with a token, and out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from worker.console.access import Doorkeeper, NotLoggedIn, TooManyAttempts, check_site, identify
from worker.console.rendering import href, render

router = APIRouter()


@router.get("/login")
def login(request: Request, then: str = "/") -> Response:
    """Show the form; whoever needs none goes on."""
    try:
        identify(request)
    except NotLoggedIn:
        return _form(request, then)
    return RedirectResponse(href(request, _ours(then)), 303)


@router.post("/login")
def log_in(request: Request, token: Annotated[str, Form()] = "", then: Annotated[str, Form()] = "/") -> Response:
    """Begin a session for whoever has a token."""
    # Else somebody's page might log him in as another, who then reads what he does.
    check_site(request)
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    try:
        found = doorkeeper.token(request, token.strip())
    except NotLoggedIn:
        return _form(request, then, 401, "There is no such token. Whoever deploys this makes one: worker console token")
    except TooManyAttempts:
        return _form(request, then, 429, "Too many wrong tokens came from this address. Wait a minute.")
    response = RedirectResponse(href(request, _ours(then)), 303)
    doorkeeper.sessions.begin(request, response, found.digest)
    return response


@router.post("/logout")
def log_out(request: Request) -> Response:
    """End the session, here and wherever its cookie was copied to."""
    # A form of another site that logs somebody out harms nobody, and one that is too old must work.
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    response = RedirectResponse(href(request, "/login"), 303)
    doorkeeper.sessions.end(request, response)
    return response


def _form(request: Request, then: str, status: int = 200, wrong: str = "") -> Response:
    now = datetime.now(UTC)
    return render(request, "login.html", who=None, now=now, status_code=status, then=_ours(then), wrong=wrong)


def _ours(then: str) -> str:
    """Return where to go then, if that is here: what follows a slash and a slash, or a backslash, is another host."""
    there = then.startswith("/") and not then.startswith(("//", "/\\")) and "\n" not in then and "\r" not in then
    return then if there and "\t" not in then else "/"
