"""Jobs that log in every way there is, and secrets wherever they can."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

from loguru import logger
from sqlalchemy import text

from db.session import transaction
from worker.routing import actor, register

register(__name__, "llm")

log = logging.getLogger("myapp.jobs")
QUERY = text("SELECT 'hunter' || :secret")


class Shy:
    """What has no text."""

    def __str__(self) -> str:
        raise ValueError("token=hunter2")


@actor(max_retries=1, min_backoff=1, max_backoff=1)
def fails(password: str, note: str) -> None:
    """Log, and fail."""
    logger.bind(order=5, api_key="hunter2").info("loguru: {} {token}", note, token="hunter2")
    log.warning("library: %s", {"secret": "hunter2"}, extra={"order": 6, "passwd": "hunter2"})
    logger.info("shy: {}", Shy())
    with transaction() as session:
        session.execute(QUERY, {"secret": "2"})
    thread = threading.Thread(target=contextvars.copy_context().run, args=(log.info, "thread: %s", note))
    thread.start()
    thread.join()
    print("printed: password=hunter2", note)  # noqa: T201 - as people do
    log.info("long: %s", "é" * 20_000)
    raise ValueError("cannot reach postgres://app:hunter2@db/x")


@actor(max_retries=0)
async def waits(note: str) -> None:
    """Log from a coroutine, its task and a thread."""
    logger.info("coroutine: {}", note)
    await asyncio.gather(asyncio.to_thread(log.info, "to_thread: %s", note), _later(note))
    async with transaction() as session:
        await session.execute(QUERY, {"secret": "2"})


async def _later(note: str) -> None:
    log.info("task: %s", note)
