"""What holds for every route of the console, whoever adds it: they are taken from the application itself.

A route is asked with every id that there is in every part of its path, whatever that is called, and with everything
that can be asked for; what a form holds, or a body of JSON, is made from what the route declares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args
from urllib.parse import quote_plus
from uuid import uuid4

import pytest
import redis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response
from markupsafe import escape
from pydantic import BaseModel
from starlette.routing import Mount

from tests.integration.console import Console
from tests.integration.two_tenants import MARK, MINE, THEIRS, WORD, Things, everything, plant
from tests.servers import Database
from worker.console import asking
from worker.console.app import make_app

#: Those that are for nobody in particular.
FOR_ANYBODY: Final = {"/login", "/health/live", "/health/ready", "/health/worker"}
CHANGING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
#: Of what pages and forms have, what no route declares because it looks at all that it is sent.
ASKED: Final = (*asking.NAMES, "after", "before", "limit", "state", "hours", "full", "who", "event", "name", "form_id")
SAID: Final = ("note", "reason", "why", "action", "ramp", "rate", "threshold", "window")


@dataclass(frozen=True)
class Route:
    """A method of a path."""

    method: str
    path: str
    queries: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    #: Of its body, where that is JSON.
    schema: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def parts(self) -> list[str]:
        """Names of the parts of its path that vary."""
        return re.findall(r"{(\w+)(?::\w+)?}", self.path)

    def at(self, value: str) -> str:
        """Return its path with a value in every part that varies."""
        return re.sub(r"{\w+(:\w+)?}", value, self.path)

    @property
    def is_for_programs(self) -> bool:
        """Whether it is of the API."""
        return self.path.startswith("/api/") or self.path == "/metrics"


def routes_of(app: FastAPI) -> list[Route]:
    """Return every route but static files.

    Raises:
      AssertionError: When there is something of which nothing is known here.
    """
    found: list[Route] = []
    for route in _flat(app.routes):
        if isinstance(route, Mount):
            assert route.path == "/static", f"what is mounted at {route.path}?"
            continue
        assert isinstance(route, APIRoute), f"what is {route!r}?"
        dependants = [route.dependant]
        queries: list[str] = []
        for dependant in dependants:
            dependants += dependant.dependencies
            queries += [str(parameter.alias) for parameter in dependant.query_params]
        body = _schema(route)
        forms = () if body is not None else tuple(str(p.alias) for p in route.dependant.body_params)
        found += [Route(m, route.path, tuple(queries), forms, body) for m in sorted(route.methods or ())]
    return found


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    """Give routes, those of included routers among them, which newer versions of FastAPI keep apart."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is None:
            yield route
        else:
            assert not route.include_context.prefix, "a prefix belongs to the router itself"
            yield from _flat(included.routes)


def _schema(route: APIRoute) -> Mapping[str, Any] | None:
    """Return the schema of a route's body, with what it refers to put in its place; None where it has no JSON."""
    for parameter in route.dependant.body_params:
        # It may be left out.
        kinds = get_args(parameter.field_info.annotation) or (parameter.field_info.annotation,)
        model = next((kind for kind in kinds if kind is not type(None)), None)
        if isinstance(model, type) and issubclass(model, BaseModel):
            schema = model.model_json_schema()
            found: Mapping[str, Any] = _resolved(schema, schema.get("$defs", {}))
            return found
    return None


