"""Removing messages that wait: all of a queue, or a tenant's or an actor's wherever they are.

It goes in steps that are short for Redis, and each message leaves its list and its queue in one step. It is safe while
messages are sent and worked on: one that a worker takes first runs, and is not counted as removed. What is removed of a
replay is remembered in the same step, and :mod:`worker.replay.removed` sets its failed job back.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID, uuid4

import redis

from middleware.lua_scripts import Scripts
from middleware.spool import TO_ITSELF
from worker.queue_admin.audit import PURGED, Audit, log_event
from worker.queue_admin.keys import answer, asking, read_keys
from worker.queue_admin.lanes import tenants_with_lanes
from worker.queues import Queue
from worker.replay.removed import note

#: Messages, and failures of the spool, that are looked at in one step. Many, because taking some out of the middle of a
#: list costs Redis a walk to them: 20 ms in one of a million.
AT_ONCE, SPOOLED_AT_ONCE = 2_000, 100
#: How often all is gone through again at most: a message that was on its way from the delay queue may be behind.
PASSES = 3
#: Seconds to wait at most for a worker that drains the spool.
WAIT_FOR_SPOOL = 2 * TO_ITSELF / 1000


@dataclass(frozen=True, slots=True)
class Found:
    """How many messages of a queue are meant."""

    queue: str
    waiting: int = 0
    delayed: int = 0
    #: Were running when a worker was lost, and wait to run alone.
    suspects: int = 0
    #: Failures that wait for Postgres.
    spooled: int = 0
    #: With workers, so they are left: running, or fetched and next to run.
    running: int = 0

    @property
    def removable(self) -> int:
        """How many can be removed."""
        return self.waiting + self.delayed + self.suspects + self.spooled


@dataclass(frozen=True, slots=True)
class _Meant:
    """Which messages are meant: all where both are ``None``. See :func:`remove_messages`."""

    tenant_id: UUID | None
    actor: str | None

    def __post_init__(self) -> None:
        if self.actor == "":
            raise ValueError("actor: must not be empty")

    def arguments(self) -> tuple[str, str]:
        return (self.tenant_id.hex if self.tenant_id else "", self.actor or "")

    def is_failure(self, data: bytes) -> bool:
        """Tell of a failure in the spool."""
        try:
            failure: dict[str, Any] = json.loads(data)
            tenant_id, actor, kind = failure["tenant_id"], failure["task_name"], failure.get("kind")
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if kind == "success":
            # Of a replay: its row would be open for ever.
            return False
        return (self.tenant_id is None or tenant_id == str(self.tenant_id)) and (
            self.actor is None or actor == self.actor or (self.actor[0] == "." and str(actor).endswith(self.actor))
        )


def count_messages(
    client: redis.Redis,
    *,
    tenant_id: UUID | None = None,
    actor: str | None = None,
    queues: Collection[str] | None = None,
    namespace: str = "dramatiq",
) -> list[Found]:
    """Return how many messages of ``tenant_id`` and of ``actor`` there are, by queue; of either kind where it is None.

    It reads every message that waits, and changes nothing. The arguments are those of :func:`remove_messages`;
    ``queues`` leaves the spool out.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    return _Sieve(client, namespace, _Meant(tenant_id, actor), queues).count()


def purge(
    client: redis.Redis,
    queue: str,
    *,
    by: str,
    reason: str = "",
    tenant_id: UUID | None = None,
    actor: str | None = None,
    namespace: str = "dramatiq",
    before_removal: Callable[[Sequence[Found]], object] = lambda _: None,
    audit: Audit = log_event,
) -> Found:
    """Remove what waits in ``queue`` and what is delayed there, and return how much that was.

    See :func:`remove_messages`. What is in the spool has ended, and is left.

    Raises:
      ConnectionClosed: For any error of Redis. What was removed by then is gone.
    """
    sieve = _Sieve(client, namespace, _Meant(tenant_id, actor), [queue])
    (found,) = _remove(sieve, by=by, reason=reason, before_removal=before_removal, audit=audit)
    return found


