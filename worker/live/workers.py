"""The worker processes that live, and what each of them runs at this moment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import redis

from middleware.lossless_broker import LEASE
from middleware.lua_scripts import Scripts
from middleware.text import cut
from worker.queue_admin.keys import answer, asking
from worker.queue_admin.lives import alive, facts, name_of, server_time

#: Running messages that are read at most, of all processes together, and bytes of them.
READ_AT_MOST, BYTES_AT_MOST = 200, 4 * 2**20
#: Milliseconds between a process' clock and the server's that may be the way of its sign of life.
ON_THE_WAY: Final = 1_000.0
#: Characters of a name that a message says.
_NAME: Final = 255


@dataclass(frozen=True, slots=True)
class RunningMessage:
    """A message that a process runs; nothing of its arguments is here.

    Of one that cannot be read, or is too large to be read here, its queue and its Redis id are known, and since when.
    """

    queue: str
    #: The id under which Redis keeps it.
    redis_id: str
    #: Since when it runs.
    since: datetime
    #: Dramatiq's id, which failure rows have as ``task_id``.
    message_id: str | None = None
    actor: str | None = None
    tenant_id: UUID | None = None
    correlation_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker process that lives. Times are the server's; what it does not say of itself is None."""

    broker_id: str
    #: What failure rows call it, or else its broker id.
    name: str
    host: str | None
    pid: int | None
    #: Those that it consumes, their delay queues not named.
    queues: tuple[str, ...]
    #: Since when the process runs.
    since: datetime | None
    #: When it last gave a sign of life, which it does every two seconds.
    last_sign: datetime
    #: Whether it was told to stop.
    stopping: bool
    #: How many messages it may run at once.
    threads: int | None
    #: MiB of memory, now and at its peak.
    resident: int | None
    peak: int | None
    #: What it runs, the longest first.
    running: tuple[RunningMessage, ...]
    #: How many messages more it runs.
    more: int


def list_workers(
    client: redis.Redis, *, namespace: str = "dramatiq", read_at_most: int = READ_AT_MOST
) -> list[WorkerState]:
    """Return every worker process that lives, by name, with what it runs.

    Of the messages that run anywhere those are read that run longest; :attr:`WorkerState.more` counts the others. A
    start that could not be noted, because Redis was away, is seen with the next sign of life. Processes of stock
    Dramatiq are not among them: nothing is known of these.

    Arguments:
      client: To Redis.
      namespace: Prefix of every key.
      read_at_most: How many running messages to read, of all processes together.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    own = f"{namespace}:__dramaturg__."
    with asking():
        signs = alive(client, f"{own}alive", server_time(client) - LEASE)
        said = facts(client, signs, namespace)
        with client.pipeline(transaction=False) as pipeline:
            for broker in signs:
                pipeline.smembers(f"{own}queues.{broker}")
                pipeline.hgetall(f"{own}started.{broker}")
            found = answer(pipeline.execute())
    clocks = {broker: _Clock(sign, said[broker]) for broker, sign in signs.items()}
    begun = [
        _Begun(broker, *_split(entry), clocks[broker].server(_number(since) or signs[broker]))
        for broker, started in zip(signs, found[1::2], strict=True)
        for entry, since in started.items()
    ]
    begun.sort(key=lambda one: one.since)
    running, unread = _read(Scripts(client, namespace), begun, max(0, read_at_most))
    states = [
        WorkerState(
            broker_id=broker,
            name=name_of(broker, of),
            host=_text(of.get("host")),
            pid=_whole(of.get("pid")),
            queues=tuple(sorted({_decoded(queue).removesuffix(".DQ") for queue in queues})),
            since=clocks[broker].moment(of.get("since")),
            last_sign=_moment(signs[broker]),
            stopping=of.get("stopping") is True,
            threads=_whole(of.get("threads")),
            resident=_whole(of.get("resident")),
            peak=_whole(of.get("peak")),
            running=tuple(running.get(broker, ())),
            more=unread.get(broker, 0),
        )
        for (broker, of), queues in zip(said.items(), found[::2], strict=True)
    ]
    return sorted(states, key=lambda state: (state.name, state.broker_id))


class _Clock:
    """A process' clock, which may be wrong: read as the server's, by what it said the time was at its last sign."""

    def __init__(self, sign: float, said: Mapping[str, Any]) -> None:
        at = _number(said.get("at"))
        ahead = 0.0 if at is None else at * 1000 - sign
        # Set right by what a sign takes on its way, times would differ from one look to the next.
        self._ahead = ahead if abs(ahead) > ON_THE_WAY else 0.0

    def server(self, milliseconds: float) -> float:
        """Return what the server's clock was, in milliseconds since 1970."""
        return milliseconds - self._ahead

    def moment(self, seconds: object) -> datetime | None:
        """Return a moment that the process gave as seconds since 1970."""
        number = _number(seconds)
        return None if number is None else _moment(self.server(number * 1000))


@dataclass(frozen=True, slots=True)
class _Begun:
    """A message whose start was noted, and when by the server's clock, in milliseconds since 1970."""

    broker: str
    queue: bytes
    redis_id: bytes
    since: float


def _read(run: Scripts, begun: list[_Begun], at_most: int) -> tuple[dict[str, list[RunningMessage]], dict[str, int]]:
    """Return the first of these that still run, and how many were not looked at, each by process."""
    chosen, others = begun[:at_most], begun[at_most:]
    unread: dict[str, int] = {}
    for one in others:
        unread[one.broker] = unread.get(one.broker, 0) + 1
    running: dict[str, list[RunningMessage]] = {}
    if chosen:
        asked = (part for one in chosen for part in (one.broker, one.queue, one.redis_id))
        for one, data in zip(chosen, run("running", BYTES_AT_MOST, *asked), strict=True):
            if data != 0:
                running.setdefault(one.broker, []).append(_message(one, data if isinstance(data, bytes) else b""))
    return running, unread


def _message(one: _Begun, data: bytes) -> RunningMessage:
    queue, redis_id, since = _decoded(one.queue), _decoded(one.redis_id), _moment(one.since)
    try:
        message = json.loads(data)
        options = message["options"] if isinstance(message["options"], dict) else {}
        return RunningMessage(
            queue,
            redis_id,
            since,
            _text(message["message_id"]),
            _text(message["actor_name"]),
            _uuid(options.get("tenant_id")),
            _uuid(options.get("correlation_id")),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return RunningMessage(queue, redis_id, since)


def _split(entry: bytes) -> tuple[bytes, bytes]:
    queue, _, redis_id = entry.partition(b":")
    return queue, redis_id


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _text(value: object) -> str | None:
    # A lone surrogate, which JSON may hold, would break whoever writes this out.
    return cut(value, _NAME).encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _moment(milliseconds: float) -> datetime:
    # As far as datetime goes, whatever a process says.
    return datetime.fromtimestamp(min(max(milliseconds / 1000, 0.0), 2e11), UTC)
