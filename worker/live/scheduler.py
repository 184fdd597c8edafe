"""Whether a scheduler lives, and whether it is on time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from worker.queue_admin.keys import answer, asking
from worker.queue_admin.lives import server_time
from worker.scheduler.state import LEASE


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """The schedulers at one moment. Times are the server's; where none was ever there, all is None or 0."""

    #: How many live. One is enough; of more, each sends what the others have not.
    living: int
    #: Of the one that has lived longest, or, where none lives, was last heard of: what it calls itself, since when it
    #: runs or ran, and when it last gave a sign of life, which it does every five seconds.
    name: str | None
    since: datetime | None
    last_sign: datetime | None
    #: How many jobs are on, by what that one said.
    jobs: int
    #: Which job comes next, and when.
    next_job: str | None
    next_tick: datetime | None
    #: Seconds for which that one has been due.
    late: float

    @property
    def lives(self) -> bool:
        """Whether any does."""
        return self.living > 0

    @property
    def wrong(self) -> bool:
        """Whether there are jobs that nobody sends."""
        return bool(self.jobs) and (not self.lives or self.late > LEASE)


def scheduler_state(client: redis.Redis, *, namespace: str = "dramatiq") -> SchedulerState:
    """Return whether a scheduler lives, and what comes next.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    own = f"{namespace}:__dramaturg__.schedulers"
    with asking():
        now = server_time(client) / 1000
        signs = {found: sign / 1000 for found, sign in answer(client.zrange(own, 0, -1, withscores=True))}
        said = answer(client.hgetall(f"{own}.facts"))
    facts = {found: _read(said.get(found)) for found in signs}
    living = [found for found, sign in signs.items() if now - sign < LEASE and facts[found].get("left") is not True]
    if not signs:
        return SchedulerState(0, None, None, None, 0, None, None, 0.0)
    if living:
        shown = min(living, key=lambda found: (_number(facts[found].get("since")) or now, found))
    else:
        shown = max(signs, key=lambda found: (signs[found], found))
    of, tick = facts[shown], _number(facts[shown].get("next"))
    return SchedulerState(
        len(living),
        _text(of.get("name")),
        _moment(_number(of.get("since"))),
        _moment(signs[shown]),
        jobs if isinstance(jobs := of.get("jobs"), int) else 0,
        _text(of.get("next_job")),
        _moment(tick),
        0.0 if tick is None else max(0.0, now - tick),
    )


def _read(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < 2e11 else None


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
