"""Pages from templates. Everything is escaped that no template of ours wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from worker.console.access import Doorkeeper, Identity
from worker.console.charts import spark
from worker.console.sessions import SESSION
from worker.text import age, counted, last_name, listed, moment, one_line, printable, short

FOLDER: Final = Path(__file__).parent


def when(then: datetime | None, now: datetime, otherwise: str = "never") -> Markup:
    """Return how long ago, with the moment itself for whoever points at it."""
    if then is None:
        return escape(otherwise)
    said = f"{age(then, now)} ago" if then <= now else "just now"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        then.astimezone(UTC).isoformat(), moment(then), said
    )


def status_badge(status: str) -> Markup:
    """Return a status with its colour; the words say it as well."""
    return Markup('<span class="badge {}">{}</span>').format(status, status.replace("_", " "))


def as_json(value: object) -> str:
    """Return a value for the eye: as it is, and not as escapes."""
    return json.dumps(value, ensure_ascii=False, default=str)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("worker.console"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "badge": status_badge,
        "counted": counted,
        "json": as_json,
        "last_name": last_name,
        "listed": listed,
        "moment": moment,
        "one_line": one_line,
        "printable": printable,
        "short": short,
    }
    environment.globals |= {"age": age, "spark": spark, "when": when, "version": _version()}
    return environment


@cache
def _version() -> str:
    """Return what changes when a static file does, so that browsers may keep them."""
    digest = hashlib.sha256()
    for path in sorted((FOLDER / "static").iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def href(request: Request, path: str, query: str | Mapping[str, Any] = "") -> str:
    """Return the address of a page of ours, wherever the console is.

    Arguments:
      path: From the console's root, such as ``/failures``; what is special in it must be quoted.
      query: With its question mark; or by name.
    """
    if not isinstance(query, str):
        found = urlencode([(name, str(value)) for name, value in query.items() if value is not None])
        query = f"?{found}" if found else ""
    return f"{request.scope.get('root_path', '')}{path}{query}"


def render(
    request: Request, template: str, *, who: Identity | None, now: datetime, status_code: int = 200, **values: Any
) -> Response:
    """Return a page.

    Arguments:
      template: The name of its file.
      who: Whom it is for; None for whoever is not logged in.
      now: When it was asked for.
      values: What the template shows.
    """
    response = HTMLResponse(status_code=status_code)
    doorkeeper: Doorkeeper = request.app.state.doorkeeper
    if not doorkeeper.tokens and who is not None and not who.csrf:
        # Whoever needs no token needs a session for his forms all the same.
        cookie = doorkeeper.sessions.begin(request, response)
        who = Identity(who.name, who.role, who.tenant_id, cookie.csrf)
    page = _environment().get_template(template)
    root = request.scope.get("root_path", "")
    path = request.scope["path"].removeprefix(root) or "/"
    response.body = page.render(
        href=lambda path, query="": href(request, path, query),
        said=doorkeeper.sessions.said(request, response),
        can_log_out=bool(doorkeeper.tokens) and SESSION in request.cookies,
        who=who,
        now=now,
        path=path,
        quote=lambda text: quote(str(text), safe=""),
        **values,
    ).encode("utf-8", "backslashreplace")
    response.headers["content-length"] = str(len(response.body))
    return response


def redirect(request: Request, path: str, *, say: str = "", kind: str = "good") -> Response:
    """Send a browser on to a page, after something was done; ``say`` is said there."""
    response = RedirectResponse(href(request, path), 303)
    # Whoever did it sees what it did.
    request.app.state.shared.forget()
    if say:
        doorkeeper: Doorkeeper = request.app.state.doorkeeper
        doorkeeper.sessions.say(request, response, say, kind)
    return response