def _resolved(schema: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _resolved(known[schema["$ref"].rpartition("/")[2]], known)
        return {name: _resolved(value, known) for name, value in schema.items() if name != "$defs"}
    return [_resolved(value, known) for value in schema] if isinstance(schema, list) else schema


def bodies(schema: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[Any]:
    """Give bodies of a schema: one for each way to say what ``given`` has by name, with something in all that must be
    there."""
    for name, values in given.items():
        for value in values:
            body = _body(schema, name, value)
            if body is not None:
                yield body


def _body(schema: Mapping[str, Any], name: str, value: str) -> Any:
    """Return a body in which what is called ``name`` has a value, wherever that is; None where there is no such."""
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    body: dict[str, Any] = {}
    found = False
    for each, of in properties.items():
        options = of.get("anyOf", [of])
        inner = next((option for option in options if option.get("properties")), None)
        if each == name:
            several = any(option.get("type") == "array" for option in options)
            body[each], found = [value] if several else value, True
        elif inner is not None:
            deeper = _body(inner, name, value)
            if deeper is not None:
                body[each], found = deeper, True
        elif each in required or each in SAID:
            body[each] = next((_any(option) for option in options if option.get("type") != "null"), "x")
    return body if found else None


def _any(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    kinds: dict[str, Any] = {"integer": 1, "number": 0.5, "boolean": True, "array": [1], "object": {}, "string": "x"}
    return kinds.get(schema.get("type", "string"), "x")


@dataclass(frozen=True)
class Request:
    """What is sent."""

    route: Route
    path: str
    query: tuple[tuple[str, str], ...] = ()
    form: tuple[tuple[str, str], ...] = ()
    body: Any = field(default=None, hash=False)

    def send(self, client: TestClient, csrf: str = "", **headers: str) -> Response:
        """Send it as a browser does, with what a form of ours holds, or as a program."""
        if csrf:
            headers["x-csrf-token"] = csrf
        more: dict[str, Any] = {}
        if self.route.method in CHANGING:
            more = {"json": self.body} if self.route.schema is not None else {"data": dict(self.form)}
        return client.request(
            self.route.method, self.path, params=list(self.query), headers=headers, follow_redirects=False, **more
        )

    def without_echo(self, text: str) -> str:
        """Return an answer without what it repeats of what was sent."""
        for said in {value for _, value in (*self.query, *self.form)} | {self.path, *_leaves(self.body)}:
            # As it is, in HTML, in the address of a link, in JSON, and as Python quotes it in either.
            for form in (said, repr(said)[1:-1]):
                for written in (form, str(escape(form)), quote_plus(form), json.dumps(form)[1:-1]):
                    text = text.replace(written, "") if WORD in written else text
        return text

    def __str__(self) -> str:
        return f"{self.route.method} {self.path} {self.query} {self.form} {self.body}"


def _leaves(body: Any) -> Iterator[str]:
    if isinstance(body, dict | list):
        for value in body.values() if isinstance(body, dict) else body:
            yield from _leaves(value)
    elif isinstance(body, str):
        yield body


def about(route: Route, things: Things) -> Iterator[Request]:
    """Give requests that name what is somebody's: each in every part of the path, and in all that can be asked for."""
    given = what_names(things)
    usual = str(things.jobs[0])
    paths = [route.at(value) for value in things.in_paths()] if route.parts else [route.path]
    for path in paths:
        yield from _with_what_is_said(route, path, {"note": ["x"]})
    for name in dict.fromkeys([*route.queries, *ASKED]):
        for value in (*given.get(name, ()), *(IN_GENERAL.get(name, ()) if route.method == "GET" else ())):
            yield Request(route, route.at(usual), query=((name, value),), form=_words(route), body=_some(route))
    if route.method in CHANGING:
        yield from _with_what_is_said(route, route.at(usual), given)


def _with_what_is_said(route: Route, path: str, given: Mapping[str, Any]) -> Iterator[Request]:
    if route.method not in CHANGING:
        yield Request(route, path)
    elif route.schema is not None:
        found = list(bodies(route.schema, given)) or [_some(route)]
        yield from (Request(route, path, body=body) for body in found)
    else:
        for name in [*route.forms, *ASKED]:
            for value in given.get(name, ()):
                yield Request(route, path, form=(*_words(route), (name, value)))
        yield Request(route, path, form=_words(route))


def _words(route: Route) -> tuple[tuple[str, str], ...]:
    return tuple((name, "x") for name in SAID if name in route.forms) or (("note", "x"), ("reason", "x"))


def _some(route: Route) -> Any:
    """Return a body that says nothing of anybody."""
    if route.schema is None:
        return None
    properties, required = route.schema.get("properties", {}), set(route.schema.get("required", ()))
    return {name: _any(of.get("anyOf", [of])[0]) for name, of in properties.items() if name in required or name in SAID}


def what_names(things: Things) -> dict[str, list[str]]:
    """Return by what, and how, what is somebody's can be asked for."""
    ids = [str(job) for job in things.jobs]
    tenants = [str(things.tenant_id)] if things.tenant_id is not None else []
    if things.tenant_id == THEIRS:
        tenants.append(f"theirs {MARK}")
    return {
        "id": [ids[0], ids[0][:8]],
        "ids": [ids[0]],
        "fingerprint": [things.fingerprints[0], things.fingerprints[0][:8]],
        "correlation_id": [str(things.correlation_id)],
        "replay": [str(things.replays[0])],
        "form_id": [str(things.replays[0])],
        "tenant": tenants,
        "tenant_id": tenants,
        "text": [WORD],
        "actor": [f"shop.run {MARK}"],
        "exception": [f"shop.errors.Wrong{MARK}"],
        "error_type": [f"kind {MARK}"],
        "who": [f"person {MARK}"],
        "by": [f"person {MARK}"],
        "name": ["theirs"],
        "before": [str(max(things.events) + 1)],
    }


#: What names nobody's in particular, and so is no way to change anything of somebody's.
IN_GENERAL: Final = {
    "status": ["all", "abandoned"],
    "text": ["message"],
    "state": ["running", "paused"],
    "hours": ["24"],
    "full": ["true"],
}


def csrf_of(client: TestClient) -> str:
    """Return what forms of whoever is logged in hold."""
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/failures").text)
    assert found is not None
    return found[1]


@pytest.fixture
def planted(database: Database, redis_url: str) -> tuple[Things, Things, Things]:
    return plant(database, redis_url)


@pytest.fixture
def routes(console: Console) -> list[Route]:
    """Every route there is."""
    found = routes_of(make_app(console.settings()))
    # That they are found at all.
    assert {"/", "/failures", "/failures/{ident}", "/failures/{ident}/resolve"} <= {route.path for route in found}
    return found


def test_nobody_gets_anything(console: Console, routes: list[Route], planted: tuple[Things, ...]) -> None:
    console.token("viewer")
    before = everything(console.database)
    ours = planted[0]
    with console.client() as client:
        for route in routes:
            if route.path in FOR_ANYBODY:
                continue
            request = Request(route, route.at(str(ours.jobs[0])), form=_words(route), body=_some(route))
            for headers in ({}, {"authorization": "Bearer dramaturg_wrong"}, {"cookie": "dramaturg_console=forged"}):
                # Of wrong tokens not so many that it is that which is refused.
                client.app.state.doorkeeper.attempts._here.clear()  # type: ignore[attr-defined]
                _forget_attempts(console)
                answer = request.send(client, **headers)
                if route.is_for_programs:
                    assert answer.status_code == 401, f"{request}: {answer.status_code} {answer.text}"
                    assert answer.headers["content-type"] == "application/problem+json"
                else:
                    assert answer.status_code == 303, f"{request}: {answer.status_code} {answer.text}"
                    assert answer.headers["location"].startswith("/login"), request
    assert everything(console.database) == before


def _forget_attempts(console: Console) -> None:
    with redis.Redis.from_url(console.redis_url) as client:
        for key in client.scan_iter("*console.wrong.*"):
            client.delete(key)


def test_only_operators_change_anything_and_only_from_a_page_of_ours(
    console: Console, routes: list[Route], planted: tuple[Things, ...]
) -> None:
    viewer, bound = console.token("viewer"), console.token("viewer", MINE)
    console.token("operator")
    ours = planted[0]
    changing = [route for route in routes if route.method in CHANGING and route.path not in {*FOR_ANYBODY, "/logout"}]
    assert len(changing) >= 5
    before = everything(console.database)
    with console.client() as program, console.logged_in("viewer") as looking, console.logged_in("operator") as acting:
        right = csrf_of(acting)
        for route in changing:
            for value in dict.fromkeys((str(ours.jobs[0]), str(ours.replays[0]), ours.fingerprints[0])):
                request = Request(route, route.at(value), form=_words(route), body=_some(route))
                for token in (viewer, bound):
                    refused = request.send(program, authorization=f"Bearer {token}")
                    assert refused.status_code == 403, f"{request}: {refused.status_code} {refused.text}"
                refused = request.send(looking, csrf=csrf_of(looking))
                assert (refused.status_code, "may look" in refused.text) == (403, True), request
                for wrong in ({}, {"x-csrf-token": "guessed"}, {"x-csrf-token": right, "sec-fetch-site": "cross-site"}):
                    refused = request.send(acting, **wrong)
                    assert refused.status_code == 403, f"{request}: {refused.status_code} {refused.text}"
    assert everything(console.database) == before


@pytest.mark.timeout(600)
def test_whoever_is_bound_to_a_tenant_gets_and_changes_nothing_of_another(
    console: Console, routes: list[Route], planted: tuple[Things, Things, Things]
) -> None:
    mine, theirs, nobodys = planted
    before = everything(console.database)
    with console.logged_in("operator", MINE) as client:
        csrf = csrf_of(client)
        own = client.get(f"/failures/{mine.jobs[0]}")
        assert (own.status_code, "second line" in own.text) == (200, True)
        for route in routes:
            if route.path in {*FOR_ANYBODY, "/logout"}:
                continue
            for things in (theirs, nobodys):
                for request in about(route, things):
                    answer = request.send(client, csrf)
                    assert answer.status_code < 500, f"{request}: {answer.text}"
                    assert WORD not in request.without_echo(answer.text), f"{request}: {answer.text}"
                    assert WORD not in str(answer.headers), request
            # As if it were not there: that it is, is nobody's to know.
            if route.parts:
                known, unknown = (
                    next(_with_what_is_said(route, route.at(value), {"note": ["x"]})).send(client, csrf)
                    for value in (str(theirs.jobs[0]), str(uuid4()))
                )
                assert known.status_code == unknown.status_code, route
            # For each, so that the one that changed something is named.
            assert everything(console.database) == before, route


def test_what_anybody_wrote_is_text(
    console: Console, routes: list[Route], planted: tuple[Things, Things, Things]
) -> None:
    _, theirs, nobodys = planted
    seen: set[str] = set()
    with console.logged_in("operator") as client:
        csrf = csrf_of(client)
        for route in routes:
            if route.path in {*FOR_ANYBODY, "/logout"} or route.is_for_programs:
                continue
            # What is there, and what somebody asks for or says.
            requests = [r for things in (theirs, nobodys) for r in about(route, things) if route.method == "GET"]
            requests += [
                Request(route, route.at(str(theirs.jobs[0])), query=((name, MARK),)) for name in (*ASKED, MARK)
            ]
            requests += [Request(route, route.at(MARK.replace("/", "%2F")), form=(("note", MARK), ("reason", MARK)))]
            if route.method in CHANGING:
                # To no job that there is, so that those that come later find what they look for.
                requests = [
                    Request(route, route.at(value), form=tuple((name, MARK) for name in (*SAID, *route.forms)))
                    for value in (str(uuid4()), MARK.replace("/", "%2F"))
                ]
            for request in requests:
                answer = request.send(client, csrf)
                if answer.status_code == 303:
                    answer = client.get(answer.headers["location"])
                assert answer.status_code < 500, f"{request}: {answer.text}"
                if answer.headers.get("content-type", "").startswith("text/html"):
                    assert "<script>alert" not in answer.text, request
                    if "&lt;script&gt;alert" in answer.text and answer.status_code == 200:
                        seen.add(route.path)
                else:
                    assert answer.headers.get("content-type", "").startswith(("text/plain", "application/")), request
    # It was there to be seen.
    pages = {r.path for r in routes if r.method == "GET" and not r.is_for_programs and r.path not in FOR_ANYBODY}
    assert pages - seen == set()
