"""The console in this process, as somebody with a token, or nobody, sees it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from uuid import UUID

from dramatiq import Broker
from fastapi.testclient import TestClient
from httpx2 import Response

from db.errors import ConfigurationError
from tests.servers import Database
from worker.console.app import make_app
from worker.console.deployment import Deployment
from worker.console_tokens import make_token
from worker.settings import Settings

BASE = "http://console.test"


def _nothing() -> Broker:
    raise ConfigurationError("no application in this test")


@dataclass
class Console:
    """A console with tokens for whoever is asked for."""

    database: Database
    redis_url: str
    #: Further settings, by variable.
    environment: dict[str, str] = field(default_factory=dict)
    #: What it knows of an application: by default there is none here, so it runs no replays, either.
    deployment: Callable[[Settings], Deployment] = lambda settings: Deployment(settings, imported=_nothing)
    _tokens: dict[tuple[str, UUID | None], str] = field(default_factory=dict)
    _entries: list[str] = field(default_factory=list)

    def token(self, role: str, tenant_id: UUID | None = None) -> str:
        """Return a token; all must be asked for before the first :meth:`client`."""
        if (role, tenant_id) not in self._tokens:
            said, made = make_token(f"{role}-{len(self._tokens)}", role, tenant_id)
            self._tokens[role, tenant_id] = said
            self._entries.append(str(made))
        return self._tokens[role, tenant_id]

    def settings(self) -> Settings:
        """Return the settings of the console."""
        return Settings.load(
            {
                **self.database.environment(),
                "REDIS_URL": self.redis_url,
                "CONSOLE_TOKENS": " ".join(self._entries),
                **self.environment,
            }
        )

    @contextmanager
    def client(self, **arguments: Any) -> Iterator[TestClient]:
        """Give a browser of nobody yet."""
        arguments = {"base_url": BASE, "follow_redirects": False, **arguments}
        settings = self.settings()
        with TestClient(
            make_app(settings, self.deployment(settings)), raise_server_exceptions=False, **arguments
        ) as client:
            yield client

    @contextmanager
    def logged_in(self, role: str, tenant_id: UUID | None = None) -> Iterator[TestClient]:
        """Give a browser in which somebody has logged in."""
        token = self.token(role, tenant_id)
        with self.client() as client:
            answer = client.post("/login", data={"token": token})
            assert answer.status_code == 303, answer.text
            yield client


def csrf(page: Response) -> str:
    """Return what a page's forms hold."""
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None, page.text
    return found[1]


def part(page: Response, name: str) -> str:
    """Return the text of one live part of a page, as people read it."""
    reader = _PartReader(name)
    reader.feed(page.text)
    assert reader.found, f"there is no part {name!r} in {page.text}"
    return " ".join("".join(reader.said).split())


class _PartReader(HTMLParser):
    """Reads the text within the element that is marked so."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.found = False
        self.said: list[str] = []
        self._name = name
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._depth or ("data-live", self._name) in attrs:
            self.found = True
            self._depth += tag not in {"input", "br", "hr", "img"}
            self.said.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """It holds nothing."""

    def handle_endtag(self, tag: str) -> None:
        self._depth = max(0, self._depth - 1)
        self.said.append(" ")

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.said.append(data)


def submit(client: TestClient, page: str, action: str, **values: str) -> Response:
    """Send a form as the page that has it would."""
    return client.post(action, data={"csrf": csrf(client.get(page)), **values})