def remove_messages(
    client: redis.Redis,
    *,
    by: str,
    reason: str = "",
    tenant_id: UUID | None = None,
    actor: str | None = None,
    namespace: str = "dramatiq",
    before_removal: Callable[[Sequence[Found]], object] = lambda _: None,
    audit: Audit = log_event,
) -> list[Found]:
    """Remove a tenant's messages, an actor's, or a tenant's of an actor, from all queues, delay queues and the spool.

    What runs is counted and left: it may send more, and a failure of it may be tried again. To off-board a tenant, stop
    sending for it, remove, wait until nothing of it runs, and remove again; then remove its rows. A group that a
    removed message was a child of never completes. A failed job that was being replayed by a removed message is
    ``pending`` again within seconds, where a worker consumes ``housekeeping``, and at once by
    :func:`worker.replay.removed.release_removed`.

    Arguments:
      client: To Redis.
      by: The operator.
      reason: Why, in the operator's words.
      tenant_id: Of whom; of all where it is ``None``.
      actor: Which, or with a dot at its beginning those whose names end so: ``.recompute_window``; all where it is
        ``None``.
      namespace: Prefix of every key.
      before_removal: Told what was found, before anything is removed; what it raises prevents that. Not called where
        there is nothing to remove.
      audit: Told next, with the same counts. Its event is there before the first message is gone, so a removal that
        broke off has its event, too; what is removed may be more or less than was counted, as work goes on.

    Returns:
      How many were removed by queue, and how many run; queues of which nothing was found are left out.

    Raises:
      ValueError: When neither ``tenant_id`` nor ``actor`` is given, or ``actor`` is empty.
      ConnectionClosed: For any error of Redis. What was removed by then is gone.
      TimeoutError: When a worker drains the spool all the time.
    """
    if tenant_id is None and actor is None:
        raise ValueError("tenant_id or actor: one of them must be given; purge() empties a queue")
    sieve = _Sieve(client, namespace, _Meant(tenant_id, actor), None)
    found = _remove(sieve, by=by, reason=reason, before_removal=before_removal, audit=audit)
    return [one for one in found if one.removable or one.running]


def _remove(
    sieve: _Sieve,
    *,
    by: str,
    reason: str,
    before_removal: Callable[[Sequence[Found]], object],
    audit: Audit,
) -> list[Found]:
    found = sieve.count()
    if not any(one.removable for one in found):
        return found
    before_removal(found)
    audit(
        PURGED,
        changed_by=by,
        reason=reason or None,
        tenant_id=sieve.meant.tenant_id,
        before={"actor": sieve.meant.actor, "queues": [asdict(one) for one in found if one.removable]},
        after={},
    )
    return sieve.remove(note(by, reason))


