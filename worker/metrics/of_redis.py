"""What Redis tells: what processes have counted, queues, workers, the spool and the scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import redis
from dramatiq.errors import ConnectionClosed
from prometheus_client.core import Metric

from worker.live import WorkerState, counted, list_workers, scheduler_state, spool_state
from worker.live.samples import QUEUES_AT_MOST
from worker.metrics.families import counters, gauge
from worker.queue_admin import QueueState, list_queues
from worker.queue_admin.keys import asking
from worker.queue_admin.lives import server_time
from worker.scheduler.state import read
from worker.settings import Settings

#: Scheduled actors that are told apart.
JOBS_AT_MOST = 500


def of_redis(client: redis.Redis, settings: Settings) -> list[Metric]:
    """Return it.

    Arguments:
      client: To Redis, with a short time to answer.
      settings: Of the deployment.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    namespace = settings.redis_namespace
    with asking():
        now = server_time(client) / 1000
    return [
        *counters(counted(client, namespace=namespace)),
        *_queues(list_queues(client, settings.extra_queues, namespace=namespace)[:QUEUES_AT_MOST]),
        *_workers(list_workers(client, namespace=namespace), now),
        *_spool(client, settings, now),
        *_scheduler(client, namespace),
        *_memory(client),
    ]


def _queues(found: Sequence[QueueState]) -> Iterator[Metric]:
    yield gauge(
        "queue_messages",
        "Messages of a queue: waiting to be fetched, delayed (retries, too), held by worker processes (running, or "
        "fetched and next to run), or suspect (running when a worker was lost, and waiting to run alone).",
        *(
            ((queue.name, state), value)
            for queue in found
            for state, value in (
                ("waiting", queue.waiting),
                ("delayed", queue.delayed),
                ("held", queue.running),
                ("suspect", queue.suspects),
            )
        ),
        labels=("queue", "state"),
    )
    yield gauge(
        "queue_oldest_age_seconds",
        "Since the message at the head of a queue was first sent, with its delays and retries, by its sender's clock; "
        "0 where nothing waits.",
        *(((queue.name,), queue.oldest or 0.0) for queue in found),
        labels=("queue",),
    )
    yield gauge(
        "queue_paused",
        "1 where a queue is paused, else 0.",
        *(((queue.name,), float(queue.pause is not None)) for queue in found),
        labels=("queue",),
    )
    yield gauge(
        "queue_consumers",
        "Worker processes that live and consume a queue.",
        *(((queue.name,), len(queue.consumers) + queue.stock_consumers) for queue in found),
        labels=("queue",),
    )


def _workers(found: Sequence[WorkerState], now: float) -> Iterator[Metric]:
    stopping = sum(one.stopping for one in found)
    yield gauge(
        "workers",
        "Worker processes that live: running, or stopping because they were told to.",
        (("running",), len(found) - stopping),
        (("stopping",), stopping),
        labels=("state",),
    )
    yield gauge(
        "worker_threads", "Messages that all of them may run at once.", ((), sum(w.threads or 0 for w in found))
    )
    yield gauge("jobs_running", "Messages that they run.", ((), sum(len(w.running) + w.more for w in found)))
    oldest: dict[str, float] = {}
    for message in (message for one in found for message in one.running):
        queue = message.queue.removesuffix(".DQ")
        oldest[queue] = max(oldest.get(queue, 0.0), now - message.since.timestamp())
    yield gauge(
        "running_oldest_age_seconds",
        "Since the execution began that has run longest, of each queue of which any runs.",
        *(((queue,), age) for queue, age in sorted(oldest.items())[:QUEUES_AT_MOST]),
        labels=("queue",),
    )
    resident = [(one.resident or 0) * 2**20 for one in found]
    yield gauge("worker_resident_bytes", "Memory of all worker processes together.", ((), sum(resident)))
    yield gauge("worker_resident_max_bytes", "Memory of the largest of them.", ((), max(resident, default=0)))


def _spool(client: redis.Redis, settings: Settings, now: float) -> Iterator[Metric]:
    state = spool_state(client, namespace=settings.redis_namespace)
    yield gauge("spool_messages", "Failures that wait in Redis for Postgres to take them.", ((), state.size))
    yield gauge("spool_limit_messages", "As many may, before workers wait (SPOOL_LIMIT).", ((), settings.spool_limit))
    since = _seconds(state.since)
    yield gauge(
        "spool_age_seconds",
        "Since when any have waited; 0 where none do.",
        ((), 0.0 if since is None else max(0.0, now - since)),
    )


def _scheduler(client: redis.Redis, namespace: str) -> Iterator[Metric]:
    state = scheduler_state(client, namespace=namespace)
    yield gauge("schedulers", "Schedulers that live. One is enough.", ((), state.living))
    yield gauge("scheduler_jobs", "Scheduled actors that are on, by what the last scheduler said.", ((), state.jobs))
    yield gauge(
        "scheduler_late_seconds",
        "For how long the next tick has been due; 0 where none is.",
        ((), state.late),
    )
    sent = sorted((name, last.at.timestamp()) for name, last in read(client, namespace).sent.items())
    yield gauge(
        "schedule_last_sent_timestamp_seconds",
        "When a scheduled actor was last sent, in seconds since 1970.",
        *(((name,), at) for name, at in sent[:JOBS_AT_MOST]),
        labels=("actor",),
    )


def _memory(client: redis.Redis) -> Iterator[Metric]:
    found: dict[str, Any] = {}
    # A user of few rights may not ask for it, and hosts may not say.
    with suppress(ConnectionClosed), asking():
        found = client.info("memory")
    for name, key, said in (
        ("redis_memory_used_bytes", "used_memory", "Memory that Redis uses."),
        ("redis_memory_max_bytes", "maxmemory", "Memory that it may use, after which it takes no message; 0 for any."),
    ):
        value = found.get(key)
        yield gauge(name, said, *((((), value),) if isinstance(value, int | float) else ()))


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
