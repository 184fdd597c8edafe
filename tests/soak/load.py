"""What is sent: all that ours do, and every way to fail, in steady proportions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import redis
from dramatiq import Actor, Broker, Message

from middleware.unique import outcome
from tests.chaos import raw
from tests.chaos.accounts import Account
from tests.soak.world import BROKE, DAYS, TENANTS, first_day
from worker.queues import Queue
from worker.recompute import Model
from worker.sending import enqueue_many

#: What a message may end as: it succeeds, or as a row of one of these error types.
SUCCEEDS = "succeeds"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message.

    Attributes:
      weight: Of all weights, how much of what is sent.
      may: How it may end: :data:`SUCCEEDS`, or an error type.
      how: What a job of the soak's is told.
      options: Dramatiq's.
      delay: Milliseconds.
    """

    weight: float
    may: tuple[str, ...] = (SUCCEEDS,)
    how: str | None = None
    options: tuple[tuple[str, int], ...] = ()
    delay: int | None = None


def _job(how: str, weight: float, *may: str, delay: int | None = None, **options: int) -> Kind:
    return Kind(weight, may, how, tuple(options.items()), delay)


#: What may come of a language model that misbehaves.
_ASKED = (SUCCEEDS, "upstream_error", "timeout", "rate_limited", "configuration_error", "validation_error")

KINDS = {
    "recompute_window": Kind(24),
    "recompute_window, fail": Kind(2, ("validation_error",)),
    "recompute_window, bad input": Kind(1, ("validation_error",)),
    "explain_window": Kind(10, _ASKED),
    "explain_window, no budget": Kind(1, ("budget_exceeded",)),
    "describe_window": Kind(6),
    "verify_window": Kind(8),
    "ping": Kind(10),
    "ping, fail": Kind(2, ("validation_error",)),
    "job": _job("succeeds", 10, SUCCEEDS),
    "async job": Kind(3, how="succeeds"),
    "async job, fails": Kind(1, ("application_error",), "fails", (("max_retries", 1),)),
    "delayed": _job("succeeds", 4, SUCCEEDS, delay=5_000),
    "flaky": _job("is flaky", 3, SUCCEEDS, max_retries=3),
    "once": _job("happens once", 3, SUCCEEDS),
    "unique": Kind(4, how=""),
    "many": Kind(1, how="succeeds"),
    "sends two": _job("sends", 2, SUCCEEDS),
    "is mended": _job("is mended", 4, "application_error", max_retries=0),
    "fails": _job("fails", 2, "application_error", max_retries=2),
    "database error": _job("divides by zero", 1, "database_error", max_retries=1),
    "missing table": _job("misses a table", 1, "configuration_error", max_retries=0),
    "long statement": _job("waits in Postgres", 0.5, "timeout", max_retries=0, time_limit=1_000),
    "long job": _job("waits", 0.5, "timeout", max_retries=0, time_limit=1_000),
    "timeout": _job("times out", 1, "timeout", max_retries=0),
    "rate limited": _job("is limited", 1, "rate_limited", max_retries=1),
    "upstream": _job("finds nobody", 1, "upstream_error", max_retries=1),
    "bad argument": _job("is unknown", 1, "validation_error", max_retries=0),
    "expired": _job("succeeds", 1, "expired", delay=1_500, max_age=1),
    "unknown actor": _job("succeeds", 1, "unknown_actor"),
    "undecodable": Kind(1, ("undecodable",)),
    "no tenant": _job("succeeds", 1, "tenant_error"),
    "stock Dramatiq's dead": _job("fails", 1, "application_error", "unknown"),
}
#: Each takes three processes, and their siblings, so it comes by itself.
LOST = "lost"


