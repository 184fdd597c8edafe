"""What holds for every request before a route sees it: path prefix, host, https, size; and the headers of answers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bytes of a request's body.
BODY_AT_MOST: Final = 1_000_000
#: This machine's own names.
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

#: Asked by machines beside this one, by its address; nothing secret is there.
_HEALTH: Final = ("/health/live", "/health/ready", "/health/worker")

#: Nothing of another host, nothing in line, no frame around it. https://www.w3.org/TR/CSP3/
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Prefix:
    """Serves the console under a path, whether the proxy in front leaves that in the request's path or not."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app, self._prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._prefix:
            path = scope["path"]
            if path != self._prefix and not path.startswith(f"{self._prefix}/"):
                path = self._prefix + path
            scope = {**scope, "root_path": self._prefix, "path": path}
        await self._app(scope, receive, send)


class AnswerHeaders:
    """Adds the headers that keep a browser from doing more than it should."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app, self._https = app, https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # What a page shows is nobody's who uses this browser next.
                headers.setdefault("cache-control", "no-store")
                if self._https or scope.get("scheme") == "https":
                    headers.setdefault("strict-transport-security", "max-age=31536000")
            await send(message)

        await self._app(scope, receive, with_headers)


class KnownHosts:
    """Answers who asks for a host that this is, so that a name somebody else points at this machine gets him nothing.

    Arguments:
      hosts: Their names; none for any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._hosts:
            said = Headers(scope=scope).get("host", "").lower()
            host = said[1:].partition("]")[0] if said.startswith("[") else said.partition(":")[0]
            if host not in self._hosts:
                await PlainTextResponse(
                    f"The console is not called {host!r} (CONSOLE_HOSTS says what it is called).\n", 400
                )(scope, receive, send)
                return
        await self._app(scope, receive, send)


#: What proxies add to requests.
_OF_PROXIES: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "via")


class NoProxies:
    """Answers this machine alone: a proxy on it asks for others, whatever host it names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            found = next((name for name in _OF_PROXIES if name in headers), None)
            if found is not None:
                said = (
                    f"Without CONSOLE_TOKENS the console is for this machine alone; this came by a proxy ({found}).\n"
                )
                await PlainTextResponse(said, 403)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class HttpsOnly:
    """Sends whoever comes by plain http to https; what was not to be repeated, such as a token, is refused instead."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope.get("scheme") == "https" or scope["path"].endswith(_HEALTH):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] in {"GET", "HEAD"} and "authorization" not in headers:
            query = scope.get("query_string", b"").decode("latin-1")
            where = f"https://{headers.get('host', '')}{quote(scope['path'])}{f'?{query}' if query else ''}"
            await RedirectResponse(where, 308)(scope, receive, send)
        else:
            await PlainTextResponse("The console is asked by https only.\n", 403)(scope, receive, send)


class SmallBodies:
    """Refuses bodies that are larger than any form here."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = PlainTextResponse(f"The body must be at most {BODY_AT_MOST:,} bytes.\n", 413)
        length = Headers(scope=scope).get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length) > BODY_AT_MOST:
            await refusal(scope, receive, send)
            return
        seen, begun = 0, False

        async def receive_some() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            # Of a body that did not say how long it is.
            return {"type": "http.disconnect"} if seen > BODY_AT_MOST else message

        async def send_on(message: Message) -> None:
            nonlocal begun
            # Not what is made of half a body.
            if begun or seen <= BODY_AT_MOST:
                begun = True
                await send(message)

        await self._app(scope, receive_some, send_on)
        if not begun and seen > BODY_AT_MOST:
            await refusal(scope, receive, send)
