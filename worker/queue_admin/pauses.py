"""Pausing a queue: its messages stay where they are, in their order, until it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis

from middleware.lua_scripts import Scripts
from middleware.text import clean
from worker.queue_admin.audit import PAUSED, RESUMED, Audit, log_event
from worker.queue_admin.keys import answer, asking
from worker.queues import check_queue_name

#: The message that is none, a mention of which wakes those that wait for a queue.
_WAKE = "paused"


@dataclass(frozen=True, slots=True)
class Pause:
    """That a queue is paused, since when, by whom and why."""

    since: datetime
    by: str
    reason: str

    @classmethod
    def from_json(cls, data: bytes) -> Pause:
        """Return what Redis keeps. What cannot be read pauses its queue as well."""
        try:
            found: dict[str, Any] = json.loads(data)
            return cls(datetime.fromtimestamp(int(found["since"]), UTC), str(found["by"]), str(found["reason"]))
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            return cls(datetime.fromtimestamp(0, UTC), "(unreadable)", "")

    def as_json(self) -> dict[str, str]:
        """Return it as JSON takes it."""
        return {"since": self.since.isoformat(), "by": self.by, "reason": self.reason}


def pauses(client: redis.Redis, namespace: str = "dramatiq") -> dict[str, Pause]:
    """Return the queues that are paused."""
    with asking():
        found = answer(client.hgetall(_key(namespace)))
    return {queue.decode("utf-8", "replace"): Pause.from_json(data) for queue, data in sorted(found.items())}


def pause(
    client: redis.Redis,
    queue: str,
    *,
    by: str,
    reason: str = "",
    namespace: str = "dramatiq",
    audit: Audit = log_event,
) -> Pause:
    """Pause ``queue`` until it is resumed, however often Redis or workers restart, and return its pause.

    From here on no process fetches from it, nor will one that starts. What a process has fetched already, up to its
    prefetch, still runs. Sending goes on, and what is delayed joins the queue when it is due. A queue that is paused
    already keeps its first pause, and nothing is told to ``audit``. Stock Dramatiq workers do not know of it.

    Arguments:
      client: To Redis.
      queue: A name; no messages need be there.
      by: The operator.
      reason: Why, in the operator's words.
      namespace: Prefix of every key.
      audit: Told before.

    Raises:
      ValueError: When ``queue`` is no queue name.
      ConnectionClosed: For any error of Redis.
    """
    check_queue_name(queue)
    by, reason = clean(by), clean(reason)
    with asking():
        known = client.hexists(_key(namespace), queue)
    if not known:
        audit(
            PAUSED,
            changed_by=by,
            reason=reason or None,
            tenant_id=None,
            before={"queue": queue, "paused": None},
            after={"queue": queue, "paused": {"by": by, "reason": reason}},
        )
    data, woken = Scripts(client, namespace)("pause", queue, by, reason, _WAKE)
    if woken:
        # Everybody who waited was woken before this command; what is left is nobody's.
        with asking():
            client.lrem(f"{namespace}:{queue}", 0, _WAKE)
    return Pause.from_json(data)


def resume(
    client: redis.Redis,
    queue: str,
    *,
    by: str,
    reason: str = "",
    namespace: str = "dramatiq",
    audit: Audit = log_event,
) -> Pause | None:
    """Resume ``queue`` and return the pause that has ended; ``None``, and no event, where it was not paused.

    Every process fetches again within a second. The arguments are those of :func:`pause`.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    by, reason = clean(by), clean(reason)
    with asking():
        data = answer(client.hget(_key(namespace), queue))
    if data is None:
        return None
    before: Mapping[str, Any] = {"queue": queue, "paused": Pause.from_json(data).as_json()}
    after = {"queue": queue, "paused": None}
    audit(RESUMED, changed_by=by, reason=reason or None, tenant_id=None, before=before, after=after)
    ended = Scripts(client, namespace)("resume", queue)
    return None if ended is None else Pause.from_json(ended)


def _key(namespace: str) -> str:
    return f"{namespace}:__dramaturg__.paused"