class Load:
    """Sends, and keeps an account of each message.

    Arguments:
      broker: Which knows the actors.
      client: To Redis, to put there what ``send()`` would refuse.
      seed: Chooses.
    """

    def __init__(self, broker: Broker, client: redis.Redis, seed: int) -> None:
        self._broker = broker
        self._client = client
        self._rng = random.Random(f"soak {seed}")  # noqa: S311 - to be repeated
        self.accounts: dict[str, Account] = {}

    def keep_up(self, rate: float, until: float, stopped: Callable[[], bool]) -> None:
        """Send ``rate`` messages a second until that moment of the monotonic clock."""
        kinds, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
        due = time.monotonic()
        while due < until and not stopped():
            time.sleep(max(0.0, due - time.monotonic()))
            self.send(self._rng.choices(kinds, weights)[0])
            due = max(due + 1 / rate, time.monotonic() - 1)

    def send(self, name: str, queue: str | None = None) -> None:
        """Send one of a kind."""
        queue = queue or self._rng.choice(list(Queue)).value
        tenant = self._rng.choice(TENANTS)
        kind = KINDS.get(name) or _job("is lost", 0)
        if kind.how is None and name != "undecodable":
            self._send_ours(name, BROKE if name.endswith("no budget") else tenant)
            return
        redis_id = str(uuid4())
        actor = f"soak.{queue}.{'nobody' if name == 'unknown actor' else 'job_async' if 'async' in name else 'job'}"
        options: dict[str, Any] = {"max_retries": 3, **dict(kind.options), "tenant_id": str(tenant)}
        message: Message[Any] = Message(queue, actor, (kind.how,), {}, options)
        match name:
            case "undecodable":
                data = f"no message: {redis_id}".encode()
                self._account(name, raw.task_id_of(queue, redis_id, data), queue, None)
                raw.put(self._client, queue, redis_id, data)
            case "no tenant":
                del options["tenant_id"]
                self._account(name, message.message_id, queue, None)
                stock = message.copy(options={"redis_message_id": redis_id})
                raw.put(self._client, queue, redis_id, stock.encode())
            case "stock Dramatiq's dead":
                self._account(name, message.message_id, queue, str(tenant))
                self._leave_for_dead(message, redis_id)
            case "unique":
                one = message.copy(actor_name=f"soak.{queue}.one_at_a_time", args=(self._rng.randrange(2),))
                if outcome(self._broker.enqueue(one)).sent:
                    self._account(name, one.message_id, queue, str(tenant))
            case "many":
                several = [message.copy(message_id=str(uuid4())) for _ in range(5)]
                for each in several:
                    self._account(name, each.message_id, queue, str(tenant))
                enqueue_many(several)
            case _:
                self._account(name, message.message_id, queue, str(tenant), options["max_retries"])
                self._broker.enqueue(message, delay=kind.delay)

    def recompute_all(self) -> None:
        """Recompute every window that others ask about."""
        from worker.attribution import recompute_window

        for tenant in (*TENANTS, BROKE):
            for start, end in windows():
                self._send(
                    "recompute_window", recompute_window, tenant, window_start=_said(start), window_end=_said(end)
                )

    def _send_ours(self, name: str, tenant: UUID) -> None:
        from worker.attribution import recompute_window
        from worker.housekeeping import ping
        from worker.llm import describe_window, explain_window
        from worker.maintenance import verify_window

        start, end = self._rng.choice(windows())
        window: dict[str, Any] = {"window_start": _said(start), "window_end": _said(end)}
        match name:
            case "recompute_window":
                self._send(name, recompute_window, tenant, **window, model=self._rng.choice(list(Model)).value)
            case "recompute_window, fail":
                self._send(name, recompute_window, tenant, **window, fail=True)
            case "recompute_window, bad input":
                self._send(name, recompute_window, tenant, window_start=_said(end), window_end=_said(start))
            case "explain_window":
                # A thousand waits and more: it decides on its retries by itself.
                self._send(name, explain_window, tenant, 1_000, **window, force=self._rng.random() < 0.7)
            case "explain_window, no budget":
                self._send(name, explain_window, tenant, **window)
            case "describe_window":
                self._send(name, describe_window, tenant, **window)
            case "verify_window":
                self._send(name, verify_window, tenant, **window)
            case "ping" | "ping, fail":
                self._send(name, ping, None, fail=name == "ping, fail")

    def _send(
        self, name: str, actor: Actor[..., Any], tenant: UUID | None, max_retries: int = 3, **arguments: Any
    ) -> None:
        options: dict[str, Any] = {} if tenant is None else {"tenant_id": str(tenant)}
        message = actor.message_with_options(kwargs=arguments, **options)
        self._account(name, message.message_id, actor.queue_name, options.get("tenant_id"), max_retries)
        self._broker.enqueue(message)

    def _account(self, name: str, message_id: str, queue: str, tenant: str | None, max_retries: int = 3) -> None:
        # Before it is sent: nobody does anything to Redis, and what is not sent should be missed.
        self.accounts[message_id] = Account(message_id, name, queue, tenant, max_retries)

    def _leave_for_dead(self, message: Message[Any], redis_id: str) -> None:
        """Leave a message where stock Dramatiq leaves its dead."""
        options = {**message.options, "redis_message_id": redis_id}
        if self._rng.random() < 0.5:
            options["traceback"] = "Traceback (most recent call last):\n  ...\nstock.Broken: as asked"
        name = f"dramatiq:{message.queue_name}.XQ"
        with self._client.pipeline(transaction=True) as commands:
            commands.hset(f"{name}.msgs", redis_id, message.copy(options=options).encode())
            commands.zadd(name, {redis_id: int(time.time() * 1000)})
            commands.execute()


def windows() -> list[tuple[datetime, datetime]]:
    """Return the windows that are asked about: each day, and all of them."""
    begin = first_day()
    days = [begin + timedelta(days=n) for n in range(DAYS + 1)]
    return [*pairwise(days), (days[0], days[-1])]


def _said(moment: datetime) -> str:
    return moment.isoformat()
