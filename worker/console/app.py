"""The application: its routes, and what stands in front of them."""

from __future__ import annotations

import getpass
import hashlib
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import redis
from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from worker.console import api, health, metrics, pages, problems
from worker.console.access import Doorkeeper
from worker.console.asgi import LOOPBACK, AnswerHeaders, HttpsOnly, KnownHosts, NoProxies, Prefix, SmallBodies
from worker.console.attempts import Attempts
from worker.console.deployment import Deployment
from worker.console.rendering import FOLDER
from worker.console.sessions import SessionCookies
from worker.console.shared import Shared
from worker.console_tokens import read_tokens
from worker.metrics.exposition import make_exposition
from worker.redis_client import make_redis
from worker.settings import Settings

#: Seconds that Redis may take where a page can do without.
ANSWERS_WITHIN: Final = 2.0
#: Seconds for which what one sees of a live page is what the next sees, too; less than its parts are asked for again.
SHARED_FOR: Final = 4.0


class _Files(StaticFiles):
    """Files whose address changes when they do."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


def make_app(settings: Settings, deployment: Deployment | None = None) -> FastAPI:
    """Return the console.

    Arguments:
      settings: Say who may use it and where everything is; ``db.session`` must have been configured.
      deployment: What is known of the application's code; by default what the Procfile's modules say.
    """
    app = FastAPI(
        title="Dramaturg",
        summary="Failed jobs: find, understand, replay and close them.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_until_the_end,
    )
    client = make_redis(settings, answers_within=ANSWERS_WITHIN)
    app.state.settings = settings
    app.state.client = client
    app.state.doorkeeper = make_doorkeeper(settings, client)
    app.state.shared = Shared(SHARED_FOR)
    app.state.deployment = deployment or Deployment(settings)
    app.state.health = health.Health(settings, client)
    app.state.metrics = make_exposition(settings, client)
    problems.install(app)
    app.mount("/static", _Files(directory=FOLDER / "static"), name="static")
    router = APIRouter()
    for module in pages.ALL:
        router.include_router(module.router)
    app.include_router(router, include_in_schema=False)
    app.include_router(health.router, include_in_schema=False)
    app.include_router(metrics.router, include_in_schema=False)
    for resource in api.ALL:
        app.include_router(resource.router)

    https = bool(settings.console_https)
    # The last that is added sees a request first.
    app.add_middleware(SmallBodies)
    if https:
        app.add_middleware(HttpsOnly)
    app.add_middleware(KnownHosts, hosts=_hosts(settings))
    if not settings.console_tokens:
        app.add_middleware(NoProxies)
    app.add_middleware(AnswerHeaders, https=https)
    app.add_middleware(Prefix, prefix=settings.console_prefix)
    return app


@asynccontextmanager
async def _until_the_end(app: FastAPI) -> AsyncIterator[None]:
    """Serve, and then leave to others what runs here."""
    yield
    deployment: Deployment = app.state.deployment
    await run_in_threadpool(deployment.close)


def session_secret(settings: Settings) -> str:
    """Return what signs cookies: the same in every process that has the same settings.

    Another set of tokens is another secret, so every session ends with it. The tokens' hashes are none, for somebody
    may have read them: the passwords of servers are put to them. Without tokens, or passwords, it is this process' own.
    """
    if settings.console_secret:
        return settings.console_secret
    urls = [url or "" for url in (settings.database_url, settings.operator_database_url, settings.redis_url)]
    has_secret = bool(settings.failed_job_keys) or any(urlsplit(url).password for url in urls)
    if not settings.console_tokens or not has_secret:
        return secrets.token_hex(32)
    known = json.dumps(["dramaturg console", settings.console_tokens, settings.failed_job_keys, *urls])
    return hashlib.sha256(known.encode()).hexdigest()


def make_doorkeeper(settings: Settings, client: redis.Redis) -> Doorkeeper:
    """Return who knows who asks."""
    attempts = Attempts(client, settings.redis_namespace, behind_proxy=settings.port is not None)
    return Doorkeeper(
        read_tokens(settings.console_tokens or ""),
        SessionCookies(
            session_secret(settings),
            max_age=int(settings.console_session_hours * 3600),
            path=settings.console_prefix,
            ended=attempts,
            secure=bool(settings.console_https),
        ),
        attempts,
        local_user=_local_user(),
    )


def _hosts(settings: Settings) -> frozenset[str]:
    """Return what the console is called; nothing for whatever it is asked for."""
    if settings.console_hosts:
        return frozenset(settings.console_hosts) | (frozenset() if settings.console_tokens else LOOPBACK)
    return frozenset() if settings.console_tokens else LOOPBACK


def _local_user() -> str:
    try:
        return f"{getpass.getuser()}@console"
    except (KeyError, OSError):
        # A container's user need not have a name.
        return "console"
