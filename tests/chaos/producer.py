"""Sends what is planned, and keeps an account of each message: what became of ``send()``, and what may become of it."""

from __future__ import annotations

import json
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import redis
from dramatiq import Broker, Message, group

from middleware.unique import outcome
from tests.chaos import raw
from tests.chaos.accounts import FOLLOWS, LEFT_OUT, UNSURE, Account
from tests.chaos.plan import FLOOD, MANY, QUEUES, SAME, Planned, actor_name
from tests.chaos.world import World


class Producer:
    """Sends through the wire.

    Attributes:
      accounts: By message id.
    """

    def __init__(self, world: World, broker: Broker) -> None:
        self._broker = broker
        self._raw = redis.Redis.from_url(world.redis_wire.url, socket_timeout=5, retry=None)
        self.accounts: dict[str, Account] = {}

    def send(self, planned: Planned) -> None:
        """Send it; raises nothing."""
        accounts, send = self._prepare(planned)
        try:
            send()
        except Exception as e:  # noqa: BLE001 - whatever send() raises, it did not return
            for account in accounts:
                account.given, account.error = UNSURE, f"{type(e).__name__}: {e}"[:200]
        for account in accounts:
            self.accounts[account.id] = account

    def _prepare(self, planned: Planned) -> tuple[list[Account], Any]:
        match planned.kind:
            case "undecodable":
                return self._undecodable(planned)
            case "pipeline":
                return self._pipeline(planned)
            case "group":
                return self._group(planned)
            case "flood":
                return self._flood(planned)
            case "many":
                return self._many(planned)
            case "unique":
                return self._unique(planned)
        message = self._message(planned, 0)
        return [self._account(planned, message)], lambda: self._broker.enqueue(message, delay=planned.delay)

    def _message(self, planned: Planned, number: int, **options: Any) -> Message[Any]:
        queue = QUEUES[(QUEUES.index(planned.queue) + number) % len(QUEUES)]
        return Message(
            queue_name=queue,
            actor_name=actor_name(queue, planned.kind),
            args=(planned.work,),
            kwargs={},
            options={**planned.options, "tenant_id": str(planned.tenant), **options},
            message_id=str(planned.id if number == 0 else uuid5(planned.id, str(number))),
        )

    @staticmethod
    def _account(planned: Planned, message: Message[Any], kind: str | None = None, **more: Any) -> Account:
        retries = message.options["max_retries"]
        kind = kind or planned.kind
        return Account(message.message_id, kind, message.queue_name, str(planned.tenant), retries, **more)

    def _pipeline(self, planned: Planned) -> tuple[list[Account], Any]:
        third = self._message(planned, 2, pipe_ignore=True)
        second = self._message(planned, 1, pipe_ignore=True, pipe_target=third.asdict())
        first = self._message(planned, 0, pipe_target=second.asdict())
        accounts = [self._account(planned, first)]
        for message in (second, third):
            before = accounts[-1].id
            accounts.append(self._account(planned, message, "pipeline's next", given=FOLLOWS, after=[before]))
        return accounts, lambda: self._broker.enqueue(first)

    def _group(self, planned: Planned) -> tuple[list[Account], Any]:
        children = [self._message(planned, n) for n in range(3)]
        callback = self._message(planned, 3)
        accounts = [self._account(planned, child, "group's child") for child in children]
        after = [account.id for account in accounts]
        accounts.append(self._account(planned, callback, "group's callback", given=FOLLOWS, after=after))
        whole = group(children, broker=self._broker)
        whole.add_completion_callback(callback)
        return accounts, whole.run

    def _flood(self, planned: Planned) -> tuple[list[Account], Any]:
        """Send many of one tenant to one queue, as ours or as a producer that is stock Dramatiq."""
        stock = planned.work["stock"]
        messages = []
        for n in range(FLOOD):
            number = n * len(QUEUES)
            options = {"redis_message_id": str(uuid5(planned.id, f"stock {n}"))} if stock else {}
            messages.append(self._message(planned, number, **options))

        def put() -> None:
            with self._raw.pipeline(transaction=True) as commands:
                for message in messages:
                    redis_id = message.options["redis_message_id"]
                    commands.hset(f"dramatiq:{planned.queue}.msgs", redis_id, message.encode())
                    commands.rpush(f"dramatiq:{planned.queue}", redis_id)
                commands.execute()

        def send() -> None:
            for message in messages:
                self._broker.enqueue(message)

        return [self._account(planned, message) for message in messages], put if stock else send

    def _many(self, planned: Planned) -> tuple[list[Account], Any]:
        messages = [self._message(planned, n * len(QUEUES)) for n in range(MANY)]
        # Stock Dramatiq has no way to.
        many = getattr(self._broker, "enqueue_many", lambda given: [self._broker.enqueue(one) for one in given])
        return [self._account(planned, message) for message in messages], lambda: many(messages)

    def _unique(self, planned: Planned) -> tuple[list[Account], Any]:
        """Send the same again and again: one that is left out may not run, one that is not must end."""
        messages = [self._message(planned, n * len(QUEUES)) for n in range(SAME)]
        accounts = [self._account(planned, message) for message in messages]

        def send() -> None:
            for message, account in zip(messages, accounts, strict=True):
                if not outcome(self._broker.enqueue(message)).sent:
                    account.given = LEFT_OUT

        return accounts, send

    def _undecodable(self, planned: Planned) -> tuple[list[Account], Any]:
        """Put what is no message on a queue, as any program may."""
        redis_id = str(uuid5(NAMESPACE_URL, str(planned.id)))
        if planned.work["broken"] == "not JSON":
            data, tenant = f"no message: {planned.id}".encode(), None
            task_id = raw.task_id_of(planned.queue, redis_id, data)
        else:
            message = self._message(planned, 0, redis_message_id=redis_id)
            data, tenant = json.dumps({**message.asdict(), "args": 5}).encode(), str(planned.tenant)
            task_id = message.message_id
        account = Account(task_id, planned.kind, planned.queue, tenant)
        return [account], lambda: raw.put(self._raw, planned.queue, redis_id, data)
