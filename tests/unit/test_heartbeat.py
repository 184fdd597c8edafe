"""Queues that begin at the same time share a sign of life, and none begins without one."""

from __future__ import annotations

import threading
from typing import Any

import pytest

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
        return [1, 7, 0, [], 0, [], [], [0, 0, 1]]


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


def test_who_asks_for_a_turn_asks_with_a_sign_of_life_where_one_is_due_and_alone_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, said, alive = 1_000.0, list[tuple[Any, ...]](), 2

    def run(name: str, *arguments: Any) -> list[Any]:
        said.append((name, arguments[4] if name == "beat" else arguments))
        return [1, 7, 0, [], 0, [], [], [5_000_000, 1, alive]] if name == "beat" else [6_000_000, 0]

    monkeypatch.setattr("middleware.heartbeat._now", lambda: now)
    heartbeat = Heartbeat(run, "broker", lease=8_000, grace=1, interval=2)  # type: ignore[arg-type]
    assert heartbeat.ask_turn("me", 855) == [6_000_000, 0]
    heartbeat.cover("queue")
    now += 1
    assert heartbeat.ask_turn("me", 855) == [6_000_000, 0]
    now, alive = now + 0.9, 1
    assert heartbeat.ask_turn("me", 855) == [5_000_000, 1]
    asked = ("relay_turn", ("me", 855, 855))
    assert said == [asked, ("beat", ""), asked, ("beat", "me 855")]
    now += 0.95
    # Only for as long as it is known to live itself.
    assert heartbeat.ask_turn("me", 855) == [5_000_950, 1]
    heartbeat.stop()
    assert heartbeat.ask_turn("me", 855) == [6_000_000, 0]
    assert [name for name, _ in said[4:]] == ["goodbye", "relay_turn"]
