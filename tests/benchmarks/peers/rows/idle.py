"""An idle worker: how soon it starts what is sent, and what it asks of Redis meanwhile."""

from __future__ import annotations

import threading
import time

import redis

from tests.benchmarks.peers import peers
from tests.benchmarks.peers.reckoning import check, percentile
from tests.benchmarks.peers.rows.row import Figure, Row
from tests.benchmarks.peers.running import Stage

SECONDS = 10.0
#: Seconds between messages, at random: long enough that whoever asks ever less often is as idle as he gets.
PAUSES = (0.2, 1.2)


def calls(url: str) -> float:
    """Return how many commands a second clients send.

    MONITOR says what clients send; INFO commandstats would count what a script calls as well, which travels nowhere.
    """
    said: list[str] = []
    with redis.Redis.from_url(url, socket_timeout=2 * SECONDS) as client, redis.Redis.from_url(url) as other:
        other.ping()
        with client.monitor() as monitor:
            end = threading.Timer(SECONDS, lambda: other.publish("bench", "end"))
            end.start()
            for command in monitor.listen():
                if command["command"].startswith("PUBLISH bench"):
                    break
                if command["client_type"] != "lua":
                    said.append(command["command"])
            end.join()
    return len(said) / SECONDS


def measure(stage: Stage, count: int) -> dict[str, float]:
    """The first message is to see that the worker is there."""
    with stage.worker() as worker:
        took = stage.send("idle", count + 1, *PAUSES)[1:]
        worker.wait_for(count + 1)
        time.sleep(2)
        figures = {"p50": percentile(took, 0.5), "p95": percentile(took, 0.95)}
        if asked := calls(stage.redis_url):
            figures["calls"] = asked
    check([note.number for note in stage.notes()], range(count + 1))
    return figures


ROW = Row(
    title="{count} messages, one at a time, to an idle worker",
    peers=(
        peers.OURS,
        peers.STOCK,
        peers.CELERY_THREADS,
        peers.TASKIQ,
        peers.PGQUEUER,
        peers.OBAN,
        peers.PROCRASTINATE,
    ),
    count=60,
    figures={
        "p50": Figure("send to start, p50, ms", more=False, digits=1),
        "p95": Figure("send to start, p95, ms", more=False, digits=1),
        "calls": Figure("calls to Redis a second", more=False, digits=1),
    },
    measure=measure,
)
