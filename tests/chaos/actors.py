"""The actors of the ledger, on the four queues; ``dramatiq tests.chaos.actors --queues QUEUE`` runs them.

With ``CHAOS_STOCK`` set they are stock Dramatiq's, with a middleware that writes rows as well as a middleware can.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import dramatiq
import psycopg
from dramatiq import Broker, Message
from dramatiq.middleware import CurrentMessage, Middleware

from db.session import transaction
from db.tenancy import current_tenant
from middleware.unique import Unique
from tests.chaos.book import Book
from tests.chaos.plan import POISON, QUEUES, actor_name

STOCK = bool(os.environ.get("CHAOS_STOCK"))
book = Book(Path(os.environ["CHAOS_BOOK"]))
broker: Broker
if STOCK:
    from tests.chaos.stock import make_stock_broker

    broker = make_stock_broker(os.environ["REDIS_URL"], os.environ["DATABASE_URL"])
    dramatiq.set_broker(broker)
else:
    from worker.broker import broker

_executions = itertools.count()


class Booted(Middleware):
    """Says which processes there are."""

    def after_process_boot(self, broker: Broker) -> None:
        book.write("booted", group=os.getpgrp())


broker.add_middleware(Booted())


def _asked() -> str | None:
    """Return the tenant that Postgres sees."""
    if STOCK:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5) as connection:
            connection.execute("SELECT 1")
        return None
    with transaction() as session:
        found = session.connection().exec_driver_sql("SELECT current_setting('app.current_tenant_id', true)").scalar()
    return str(found)


def job(work: dict[str, Any]) -> None:
    """Do as told, and say in the book what was done.

    Arguments:
      work: ``kind``; ``seconds`` to take; ``asks`` Postgres which tenant it sees; ``fails`` so many times; sends so
        many ``children``; sends some inside a ``transaction``, and what becomes of that.

    Raises:
      ValueError: As told.
    """
    message = CurrentMessage.get_current_message()
    assert message is not None
    execution = f"{os.getpid()}.{next(_executions)}"
    bound = current_tenant()
    book.write(
        "began",
        id=message.message_id,
        x=execution,
        queue=message.queue_name,
        bound=bound and str(bound),
        item=message.options.get("dramaturg_replay", {}).get("item"),
    )
    try:
        if work.get("asks"):
            book.write("saw", id=message.message_id, x=execution, tenant=_asked())
        time.sleep(work["seconds"])
        if work["kind"] == POISON:
            os._exit(9)
        if message.options.get("retries", 0) < work.get("fails", 0):
            raise ValueError(f"failure {message.options.get('retries', 0) + 1}")
        for _ in range(work.get("children", 0)):
            _send_child(message, execution)
        if "transaction" in work:
            _send_in_transaction(message, execution, work["transaction"])
    except BaseException as e:
        book.write("raised", id=message.message_id, x=execution, error=f"{type(e).__name__}: {e}"[:200])
        raise
    book.write("ended", id=message.message_id, x=execution)


def _child(parent: Message[Any]) -> tuple[Message[Any], dict[str, Any]]:
    """Return a child, and what the book says of it."""
    tenant = parent.options["tenant_id"]
    child: Message[Any] = Message(
        queue_name=parent.queue_name.removesuffix(".DQ"),
        actor_name=actor_name(parent.queue_name, "child"),
        args=({"kind": "child", "seconds": 0, "asks": False},),
        kwargs={},
        options={"max_retries": 3, "tenant_id": tenant},
        message_id=str(uuid4()),
    )
    return child, {"id": child.message_id, "parent": parent.message_id, "queue": child.queue_name, "tenant": tenant}


def _send_child(parent: Message[Any], execution: str) -> None:
    child, said = _child(parent)
    book.write("sending", x=execution, **said)
    broker.enqueue(child)
    book.write("sent", x=execution, **said)


def _send_in_transaction(parent: Message[Any], execution: str, what: str) -> None:
    """Send children inside a transaction that says itself which of them it sent, and commit it or roll it back."""
    children = [_child(parent) for _ in range(3)]
    for _, said in children:
        book.write("handed in", x=execution, **said)
    if STOCK:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=5) as connection:
            for child, _ in children:
                connection.execute(_COMMITTED, [child.message_id])
                broker.enqueue(child)
            if what != "commit":
                connection.rollback()
        return
    with suppress(_RolledBack), transaction() as session:
        for n, (child, _) in enumerate(children):
            with suppress(_RolledBack), session.begin_nested():
                broker.enqueue(child, delay=100 if n == 2 else None)
                session.connection().exec_driver_sql(_COMMITTED, (child.message_id,))
                if what == "roll back to a savepoint" and n == 1:
                    raise _RolledBack
        if what == "roll back":
            raise _RolledBack


class _RolledBack(Exception):
    """Raised to roll back."""


_COMMITTED = "INSERT INTO chaos_committed VALUES (%s)"

#: Stock Dramatiq knows none.
_UNIQUE: dict[str, Any] = {} if STOCK else {"unique": Unique(second="ignore")}

for _queue in QUEUES:
    dramatiq.actor(broker=broker, queue_name=_queue, actor_name=actor_name(_queue, "job"))(job)
    dramatiq.actor(broker=broker, queue_name=_queue, actor_name=actor_name(_queue, "throws"), throws=ValueError)(job)
    dramatiq.actor(broker=broker, queue_name=_queue, actor_name=actor_name(_queue, "unique"), **_UNIQUE)(job)
