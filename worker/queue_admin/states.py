"""What queues hold, and who consumes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import redis

from middleware.lossless_broker import LEASE
from middleware.lua_scripts import Scripts
from worker.queue_admin.keys import answer, asking, read_keys
from worker.queue_admin.lives import alive, facts, name_of, server_time
from worker.queue_admin.pauses import Pause, pauses
from worker.queues import Queue

#: Milliseconds of silence after which stock Dramatiq gives a process up.
STOCK_LEASE = 60_000


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it is at one moment."""

    name: str
    #: Messages to be fetched.
    waiting: int
    #: Messages in its delay queue: retries, and what was sent with a delay.
    delayed: int
    #: Messages that processes have: running, or fetched and next to run.
    running: int
    #: Messages that were running when a worker was lost, and wait to run alone.
    suspects: int
    #: Seconds since the message at the head of what waits was first sent, retries and delays included, by its sender's
    #: clock (Dramatiq's ``message_timestamp``); ``None`` where nothing waits, or does not say.
    oldest: float | None
    #: Since when it is paused, by whom and why; ``None`` where it is not.
    pause: Pause | None
    #: Processes that live and consume it, as failure rows call them.
    consumers: tuple[str, ...]
    #: Processes of stock Dramatiq that live and hold messages of it; of others nothing is known.
    stock_consumers: int

    @property
    def empty(self) -> bool:
        """Whether there is no message at all."""
        return not (self.waiting or self.delayed or self.running or self.suspects)


def list_queues(
    client: redis.Redis, declared: Collection[str] = (), *, namespace: str = "dramatiq"
) -> list[QueueState]:
    """Return the four queues and ``declared`` ones, then all others that hold messages, are consumed or are paused.

    What it costs Redis depends on the numbers of queues, processes and keys, not of messages.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    run = Scripts(client, namespace)
    with asking():
        now = server_time(client)
        lives = alive(client, f"{namespace}:__dramaturg__.alive", now - LEASE)
        stock = alive(client, f"{namespace}:__heartbeats__", now - STOCK_LEASE)
        names = {broker: name_of(broker, said) for broker, said in facts(client, lives, namespace).items()}
        consumed = {
            broker: {queue.decode() for queue in answer(client.smembers(f"{namespace}:__dramaturg__.queues.{broker}"))}
            for broker in lives
        }
        keys = read_keys(client, namespace)
    holders = keys.holders()
    brokers = sorted({*lives, *stock, *holders})
    first = list(dict.fromkeys([*(queue.value for queue in Queue), *declared]))
    others = {*keys.queues(), *(queue.removesuffix(".DQ") for queues in consumed.values() for queue in queues)}
    found = []
    for queue in [*first, *sorted({*others, *pauses(client, namespace)} - set(first))]:
        waiting, delayed, running, suspects, sent, data = run("queue_state", queue, *brokers)
        found.append(
            QueueState(
                queue,
                waiting,
                delayed,
                running,
                suspects,
                None if sent is None else max(0.0, (now - int(sent)) / 1000),
                None if data is None else Pause.from_json(data),
                tuple(sorted(names[broker] for broker in lives if queue in consumed[broker])),
                sum(queue in holders.get(broker, ()) for broker in stock if broker not in lives),
            )
        )
    return found
