"""Actors on each of the four queues that keep their thread, and what they work with, for as long as they are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import dramatiq
from sqlalchemy import text

from db.session import operator_transaction, transaction
from worker.broker import broker
from worker.queues import Queue

NOW = text("SELECT 1")


def name(queue: str, what: str) -> str:
    """Return the name of the actor that does ``what`` on ``queue``."""
    return f"busy.{queue}.{what}"


def in_transaction(seconds: float) -> None:
    """Hold a transaction of the tenant's."""
    with transaction() as session:
        session.execute(NOW)
        time.sleep(seconds)


async def in_async_transaction(seconds: float) -> None:
    """Hold one in a coroutine."""
    async with transaction() as session:
        await session.execute(NOW)
        await asyncio.sleep(seconds)


def across_tenants(seconds: float) -> None:
    """Hold one of the tenant's and one across tenants, as a fan-out may."""
    with ExitStack() as stack:
        for each in (stack.enter_context(transaction()), stack.enter_context(operator_transaction())):
            each.execute(NOW)
        time.sleep(seconds)


def failing(seconds: float) -> None:
    """End as a row, all of them at once."""
    time.sleep(seconds / 4)
    raise ValueError("as asked")


WAYS: dict[str, Callable[[float], Any]] = {
    "in_transaction": in_transaction,
    "failing": failing,
    "across_tenants": across_tenants,
    "in_async_transaction": in_async_transaction,
}
for _queue in Queue:
    for _what, _function in WAYS.items():
        _declare = dramatiq.actor(broker=broker, queue_name=_queue.value, actor_name=name(_queue, _what), max_retries=0)
        _declare(_function)
