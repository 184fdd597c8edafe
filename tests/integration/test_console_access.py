"""Who gets into the console, for how long, and what he may do there."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from freezegun import freeze_time
from itsdangerous import URLSafeTimedSerializer
from sqlalchemy import text
from sqlalchemy.exc import InternalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db import session
from tests.integration.command_line import CommandLine
from tests.integration.console import BASE, Console
from tests.servers import Database
from worker.console.access import Acting, Identity, Looking, Work
from worker.console.app import make_app, session_secret
from worker.console.attempts import Attempts
from worker.console.shared import Shared
from worker.console_tokens import digest_of, make_token, read_tokens
from worker.settings import Settings

FORM: Final = "application/x-www-form-urlencoded"


def with_a_form(app: FastAPI) -> FastAPI:
    """Add a route that changes something, and one that tells who asks."""

    @app.post("/changes")
    def changes(work: Acting) -> str:
        return work.who.name

    @app.get("/who")
    def who(work: Looking) -> dict[str, str | None]:
        tenant_id = work.tenant_id
        return {"name": work.who.name, "role": work.who.role, "tenant_id": str(tenant_id) if tenant_id else None}

    return app


@pytest.fixture
def browser(console: Console) -> Iterator[TestClient]:
    """A browser of nobody yet; there are tokens of each role."""
    console.token("viewer")
    console.token("operator")
    with TestClient(with_a_form(make_app(console.settings())), base_url=BASE, follow_redirects=False) as client:
        yield client


def log_in(client: TestClient, token: str) -> None:
    assert client.post("/login", data={"token": token}).status_code == 303


def test_nobody_gets_in_without_a_token(browser: TestClient, console: Console) -> None:
    answer = browser.get("/failures?status=all&text=a+b")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?then=%2Ffailures%3Fstatus%3Dall%26text%3Da%2Bb"
    assert browser.get("/login").status_code == 200
    wrong = browser.post("/login", data={"token": "dramaturg_wrong"})
    assert wrong.status_code == 401
    assert "There is no such token" in wrong.text
    assert browser.get("/failures", headers={"Authorization": "Bearer dramaturg_wrong"}).status_code == 303
    assert "set-cookie" not in wrong.headers
    # And then where he wanted to go.
    right = browser.post("/login", data={"token": console.token("viewer"), "then": "/failures?status=all"})
    assert (right.status_code, right.headers["location"]) == (303, "/failures?status=all")
    assert browser.get("/failures").status_code == 200
    assert browser.get("/login").headers["location"] == "/"


@pytest.mark.parametrize("then", ["//evil.example", "https://evil.example", "/\\evil.example", "/\t/evil.example", "x"])
def test_login_sends_nobody_to_another_host(browser: TestClient, console: Console, then: str) -> None:
    answer = browser.post("/login", data={"token": console.token("viewer"), "then": then})
    assert answer.headers["location"] == "/"
    assert browser.get("/login", params={"then": then}).headers["location"] == "/"


def test_a_program_shows_its_token_with_each_request(browser: TestClient, console: Console) -> None:
    headers = {"Authorization": f"Bearer {console.token('operator')}"}
    assert browser.get("/who", headers=headers).json() == {"name": "operator-1", "role": "operator", "tenant_id": None}
    # No browser sends it by itself, so nothing else is needed.
    assert browser.post("/changes", headers=headers).json() == "operator-1"
    assert not browser.cookies


def test_logging_out_ends_copies_of_the_cookie_too(browser: TestClient, console: Console) -> None:
    log_in(browser, console.token("viewer"))
    copied = browser.cookies["dramaturg_console"]
    assert browser.get("/who").status_code == 200
    assert browser.post("/logout").headers["location"] == "/login"
    assert browser.get("/who").status_code == 303
    # In another process, too, which has it from Redis.
    with TestClient(with_a_form(make_app(console.settings())), base_url=BASE, follow_redirects=False) as other:
        for client in (browser, other):
            client.cookies.set("dramaturg_console", copied)
            assert client.get("/who").status_code == 303
            client.cookies.clear()


def test_a_session_ends_after_its_hours_and_with_its_token(console: Console) -> None:
    console.environment["CONSOLE_SESSION_HOURS"] = "2"
    console.environment["CONSOLE_SECRET"] = "s" * 32
    began = datetime(2026, 5, 1, 12, tzinfo=UTC)
    with freeze_time(began, ignore=["asyncio", "anyio"]) as clock, console.logged_in("viewer") as client:
        # Sent by hand: a browser forgets it in time, and somebody else's copy would not.
        cookie = {"Cookie": f"dramaturg_console={client.cookies['dramaturg_console']}"}
        client.cookies.clear()
        for moment, status in (
            (timedelta(hours=1, minutes=59), 200),
            (timedelta(hours=2, minutes=1), 303),
            # A clock that was set back gives nobody more time.
            (timedelta(hours=-1), 303),
            (timedelta(hours=1), 200),
        ):
            clock.move_to(began + moment)
            assert client.get("/failures", headers=cookie).status_code == status
        # The secret is the same, and the token is not there any more.
        another = {**console.environment, "CONSOLE_TOKENS": str(make_token("other", "viewer")[1])}
        settings = Settings.load({**console.database.environment(), "REDIS_URL": console.redis_url, **another})
        with TestClient(make_app(settings), base_url=BASE, follow_redirects=False) as client:
            assert client.get("/failures", headers=cookie).status_code == 303


def test_cookies_are_signed_and_out_of_reach_of_scripts(browser: TestClient, console: Console) -> None:
    answer = browser.post("/login", data={"token": console.token("viewer")})
    said = answer.headers["set-cookie"]
    assert "HttpOnly" in said
    assert "SameSite=lax" in said
    assert "Max-Age=43200" in said
    assert "Secure" not in said
    assert console.token("viewer") not in said
    browser.cookies.set("dramaturg_console", browser.cookies["dramaturg_console"][:-2] + "xx", domain="console.test")
    assert browser.get("/who").status_code == 303


def test_a_viewer_changes_nothing_and_neither_does_a_page_of_another_site(console: Console) -> None:
    viewer, operator = console.token("viewer"), console.token("operator")
    app = with_a_form(make_app(console.settings()))
    with TestClient(app, base_url=BASE, follow_redirects=False) as browser:
        log_in(browser, viewer)
        page = browser.get("/failures").text
        assert "Retry all" not in page
        refused = browser.post("/changes", headers={"Authorization": f"Bearer {viewer}"})
        assert (refused.status_code, "may look, and not change anything" in refused.text) == (403, True)
        browser.post("/logout")
        log_in(browser, operator)
        for said in (None, "", "guessed", "ü"):
            answer = browser.post("/changes", data={} if said is None else {"csrf": said})
            assert (answer.status_code, "too old" in answer.text) == (403, True)
        forms = browser.get("/failures").text
        right = {"csrf": re.findall(r'name="csrf" value="([^"]+)"', forms)[0]}
        assert browser.post("/changes", data=right).json() == "operator-1"
        elsewhere = browser.post("/changes", data=right, headers={"Sec-Fetch-Site": "cross-site"})
        assert (elsewhere.status_code, "another site" in elsewhere.text) == (403, True)


def test_transactions_of_viewers_are_read_only_and_of_tenants_bound(database: Database) -> None:
    with session.operator_transaction() as s:
        tenant = s.execute(text("INSERT INTO tenants (name) VALUES ('a') RETURNING id")).scalar_one()
    viewer = Work(Identity("v", "viewer", None, None), datetime.now(UTC))
    with pytest.raises(InternalError, match="read-only"), viewer.begin() as s:
        s.execute(text("DELETE FROM worker_failed_job_events"))
    bound = Work(Identity("t", "operator", tenant, None), datetime.now(UTC))
    with bound.begin() as s:
        assert session.tenant_of(s) == tenant
        assert s.execute(text("SELECT current_user")).scalar_one() == "dramaturg_test_worker"
        assert s.execute(text("SHOW statement_timeout")).scalar_one() == "10s"


def test_tokens_are_not_guessed_for_long(browser: TestClient, console: Console) -> None:
    for _ in range(10):
        assert browser.post("/login", data={"token": "no"}).status_code == 401
    # From then on the right one is not looked at, either; and in other processes.
    assert browser.post("/login", data={"token": console.token("viewer")}).status_code == 429
    with TestClient(make_app(console.settings()), base_url=BASE, follow_redirects=False) as other:
        assert other.post("/login", data={"token": console.token("viewer")}).status_code == 429
        assert other.get("/failures", headers={"Authorization": "Bearer no"}).status_code == 429
        # A program that has its token is not kept out by whoever guesses behind the same router, nor is anybody else.
        headers = {"Authorization": f"Bearer {console.token('viewer')}"}
        assert other.get("/failures", headers=headers).status_code == 200
    with TestClient(
        make_app(console.settings()), base_url=BASE, client=("10.0.0.9", 1), follow_redirects=False
    ) as other:
        log_in(other, console.token("viewer"))


def test_without_tokens_it_is_for_this_machine_alone(console: Console) -> None:
    with TestClient(with_a_form(make_app(console.settings())), base_url="http://localhost:8000") as client:
        page = client.get("/failures")
        assert page.status_code == 200
        assert "Log out" not in page.text
        assert client.post("/changes").status_code == 403
        evil = client.get("/failures", headers={"Host": "rebound.example:8000"})
        assert (evil.status_code, "rebound.example" in evil.text) == (400, True)
        # A proxy here asks for others, and calls it by its name here.
        for name in ("X-Forwarded-For", "Forwarded", "Via"):
            refused = client.get("/failures", headers={name: "1.2.3.4"})
            assert (refused.status_code, "came by a proxy" in refused.text) == (403, True)


def test_every_answer_keeps_the_browser_in(browser: TestClient) -> None:
    for path in ("/login", "/static/console.css", "/nothing", "/failures"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
    assert browser.get("/login").headers["cache-control"] == "no-store"


def test_behind_a_proxy_under_a_path_with_https(console: Console) -> None:
    console.token("viewer")
    console.environment |= {"CONSOLE_PREFIX": "/ops/", "CONSOLE_HTTPS": "yes", "PORT": "8000"}
    with console.client() as plain:
        assert plain.get("/failures?a=1").headers["location"] == "https://console.test/ops/failures?a=1"
        assert plain.post("/login", data={"token": console.token("viewer")}).status_code == 403
        assert plain.get("/failures", headers={"Authorization": "Bearer x"}).status_code == 403
    with console.client(base_url="https://console.test") as client:
        # Whether the proxy leaves the path as it was, or not.
        for path in ("/ops/failures", "/failures"):
            assert client.get(path).headers["location"] == "/ops/login?then=%2Ffailures"
        answer = client.post("/ops/login", data={"token": console.token("viewer"), "then": "/failures"})
        assert answer.headers["location"] == "/ops/failures"
        assert "Secure" in answer.headers["set-cookie"]
        assert "Path=/ops" in answer.headers["set-cookie"]
        page = client.get("/ops/failures")
        assert page.status_code == 200
        assert page.headers["strict-transport-security"]
        assert 'href="/ops/groups"' in page.text
        assert client.get("/ops/static/console.css").status_code == 200


def test_a_large_body_is_refused(browser: TestClient) -> None:
    assert browser.post("/login", content=b"x" * 1_000_001).status_code == 413


def test_settings_hold_hashes_and_say_what_is_wrong_without_them() -> None:
    said, token = make_token("ana", "operator")
    assert said not in str(token)
    assert read_tokens(f"{token}, \n") == (token,)
    assert digest_of(said) == token.digest
    tenant = uuid4()
    assert read_tokens(str(make_token("t", "viewer", tenant)[1]))[0].tenant_id == tenant
    for wrong, message in (
        ("ana:operator", "entry 1 must be NAME:ROLE=sha256"),
        (f"ana:boss=sha256:{'a' * 64}", "ana: the role must be viewer or operator, not 'boss'"),
        (f"ana:viewer:acme=sha256:{'a' * 64}", "ana: the tenant must be a UUID, not 'acme'"),
        ("ana:viewer=sha256:secret-itself", "ana: what follows sha256: must be 64"),
        (f"{token} {token}", "ana is there twice"),
    ):
        with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")) as raised:
            read_tokens(wrong)
        assert "secret-itself" not in str(raised.value)
    # Whoever makes one has seen no entry yet.
    with pytest.raises(ValueError, match=r"^name must be 1 to 100 characters without spaces, .*, not 'a b'$"):
        make_token("a b", "viewer")
    with pytest.raises(ValueError, match=r"^role must be viewer or operator, not 'boss'$"):
        make_token("ana", "boss")


def test_a_settings_reader_makes_no_session(console: Console) -> None:
    console.token("operator")
    settings = console.settings()
    assert settings.console_tokens is not None
    # What signs is not made of hashes that somebody may have read, such as in a repository.
    guessed = hashlib.sha256(f"dramaturg console\0{settings.console_tokens}".encode()).hexdigest()
    digest = read_tokens(settings.console_tokens)[0].digest
    forged = URLSafeTimedSerializer(guessed, salt="session").dumps({"id": "x", "token": digest[:16], "csrf": "x"})
    with console.client() as client:
        assert client.get("/failures", headers={"Cookie": f"dramaturg_console={forged}"}).status_code == 303
    # Every process of a deployment makes the same, and of another one another.
    given = {"CONSOLE_TOKENS": settings.console_tokens, "REDIS_URL": "redis://h"}
    first, again, another, nothing, once_more = (
        session_secret(Settings.load({**given, **more}))
        for more in (
            {"DATABASE_URL": "postgres://u:secret@h/d"},
            {"DATABASE_URL": "postgres://u:secret@h/d"},
            {"DATABASE_URL": "postgres://u:other@h/d"},
            {"DATABASE_URL": "postgres://h/d"},
            {"DATABASE_URL": "postgres://h/d"},
        )
    )
    assert first == again
    # Where there is no secret at all it is this process' own.
    assert len({first, another, nothing, once_more}) == 4


def test_redis_is_not_waited_for_where_everybody_is_answered(
    browser: TestClient, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_loop: list[bool] = []

    def ask(self: Attempts, question: Callable[[], Any]) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            on_the_loop.append(False)
        else:
            on_the_loop.append(True)
        return question()

    monkeypatch.setattr(Attempts, "_ask", ask)
    log_in(browser, console.token("operator"))
    browser.post("/changes")
    browser.post("/changes", headers={"Authorization": "Bearer wrong"})
    browser.post("/failures/abcd/edit")
    browser.post("/logout")
    assert len(on_the_loop) >= 5
    assert not any(on_the_loop)


def test_behind_a_router_nobody_says_who_he_is(console: Console) -> None:
    console.token("viewer")
    console.environment["PORT"] = "8000"

    def status(client: TestClient, *said: str) -> int:
        headers = [("Authorization", "Bearer no"), *(("X-Forwarded-For", each) for each in said)]
        return client.get("/api/v1/stats", headers=headers).status_code

    with console.client() as client:
        # Some routers add to the line that there is, and some add a line.
        assert [status(client, f"10.0.0.{n}, 192.0.2.1") for n in range(5)] == [401] * 5
        assert [status(client, f"10.0.0.{n}", "192.0.2.1") for n in range(5)] == [401] * 5
        assert status(client, "10.0.0.99", "192.0.2.1") == 429
        assert status(client, "192.0.2.1, 192.0.2.2") == 401
        # Whoever has one address of IPv6 has all of its network.
        assert [status(client, f"2001:db8:1:2::{n}") for n in range(10)] == [401] * 10
        assert status(client, "2001:db8:1:2:ffff::1") == 429
        assert status(client, "2001:db8:1:3::1") == 401


def test_a_page_of_another_site_logs_nobody_in(browser: TestClient, console: Console) -> None:
    # As somebody else, who then reads what he does.
    answer = browser.post("/login", data={"token": console.token("operator")}, headers={"Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, "another site" in answer.text) == (403, True)
    assert not browser.cookies


def test_whoever_is_not_logged_in_makes_nothing_be_asked_anew(browser: TestClient) -> None:
    shared: Shared = browser.app.state.shared  # type: ignore[attr-defined]
    assert shared.get("a", lambda: 1) == 1
    assert browser.post("/logout").status_code == 303
    assert shared.get("a", lambda: 2) == 1


def test_a_fault_is_told_like_everything_else(console: Console) -> None:
    console.token("operator")
    console.environment["CONSOLE_PREFIX"] = "/ops"
    app = make_app(console.settings())

    @app.get("/api/v1/fault")
    @app.get("/fault")
    def fault() -> None:
        raise RuntimeError("secret-word")

    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        page = client.get("/ops/fault")
        assert page.status_code == 500
        assert "the console has a fault" in page.text
        assert 'href="/ops/static/console.css' in page.text
        program = client.get("/ops/api/v1/fault")
        assert program.status_code == 500
        assert program.headers["content-type"] == "application/problem+json"
        for answer in (page, program):
            assert "secret-word" not in answer.text
            assert answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"


def test_a_large_body_is_refused_that_does_not_say_how_large_it_is(browser: TestClient, console: Console) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(11):
            yield b"x" * 100_000

    headers = {"Authorization": f"Bearer {console.token('operator')}", "Content-Type": FORM}
    # Some read a form themselves, and some have it read.
    for path in ("/login", "/replays/new"):
        assert browser.post(path, content=body(), headers=headers).status_code == 413, path


def test_nobody_asks_for_more_values_than_are_looked_up_in_time(browser: TestClient, console: Console) -> None:
    log_in(browser, console.token("viewer"))
    answer = browser.get("/failures?" + "&".join(["queue=a"] * 1_001))
    assert (answer.status_code, "queue can be given 1,000 times, not 1,001" in answer.text) == (400, True)


def test_it_has_connections_for_many_and_nobody_waits_long_for_one(
    worker: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []

    def serve(*_: object, **__: object) -> None:
        """Look as often as can be looked at the same time, and once more."""
        with ExitStack() as stack:
            for _n in range(12):
                stack.enter_context(session.operator_transaction())
            # A second is little, and of the half a minute that commands wait a page's router does not see the end.
            with pytest.raises(PoolTimeout, match=r"timeout 1\.00"):
                stack.enter_context(session.operator_transaction())
            looked.append("and was refused")

    monkeypatch.setattr("worker.cli.common.PAGE_WAITS", 1.0)
    monkeypatch.setattr("worker.console.serving.serve", serve)
    worker("console")
    assert looked


def test_what_is_not_there_is_said_in_words(browser: TestClient) -> None:
    for path in ("/nothing", "/failures/a/b/c"):
        page = browser.get(path)
        assert page.status_code == 404
        assert "<h1>Not found</h1>" in page.text
        assert "There is nothing at this address." in page.text


def test_where_only_open_ones_were_looked_at_it_leads_to_the_others(console: Console) -> None:
    with console.logged_in("viewer") as client:
        for path in ("/failures", "/groups"):
            asked = f"{path}?queue=llm&amp;text=none"
            page = client.get(asked.replace("&amp;", "&")).text
            assert f'href="{path}?status=all&amp;queue=llm&amp;text=none">Look among closed ones, too</a>' in page
            assert "Look among closed ones" not in client.get(f"{path}?status=all&text=none").text