class _Sieve:
    """Goes through everything that waits.

    Arguments:
      meant: Which messages are looked for.
      queues: Where; everywhere, the spool included, where it is ``None``.
    """

    def __init__(self, client: redis.Redis, namespace: str, meant: _Meant, queues: Collection[str] | None) -> None:
        self._client = client
        self._namespace = namespace
        self._run = Scripts(client, namespace)
        self.meant = meant
        self._queues = queues
        #: What is remembered with replays that are removed.
        self._note = ""

    def count(self) -> list[Found]:
        """Return what is meant, by queue."""
        queues, brokers = self._look()
        found = self._pass(queues, remove=False)
        self._count_running(found, brokers)
        self._count_spooled(found)
        return _by_queue(found, queues)

    def remove(self, note: str) -> list[Found]:
        """Remove what is meant, and return it by queue, with what runs afterwards."""
        self._note = note
        removed = Counter[tuple[str, str]]()
        for _ in range(PASSES):
            queues, _ = self._look()
            found = self._pass(queues, remove=True)
            removed.update(found)
            if not found.total():
                break
        if self._queues is None:
            self._remove_spooled(removed)
        queues, brokers = self._look()
        self._count_running(removed, brokers)
        return _by_queue(removed, queues)

    def _look(self) -> tuple[Collection[str], Collection[str]]:
        """Return the queues to go through, and the brokers that may hold messages of them."""
        with asking():
            keys = read_keys(self._client, self._namespace)
            alive = answer(self._client.zrange(f"{self._namespace}:__dramaturg__.alive", 0, -1))
        brokers = {*keys.holders(), *(broker.decode() for broker in alive)}
        queues = {*(queue.value for queue in Queue), *keys.queues()} if self._queues is None else self._queues
        return queues, brokers

    def _pass(self, queues: Collection[str], *, remove: bool) -> Counter[tuple[str, str]]:
        found = Counter[tuple[str, str]]()
        for queue in sorted(queues):
            delayed = f"{queue}.DQ"
            # In the way of a delayed message.
            for what in ("list", "suspects", "due"):
                found[queue, "delayed"] += self._sift(delayed, what, remove=remove)
            found[queue, "waiting"] += self._sift(queue, "list", remove=remove)
            # Into which messages go from there.
            for tenant in self._lanes(queue):
                found[queue, "waiting"] += self._sift(queue, "lane", tenant, remove=remove)
            found[queue, "suspects"] += self._sift(queue, "suspects", remove=remove)
        return found

    def _count_running(self, found: Counter[tuple[str, str]], brokers: Collection[str]) -> None:
        for queue in self._look()[0]:
            for broker in brokers:
                for name in (queue, f"{queue}.DQ"):
                    found[queue, "running"] += self._sift(name, "held", broker) + self._sift(name, "taking", broker)

    def _lanes(self, queue: str) -> list[str]:
        """Return whose lanes may hold what is meant."""
        lanes = tenants_with_lanes(self._client, queue, self._namespace)
        return [tenant for tenant in lanes if self.meant.tenant_id is None or tenant == self.meant.tenant_id.hex]

    def _sift(self, queue: str, what: str, whose: str = "", *, remove: bool = False) -> int:
        """Go through one key, and return how many are meant there."""
        at, total, seen, enough = b"0", 0, 0, 0
        looked: int
        meant: int
        while True:
            meant, at, looked, length = self._run(
                "sift", queue, what, whose, at, AT_ONCE, int(remove), *self.meant.arguments(), self._note
            )
            total += meant
            # What is sent meanwhile is looked at, too; but whoever sends faster than this must not keep it for ever.
            seen, enough = seen + looked, enough or 2 * length + 10 * AT_ONCE
            if at == b"-1" or seen > enough:
                return total

    def _spooled(self) -> Iterator[list[tuple[bytes, str, str | None]]]:
        """Give the failures in the spool that are meant, some at a time: name, queue, and the item of a replay."""
        cursor: Any = 0
        while True:
            with asking():
                cursor, batch = answer(
                    self._client.hscan(f"{self._namespace}:__dramaturg__.spool", cursor, count=SPOOLED_AT_ONCE)
                )
            yield [
                (
                    name,
                    name.decode("utf-8", "replace").partition(":")[0].removesuffix(".DQ"),
                    json.loads(data).get("replay_item"),
                )
                for name, data in batch.items()
                if self.meant.is_failure(data)
            ]
            if int(cursor) == 0:
                return

    def _count_spooled(self, found: Counter[tuple[str, str]]) -> None:
        if self._queues is None:
            for batch in self._spooled():
                found.update((queue, "spooled") for _, queue, _ in batch)

    def _remove_spooled(self, removed: Counter[tuple[str, str]]) -> None:
        """Remove them while no worker drains the spool, so that each is either recorded or removed."""
        me = f"removal-{uuid4()}"
        self._take_spool(me)
        try:
            for batch in self._spooled():
                if batch:
                    items = [item for _, _, item in batch if isinstance(item, str)]
                    if items:
                        # First: one that is set back and then recorded all the same is a failure of it.
                        self._run("note_removed_replays", self._note, *items)
                    self._run("spool_remove", *(name for name, _, _ in batch))
                    removed.update((queue, "spooled") for _, queue, _ in batch)
                    self._take_spool(me)
        finally:
            self._run("spool_leave", me)

    def _take_spool(self, me: str) -> None:
        drainer, end = f"{self._namespace}:__dramaturg__.spool.drainer", time.monotonic() + WAIT_FOR_SPOOL
        while True:
            self._run("spool_take", me, TO_ITSELF, 0)
            with asking():
                if answer(self._client.get(drainer)) == me.encode():
                    return
            if time.monotonic() > end:
                raise TimeoutError(f"a worker drains the spool for more than {WAIT_FOR_SPOOL:g} seconds; try again")
            time.sleep(0.2)


def _by_queue(found: Counter[tuple[str, str]], queues: Collection[str]) -> list[Found]:
    names = sorted({*queues, *(queue for queue, _ in found)})
    kinds = ("waiting", "delayed", "suspects", "spooled", "running")
    return [Found(queue, **{kind: found[queue, kind] for kind in kinds}) for queue in names]
