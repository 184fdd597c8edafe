"""Queues whose tenants take turns, script by script: what is sent, taken, ended and given back, and where it all is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import UUID, uuid4

import redis
from dramatiq import Message

from middleware.heartbeat import Heartbeat
from middleware.lua_scripts import Scripts
from middleware.redis_ids import redis_id_of
from tests.integration.nothing_lost import QUEUE, put

OWN = "dramatiq:__dramaturg__."
A, B, C = UUID(int=0xA << 120), UUID(int=0xB << 120), UUID(int=0xC << 120)


def send(client: redis.Redis, tenant: object, *names: object, stock: bool = False, queue: str = QUEUE) -> None:
    """Send messages called so for a tenant, as ours or as a stock producer does."""
    pipeline = client.pipeline(transaction=False)
    for name in names:
        options = {} if tenant is None else {"tenant_id": str(tenant)}
        redis_id = str(uuid4()) if stock else redis_id_of(str(uuid4()), options)
        options["redis_message_id"] = redis_id
        put(pipeline, redis_id, Message(queue, "test.job", (name,), {}, options).encode(), queue)
    pipeline.execute()


def name_of(client: redis.Redis, redis_id: bytes) -> Any:
    """Return what a message is called; nothing of one that is gone."""
    data: Any = client.hget(f"dramatiq:{QUEUE}.msgs", redis_id.decode())
    return data and json.loads(data)["args"][0]


class Hand:
    """A worker process that does what it is told.

    Attributes:
      holds: What it has, by name, in the order in which it came.
    """

    def __init__(self, client: redis.Redis, *, fair: bool = True, lease: int = 60_000) -> None:
        self.id = str(uuid4())
        self.client = client
        self.run = Scripts(client, "dramatiq")
        self._fair = fair
        self.beats = Heartbeat(self.run, self.id, lease=lease, grace=0, interval=3600)
        self.beats.cover(QUEUE)
        self.holds: dict[Any, bytes] = {}

    def ask(self, count: int = 1) -> list[Any]:
        """Return what the script says."""
        found: list[Any] = self.run("fetch", QUEUE, self.id, self.beats.epoch, count, int(self._fair))
        return found

    def take(self, count: int = 1) -> list[Any]:
        """Take up to ``count`` messages, and return what they are called."""
        left, *found = self.ask(count)
        # Under limits it counts down from -2; -1 is for a pause.
        assert left != -1
        assert left >= 0 or self.client.exists(f"{OWN}limits.{QUEUE}")
        taken = {json.loads(data)["args"][0]: redis_id for redis_id, data in zip(found[::3], found[1::3], strict=True)}
        assert not taken.keys() & self.holds.keys()
        self.holds |= taken
        return list(taken)

    def end(self, *names: Any) -> None:
        """End messages well: one by itself, several at once."""
        ids = [self.holds.pop(name) for name in names]
        if len(ids) > 1:
            assert self.run("finish_many", QUEUE, self.id, self.beats.epoch, *ids) == []
            return
        for redis_id in ids:
            assert self.run("finish", QUEUE, self.id, redis_id, "", 10, "", self.beats.epoch, 0) == 1

    def give_back(self, *names: Any) -> None:
        """Give messages back, the first of them to be first again."""
        self.run("requeue", QUEUE, self.id, *(self.holds.pop(name) for name in names))

    def die(self, finder: Hand) -> None:
        """Be found gone by another."""
        self.client.zadd(f"{OWN}alive", {self.id: 1})
        finder.beats.beat()
        self.holds.clear()


def lanes(client: redis.Redis) -> list[bytes]:
    """Return the tenants whose lanes are looked into."""
    return [tenant for what in ("turns", "parked") for tenant in zrange(client, f"{OWN}{what}.{QUEUE}")]


def zrange(client: redis.Redis, key: str) -> list[bytes]:
    found: Any = client.zrange(key, 0, -1)
    return list(found)


def places(client: redis.Redis, hands: Iterable[Hand]) -> Counter[bytes]:
    """Return in how many places that somebody looks into each message is."""
    found = Counter[bytes]()
    keys = [f"dramatiq:{QUEUE}", f"{OWN}suspects.{QUEUE}"]
    keys += [f"{OWN}lane.{QUEUE}.{tenant.decode()}" for tenant in set(lanes(client))]
    keys += [f"{OWN}taking.{hand.id}.{QUEUE}" for hand in hands]
    for key in keys:
        ids: Any = client.lrange(key, 0, -1)
        found.update(ids)
    for hand in hands:
        held: Any = client.smembers(f"dramatiq:__acks__.{hand.id}.{QUEUE}")
        found.update(held)
    known: Any = client.hkeys(f"dramatiq:{QUEUE}.msgs")
    return Counter({redis_id: found[redis_id] for redis_id in known})
