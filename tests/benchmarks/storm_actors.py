"""What :mod:`tests.benchmarks.storm` runs: ``worker dramatiq tests.benchmarks.storm_actors --queues llm``."""

from __future__ import annotations

import time

import dramatiq

from worker.broker import broker

#: Keys in Redis: milliseconds that steady jobs had waited when they began, as ``when sent:how long``.
WAITS = "storm:waits"


@dramatiq.actor(broker=broker, queue_name="llm", max_retries=0)
def fail(n: int, window: str) -> None:
    """Fail, as each of a storm does."""
    raise ValueError(f"number {n} of {window}")


@dramatiq.actor(broker=broker, queue_name="attribution", max_retries=0)
def steady(sent: float) -> None:
    """Say how long it has waited; sender and worker share a clock."""
    broker.client.rpush(WAITS, f"{sent}:{(time.time() - sent) * 1000:.3f}")  # type: ignore[attr-defined]
