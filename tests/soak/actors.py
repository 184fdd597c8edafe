"""Actors that fail in every way, on the four queues; and the middleware that says in the book what ours do.

``dramatiq worker.llm tests.soak.actors --queues llm`` runs them beside ours.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import dramatiq
from dramatiq import Broker, Message, MessageProxy
from dramatiq.middleware import CurrentMessage, Middleware
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import RedisBackend
from sqlalchemy import text

from db.once import once
from db.session import transaction
from db.tenancy import current_tenant
from middleware.replays import replay_of
from middleware.unique import Unique
from tests.chaos.book import Book
from worker import probe
from worker.broker import broker as broker
from worker.queues import Queue

book = Book(Path(os.environ["SOAK_BOOK"]))
_executions = itertools.count()


class Broken(Exception):
    """Raised as asked."""


class ToBeMended(Exception):
    """Raised by what succeeds when it is replayed."""


class Booked(Middleware):
    """Says which processes there are, what they send, and what becomes of each execution."""

    def __init__(self) -> None:
        self._here = threading.local()

    def after_process_boot(self, broker: Broker) -> None:
        book.write("booted", group=os.getpgrp())

    def after_enqueue(self, broker: Broker, message: Message[Any], delay: int | None) -> None:
        # A probe is nothing that must have an ending.
        if message.actor_name != probe.ACTOR:
            tenant = message.options.get("tenant_id")
            book.write("enqueued", id=message.message_id, actor=message.actor_name, queue=message.queue_name, t=tenant)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        self._here.execution = None
        if message.actor_name == probe.ACTOR:
            return
        self._here.execution = f"{os.getpid()}.{next(_executions)}"
        bound, replay = current_tenant(), replay_of(message.options)
        book.write(
            "began",
            id=message.message_id,
            x=self._here.execution,
            bound=bound and str(bound),
            item=replay and str(replay[1]),
        )

    def after_process_message(
        self, broker: Broker, message: MessageProxy, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if self._here.execution is None:
            return
        said = {"id": message.message_id, "x": self._here.execution}
        if exception is None:
            book.write("ended", **said)
        else:
            book.write("raised", **said, error=f"{type(exception).__name__}: {exception}"[:200])


broker.add_middleware(Booked())


def job(how: str) -> None:
    """Do as told.

    Raises:
      Exception: As told.
    """
    message = CurrentMessage.get_current_message()
    assert message is not None
    match how:
        case "succeeds":
            _look_around()
        case "fails":
            raise Broken("as asked")
        case "is mended":
            if replay_of(message.options) is None:
                raise ToBeMended("not before it is replayed")
        case "is flaky":
            if message.options.get("retries", 0) < 2:
                raise Broken("the first two times")
        case "divides by zero":
            _execute("SELECT 1 / 0")
        case "misses a table":
            _execute("SELECT 1 FROM soak_no_such_table")
        case "waits in Postgres":
            _execute("SELECT pg_sleep(30)")
        case "waits":
            while True:
                time.sleep(0.01)
        case "times out":
            raise TimeoutError("as asked")
        case "is limited":
            limiter = ConcurrentRateLimiter(_limits(), f"dramatiq:soak.limit.{message.message_id}", limit=1, ttl=10_000)
            with limiter.acquire(), limiter.acquire():
                pass
        case "finds nobody":
            # Nobody listens at the discard service's port.
            socket.create_connection(("127.0.0.1", 9), timeout=5)
        case "happens once":
            _have_an_effect(message.message_id)
        case "sends":
            for n in range(2):
                _send_next(message, n)
        case "is lost":
            os._exit(9)
        case _:
            raise ValueError(f"how: {how!r} is not known")


async def job_async(how: str) -> None:
    """Do as told, in a coroutine."""
    async with transaction() as session:
        await session.execute(text("SELECT 1"))
        if how == "fails":
            raise Broken("as asked, in a coroutine")


def one_at_a_time(shop: int) -> None:
    """Be there once for a shop."""
    time.sleep(0.5)


def _look_around() -> None:
    with transaction() as session:
        seen = session.execute(text("SELECT current_setting('app.current_tenant_id', true)")).scalar_one()
    if seen != str(current_tenant()):
        raise AssertionError(f"bound to {current_tenant()}, and Postgres sees {seen}")


def _execute(statement: str) -> None:
    with transaction() as session:
        session.execute(text(statement))


def _limits() -> RedisBackend:
    return RedisBackend(client=broker.client)  # type: ignore[attr-defined]


def _have_an_effect(message_id: str) -> None:
    with transaction() as session:
        if once():
            session.execute(text("INSERT INTO soak_effects (message_id) VALUES (:id)"), {"id": message_id})


def _send_next(parent: Message[Any], n: int) -> None:
    # The same ids in every execution.
    message_id = str(uuid5(UUID(parent.message_id), str(n)))
    broker.enqueue(
        Message(parent.queue_name, parent.actor_name, ("succeeds",), {}, {"max_retries": 3}, message_id=message_id)
    )


for _queue in Queue:
    dramatiq.actor(queue_name=_queue.value, actor_name=f"soak.{_queue.value}.job")(job)
    dramatiq.actor(queue_name=_queue.value, actor_name=f"soak.{_queue.value}.job_async")(job_async)
    dramatiq.actor(
        queue_name=_queue.value, actor_name=f"soak.{_queue.value}.one_at_a_time", unique=Unique(second="ignore")
    )(one_at_a_time)


@dramatiq.actor(
    queue_name=Queue.HOUSEKEEPING.value, actor_name="soak.tick", tenant_scoped=False, schedule="*/5 * * * * *"
)
def tick() -> None:
    """Be sent every five seconds."""
