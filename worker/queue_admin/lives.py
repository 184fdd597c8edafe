"""Which processes live, and what they say of themselves."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import redis

from worker.queue_admin.keys import answer


def server_time(client: redis.Redis) -> float:
    """Return the time, in milliseconds since 1970, on the clock by which processes live."""
    seconds, micros = answer(client.time())
    return float(seconds * 1000 + micros / 1000)


def alive(client: redis.Redis, key: str, since: float) -> dict[str, float]:
    """Return the broker ids that gave a sign of life since then, and when each last did, in milliseconds since 1970."""
    found = answer(client.zrangebyscore(key, since, "+inf", withscores=True))
    return {broker.decode(): score for broker, score in found}


def facts(client: redis.Redis, brokers: Collection[str], namespace: str) -> dict[str, dict[str, Any]]:
    """Return what each says of itself (:func:`middleware.process_facts.process_facts`); nothing where none can be
    read."""
    if not brokers:
        return {}
    said = answer(client.hmget(f"{namespace}:__dramaturg__.facts", list(brokers)))
    return {broker: _read(data) for broker, data in zip(brokers, said, strict=True)}


def name_of(broker: str, said: dict[str, Any]) -> str:
    """Return what a process calls itself, or its broker id."""
    return str(said.get("worker", broker))


def _read(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
