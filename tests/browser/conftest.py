"""The console as people see it: in Chromium, over a deployment of real processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.e2e.deployment import Deployment
from tests.servers import Cluster, Database, free_port, running_redis
from tests.waiting import eventually
from worker.console_tokens import make_token

#: Debian's, because Playwright's own comes from a host of its own.
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser; without one the tests are skipped, but not on CI."""
    if not Path(CHROMIUM).exists() and not os.environ.get("CI"):
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


#: The application that the console looks at: an actor that fails while somebody's server is away.
JOBS = """
import os
import redis
from worker.routing import actor, register

register("shop", "orders")
client = redis.Redis.from_url(os.environ["REDIS_URL"])

@actor(max_retries=0)
def charge(order, card_token=None):
    if client.exists("gateway-is-down"):
        raise ConnectionError(f"<b>the gateway</b> did not answer for order {order}")
"""
PROCFILE = "orders: dramatiq shop worker.housekeeping --processes 1 --threads 4 --queues orders housekeeping\n"


@dataclass
class Site:
    """A console in a process of its own, and workers."""

    deployment: Deployment
    url: str
    tokens: dict[str, str]
    tenants: dict[str, UUID]
    browser: Browser
    stack: ExitStack
    #: What browsers complained of: a script that broke, or what the policy forbids.
    complaints: list[str] = field(default_factory=list)

    def context(self, *, javascript: bool = True, width: int = 1440, scheme: str = "light") -> BrowserContext:
        """Return a browser of nobody yet."""
        context = self.browser.new_context(
            base_url=self.url,
            java_script_enabled=javascript,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        self.stack.callback(context.close)
        context.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        context.on("weberror", lambda e: self.complaints.append(str(e.error)))
        context.set_default_timeout(20_000)
        return context

    def log_in(self, who: str, **options: object) -> Page:
        """Return the overview as somebody sees it who has just logged in."""
        page = self.context(**options).new_page()  # type: ignore[arg-type]
        page.goto("/")
        page.get_by_label("Token").fill(self.tokens[who])
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", level=1).wait_for()
        return page

    def gateway(self, *, up: bool) -> None:
        """Let jobs succeed from now on, or fail."""
        if up:
            self.deployment.client.delete("gateway-is-down")
        else:
            self.deployment.client.set("gateway-is-down", 1)

    def send(self, tenant: str, *orders: int, queue: str = "orders") -> None:
        """Send jobs for a tenant; wait until they have ended."""
        # Dramatiq's own: it sends to actors that this process does not know.
        producer = RedisBroker(client=self.deployment.client)
        producer.declare_queue(queue)
        options = {"tenant_id": str(self.tenants[tenant]), "correlation_id": str(uuid4())}
        for order in orders:
            kwargs = {"order": order, "card_token": "4111 1111"}
            producer.enqueue(Message(queue, "shop.charge", (), kwargs, options))
        eventually(lambda: self.deployment.waiting(queue) == 0, seconds=60)


@pytest.fixture(scope="module")
def site(
    cluster: Cluster, template: Database, chromium: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A console, and a worker that runs the application's jobs, until the module ends."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "shop.py").write_text(JOBS)
    (folder / "Procfile").write_text(PROCFILE)
    (folder / "logs").mkdir()
    with ExitStack() as stack:
        database = stack.enter_context(cluster.database(template.name))
        deployment = Deployment(database, stack.enter_context(running_redis()), folder / "logs", stack)
        tenants = {name: deployment.add_tenant(name) for name in ("acme", "globex")}
        made = {
            "operator": make_token("olga", "operator"),
            "viewer": make_token("vera", "viewer"),
            "acme": make_token("ann", "operator", tenants["acme"]),
        }
        port = free_port()
        root = str(Path(__file__).parents[2])
        environment = {
            "CONSOLE_TOKENS": " ".join(str(kept) for _, kept in made.values()),
            "PYTHONPATH": f"{root}:{folder}",
            "EXTRA_QUEUES": "orders",
        }
        deployment.start(*PROCFILE.split()[1:], cwd=folder, **environment)
        log = deployment.start("worker", "console", "--port", str(port), cwd=folder, **environment)
        eventually(lambda: "running on" in log.read_text(), seconds=60)
        tokens = {who: said for who, (said, _) in made.items()}
        yield Site(deployment, f"http://127.0.0.1:{port}", tokens, tenants, chromium, stack)
