"""A message that goes through a queue to a worker and back: whether work is done there, and how soon.

It is an actor that every process of ours knows, sent to whichever queue is asked about, so it waits its turn among that
queue's messages and takes a thread of a worker's. Its answer goes into a key that is there while somebody waits. One
that comes too late finds none and succeeds all the same: it is never retried, never too old, and never a failed job.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final, Literal, NamedTuple
from uuid import uuid4

import dramatiq
import redis
from dramatiq import Broker, Message
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.lossless_broker import LosslessBroker
from middleware.lua_scripts import Scripts
from middleware.tally import UNCOUNTED

ACTOR: Final = "worker.probe"
#: Seconds between two looks for the answer, for which to wait at most, and for which Redis keeps the answer's key,
#: should this process end meanwhile.
LOOK_EVERY: Final = 0.02
AT_MOST: Final = 20.0
KEPT: Final = 30


def declare(broker: Broker, queue_name: str) -> None:
    """Have ``broker`` know the probe.

    Arguments:
      queue_name: Any of its queues: the actor must have one, and is sent to all.
    """

    def probe(probe_id: str) -> None:
        """Answer, if somebody waits."""
        if not isinstance(broker, LosslessBroker):
            return
        try:
            broker.client.set(_key(broker.namespace, probe_id), b"here", xx=True, keepttl=True)
        except (redis.RedisError, OSError) as e:
            # Whoever waits learns just that.
            logger.warning("a probe cannot be answered: {}", type(e).__name__)

    declare_on = dramatiq.actor(
        broker=broker,
        actor_name=ACTOR,
        queue_name=queue_name,
        tenant_scoped=False,
        max_retries=0,
        # Whatever MAX_AGE says.
        max_age=None,
    )
    declare_on(probe)


class Probed(NamedTuple):
    """What became of a probe: ``answered``, or ``late``; or it was not sent, because its queue is ``paused``, or
    ``unconsumed`` by any worker that lives.

    Attributes:
      seconds: Until the answer came, or until nobody waited any more.
    """

    state: Literal["answered", "late", "paused", "unconsumed"]
    seconds: float = 0.0


class Probe:
    """Probes a queue once.

    Arguments:
      client: To Redis.
      queue: Its name.
      within: Seconds to wait, at most :data:`AT_MOST`; :meth:`extend` makes them more.
      namespace: Prefix of every key.
    """

    def __init__(self, client: redis.Redis, queue: str, within: float, *, namespace: str = "dramatiq") -> None:
        self._client = client
        self._queue = queue
        self._namespace = namespace
        self._run = Scripts(client, namespace)
        self._within = within

    def extend(self, within: float) -> None:
        """Wait for so many seconds in all, if that is more than before."""
        self._within = max(self._within, within)

    def run(self) -> Probed:
        """Send it, wait, and leave nothing behind: one that did not come in time is taken off its queue.

        Where a worker has it by then, it succeeds later, for nobody.

        Raises:
          ConnectionClosed: For any error of Redis.
        """
        # Every worker process knows the probe, and few send one.
        from worker.queue_admin import pauses
        from worker.queue_admin.keys import answer, asking
        from worker.replay.making import consumed_queues

        if self._queue not in consumed_queues(self._client, self._namespace):
            # It would stay there for ever.
            return Probed("unconsumed")
        if self._queue in pauses(self._client, self._namespace):
            return Probed("paused")
        probe_id, began = str(uuid4()), time.monotonic()
        key, came = _key(self._namespace, probe_id), False
        try:
            with asking():
                self._client.set(key, b"", ex=KEPT)
            self._run("enqueue", self._queue, 1, probe_id, self._message(probe_id).encode())
            while True:
                with asking():
                    came = bool(answer(self._client.get(key)))
                seconds = time.monotonic() - began
                if came:
                    return Probed("answered", seconds)
                if seconds > self._within:
                    break
                time.sleep(LOOK_EVERY)
            return Probed("paused" if self._queue in pauses(self._client, self._namespace) else "late", seconds)
        finally:
            # Where Redis is away, whatever is left of it succeeds for nobody when that is back.
            with suppress(ConnectionClosed), asking():
                if not came:
                    self._run("take_back", self._queue, probe_id)
                self._client.delete(key)

    def _message(self, probe_id: str) -> Message[None]:
        return Message(
            queue_name=self._queue,
            actor_name=ACTOR,
            args=(probe_id,),
            kwargs={},
            options={"redis_message_id": probe_id, UNCOUNTED: True},
            message_id=probe_id,
            message_timestamp=current_millis(),
        )


def _key(namespace: str, probe_id: str) -> str:
    return f"{namespace}:__dramaturg__.probe.{probe_id}"
