"""Who consumes which queue, as Redis knows it, and what waits there for nobody."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import redis

from middleware.lossless_broker import LEASE
from worker.check.findings import Finding, ok, warning
from worker.queue_admin.keys import LOOK_FOR, answer, read_keys
from worker.queue_admin.pauses import Pause, pauses
from worker.queue_admin.states import STOCK_LEASE


@dataclass(frozen=True, slots=True)
class Seen:
    """What Redis holds of queues and brokers."""

    #: Messages of each queue: waiting, delayed or running.
    messages: Mapping[str, int]
    #: The queues of each broker of ours that lives, delay queues included.
    consumed: Mapping[str, Collection[str]]
    #: Queues of which living stock workers hold messages.
    stock: Collection[str]
    #: Messages by queue that brokers hold of which nobody knows.
    left: Mapping[str, int] = field(default_factory=dict)
    #: Whether every key was looked at.
    complete: bool = True
    #: Failures that wait for Postgres.
    spooled: int = 0
    #: Messages by queue that were running when a worker was lost, and wait to run alone.
    suspects: Mapping[str, int] = field(default_factory=dict)
    #: Queues that are paused.
    paused: Mapping[str, Pause] = field(default_factory=dict)


def read_queues(client: redis.Redis, namespace: str, declared: Collection[str]) -> Seen:
    """Return what there is; queues that nobody declared are found, too.

    Arguments:
      client: To look with.
      namespace: Prefix of every key.
      declared: The names of the queues.
    """
    seconds, micros = answer(client.time())
    now = seconds * 1000 + micros / 1000
    ours = _scores(client, f"{namespace}:__dramaturg__.alive")
    consumed = {
        broker: {name.decode() for name in answer(client.smembers(f"{namespace}:__dramaturg__.queues.{broker}"))}
        for broker, beat in ours.items()
        if now - beat < LEASE
    }
    # By the clocks of their hosts; one that is ahead lives.
    stock_alive = {
        broker for broker, beat in _scores(client, f"{namespace}:__heartbeats__").items() if now - beat < STOCK_LEASE
    }
    keys = read_keys(client, namespace)
    queues = {*declared, *keys.queues()}
    messages = {
        queue: sum(int(answer(client.hlen(f"{namespace}:{name}.msgs"))) for name in (queue, f"{queue}.DQ"))
        for queue in queues
    }
    stock, left = set[str](), dict[str, int]()
    for key, broker, name in keys.acks():
        queue = name.removesuffix(".DQ")
        if broker in ours:
            continue
        if broker in stock_alive:
            stock.add(queue)
        else:
            left[queue] = left.get(queue, 0) + int(answer(client.scard(f"{namespace}:{key}")))
    spooled = int(answer(client.hlen(f"{namespace}:__dramaturg__.spool")))
    lengths = {queue: int(answer(client.llen(f"{namespace}:__dramaturg__.suspects.{queue}"))) for queue in queues}
    suspects = {queue: length for queue, length in lengths.items() if length}
    return Seen(messages, consumed, stock, left, keys.complete, spooled, suspects, pauses(client, namespace))


def _scores(client: redis.Redis, key: str) -> dict[str, float]:
    return {broker.decode(): score for broker, score in answer(client.zrange(key, 0, -1, withscores=True))}


def judge_queues(seen: Seen, declared: Collection[str]) -> Iterator[Finding]:
    """Judge what Redis holds.

    Arguments:
      seen: What that is.
      declared: The queues that workers may be sent to.
    """
    yield from _judge_consumers(seen, declared)
    for queue, pause in sorted(seen.paused.items()):
        yield warning(
            "queues.paused",
            f"{queue} has been paused since {pause.since:%Y-%m-%d %H:%M} UTC by {pause.by}"
            f"{f' ({pause.reason})' if pause.reason else ''}, messages in it: {seen.messages.get(queue, 0):,}",
            f"worker queues resume {queue}",
        )
    if seen.spooled:
        yield warning(
            "queues.spool",
            f"{seen.spooled:,} failures wait in Redis for Postgres to take them",
            "worker spool shows them; workers write them as soon as Postgres does.",
        )
    if seen.suspects:
        yield warning(
            "queues.suspects",
            f"messages that were running when a worker was lost wait to run alone: {_counted(seen.suspects)}",
            "They run one at a time in each process; one that kills its worker again becomes a worker_lost row.",
        )
    if seen.stock:
        yield warning(
            "queues.stock-workers",
            f"stock Dramatiq workers consume {', '.join(sorted(seen.stock))}: they keep none of the promises",
            "Stop them, and let them finish what they hold.",
        )
    if seen.left:
        yield warning(
            "queues.left-behind",
            f"{sum(seen.left.values()):,} messages are held by stock Dramatiq processes that are gone: "
            f"{_counted(seen.left)}",
            "Only stock Dramatiq gives them back: run a stock worker on the queue until they are done.",
        )
    if not seen.complete:
        yield warning(
            "queues.keys",
            f"not all keys could be looked at within {LOOK_FOR:g} seconds: queues that nobody declared may be missing",
            "Give Dramatiq a Redis database of its own.",
        )


def _judge_consumers(seen: Seen, declared: Collection[str]) -> Iterator[Finding]:
    served = {queue for queues in seen.consumed.values() for queue in queues}
    waiting = {queue: count for queue, count in sorted(seen.messages.items()) if count}
    strange = {queue: count for queue, count in waiting.items() if queue not in declared and queue not in served}
    if strange:
        yield warning(
            "queues.consumers",
            f"messages wait on queues that are not declared here: {_counted(strange)}",
            f"EXTRA_QUEUES={','.join(strange)} and a worker for them, or stop who sends there.",
        )
    nobodys = {queue: seen.messages.get(queue, 0) for queue in sorted(declared) if queue not in served}
    stuck = {queue: count for queue, count in nobodys.items() if count}
    if not seen.consumed:
        yield warning(
            "queues.consumers",
            f"no worker is up{f', and messages wait: {_counted(stuck)}' if stuck else ''}",
            "Start the worker entries of the Procfile; before a first deploy this is as it should be.",
        )
    elif nobodys:
        yield warning(
            "queues.consumers",
            f"no worker consumes {_counted(nobodys)}",
            "; ".join(f"start {queue}" for queue in nobodys) + ": heroku ps:scale NAME=1, or its like",
        )
    elif not strange:
        yield ok("queues.consumers", f"{len(seen.consumed)} processes consume all {len(declared)} queues")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{queue} ({count:,})" if count else queue for queue, count in counts.items())
