"""Queues that begin at the same time share a sign of life, and none begins without one."""

from __future__ import annotations

import threading
from typing import Any

from middleware.heartbeat import Heartbeat


class Redis:
    """Answers as ``beat.lua`` does, once it may."""

    def __init__(self) -> None:
        self.beats: list[set[str]] = []
        self.begun = threading.Event()
        self.may_answer = threading.Event()

    def __call__(self, name: str, *arguments: Any) -> list[Any]:
        if name == "beat":
            # After what else is said.
            self.beats.append(set(arguments[7:]))
            self.begun.set()
            assert self.may_answer.wait(10)
        return [1, 7, 0, [], 0, [], [], [0, 0]]


def test_each_queue_is_in_a_beat_that_began_after_it_did() -> None:
    redis = Redis()
    heartbeat = Heartbeat(redis, "broker", lease=60_000, grace=1, interval=60)  # type: ignore[arg-type]
    first = threading.Thread(target=heartbeat.cover, args=("first",))
    first.start()
    assert redis.begun.wait(10)
    others = [threading.Thread(target=heartbeat.cover, args=(f"queue{n}",)) for n in range(8)]
    for thread in others:
        thread.start()
    # They have all said so, and wait.
    while len(heartbeat._queues) < 9:
        threading.Event().wait(0.01)
    redis.may_answer.set()
    for thread in (first, *others):
        thread.join(10)
    assert redis.beats[0] == {"first"}
    assert redis.beats[-1] == {"first", *(f"queue{n}" for n in range(8))}
    # Not one each: a moment may lie between saying it and asking for it.
    assert len(redis.beats) < len(others)
    # Who begins later asks again.
    before = len(redis.beats)
    heartbeat.cover("first")
    assert len(redis.beats) == before + 1
    heartbeat.stop()
