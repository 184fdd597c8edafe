"""Brokers, workers and a look into Redis, for the tests that show what stock Dramatiq loses and ours does not."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import dramatiq
import redis
from dramatiq import Broker, MessageProxy, Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.redis import RedisBroker
from redis.backoff import NoBackoff
from redis.retry import Retry

from db.failures import Failure
from worker.broker import make_broker
from worker.settings import Settings

TENANT = UUID(int=0xA)
QUEUE = "attribution"


class Side:
    """One broker under test, with the failures it has recorded."""

    def __init__(self, broker: Broker, failures: list[Failure]) -> None:
        self.broker = broker
        self.failures = failures

    @property
    def client(self) -> redis.Redis:
        """The broker's own client."""
        client: redis.Redis = self.broker.client  # type: ignore[attr-defined]
        return client

    def actor(self, fn: Callable[..., Any], **options: Any) -> dramatiq.Actor[..., Any]:
        """Declare an actor under a new name."""
        options = {"actor_name": f"test.{uuid.uuid4().hex}", "max_retries": 0, **options}
        return dramatiq.actor(broker=self.broker, queue_name=QUEUE, **options)(fn)

    def send(self, actor: dramatiq.Actor[..., Any], *args: Any, **options: Any) -> dramatiq.Message[Any]:
        """Send for a tenant."""
        return actor.send_with_options(args=args, tenant_id=str(TENANT), **options)

    @contextmanager
    def working(self, threads: int = 2) -> Iterator[Worker]:
        """A worker, as long as the ``with`` block lasts."""
        worker = Worker(self.broker, worker_timeout=20, worker_threads=threads, queues={QUEUE})
        worker.start()
        loop = get_event_loop_thread()
        try:
            yield worker
        finally:
            worker.stop(timeout=10_000)
            # Dramatiq knows one event loop a process and stops that; of two workers in one process, as some of these
            # tests have it, the other's would keep the process from ending.
            if loop is not None and loop.is_alive():
                loop.stop()

    def close(self) -> None:
        """Close every connection."""
        self.broker.close()
        self.client.close()


def stock(redis_url: str, timeout: float = 5) -> Side:
    """Dramatiq as it comes; ``timeout`` seconds for an answer of Redis."""
    # Without redis-py's retries, which only put off what happens.
    client = redis.Redis.from_url(redis_url, socket_timeout=timeout, retry=Retry(NoBackoff(), 0))
    broker = RedisBroker(client=client)
    broker.declare_queue(QUEUE)
    return Side(broker, [])


def ours(redis_url: str, **environment: str) -> Side:
    """The broker of production; failures go to a list instead of a table."""
    failures: list[Failure] = []
    environment = {"REDIS_URL": redis_url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", **environment}
    settings = Settings.load(environment)
    return Side(make_broker(settings, failures.append), failures)


def kept(client: redis.Redis, queue: str = QUEUE) -> int:
    """Messages of a queue that are not done."""
    # Both at one moment: a message that becomes due between two calls would be in neither.
    script = "#!lua flags=allow-oom\nreturn redis.call('hlen', KEYS[1]) + redis.call('hlen', KEYS[2])"
    return int(client.eval(script, 2, f"dramatiq:{queue}.msgs", f"dramatiq:{queue}.DQ.msgs"))


def in_acks(client: redis.Redis) -> int:
    """Messages that some process holds."""
    return sum(int(client.scard(key)) for key in client.scan_iter("dramatiq:__acks__.*"))


def marker_of(one: Side, what: str) -> bytes:
    """Return what stands in the commands of a broker that ``fetch``, ``enqueue``, and ``finish`` a message, of which
    something follows, or ``finish_many``."""
    if type(one.broker) is RedisBroker:
        ends = b"\r\nack\r\n"
        return {
            "fetch": b"$11\r\nattribution\r\n",
            "finish": ends,
            "finish_many": ends,
            "enqueue": b"\r\nenqueue\r\n",
        }[what]
    sha: str = one.broker.run._scripts[what].sha  # type: ignore[attr-defined]
    return sha.encode()


def waiting(client: redis.Redis, queue: str = QUEUE) -> list[bytes]:
    """What waits in a queue of one tenant's messages, in its order: its lane, and behind that the queue's list."""
    own = "dramatiq:__dramaturg__."
    tenants: Any = client.zrange(f"{own}turns.{queue}", 0, -1)
    keys = [*(f"{own}lane.{queue}.{tenant.decode()}" for tenant in tenants), f"dramatiq:{queue}"]
    found: Any = [redis_id for key in keys for redis_id in client.lrange(key, 0, -1)]
    # One that is none wakes who waits for the list.
    return [redis_id for redis_id in found if redis_id != b"wake"]


def put(client: redis.Redis, redis_id: str, data: bytes | str, queue: str = QUEUE) -> None:
    """Put anything at all on a queue."""
    client.hset(f"dramatiq:{queue}.msgs", redis_id, data)
    client.rpush(f"dramatiq:{queue}", redis_id)


class Settled(dramatiq.Middleware):
    """Tells when every hook has done with what a job led to."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def after_process_message(self, broker: Broker, message: MessageProxy, **_: Any) -> None:
        self.event.set()


def settled(side: Side) -> threading.Event:
    """Return an event that is set when the next job's after hooks have run."""
    middleware = Settled()
    # First in the list is last in after hooks.
    side.broker.middleware.insert(0, middleware)
    return middleware.event
