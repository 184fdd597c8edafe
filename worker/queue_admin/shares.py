"""Shares: how many of a queue's turns a tenant has, and how many of its jobs may run at once; and who waits there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import redis

from middleware.lua_scripts import Scripts
from middleware.text import clean
from worker.queue_admin.audit import SHARED, Audit, log_event
from worker.queue_admin.keys import answer, asking, read_keys
from worker.queue_admin.lives import server_time
from worker.queues import check_queue_name

#: Whose share is meant, beside a tenant's: that of all who have none of their own, or of jobs without a tenant.
EVERYBODY: Final = "*"
NOBODY: Final = "-"
Whose = UUID | str

#: What may be given.
LIGHTEST, HEAVIEST, MOST_AT_ONCE = 0.01, 1_000.0, 1_000_000


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant has of a queue, since when, by whom and why."""

    #: Turns that it has for each of one that weighs 1; ``None`` as everybody.
    weight: float | None
    #: Jobs of it that may be with workers at once, what they have fetched and not begun included; 0 as many as there
    #: are, ``None`` as everybody.
    limit: int | None
    since: datetime
    by: str
    reason: str

    @classmethod
    def from_json(cls, data: bytes) -> Share:
        """Return what Redis keeps, as far as it can be read."""
        try:
            found: dict[str, Any] = json.loads(data)
            weight, limit = found["weight"], found["limit"]
            return cls(
                None if weight is None else float(weight),
                None if limit is None else int(limit),
                datetime.fromtimestamp(int(found["since"]), UTC),
                str(found["by"]),
                str(found["reason"]),
            )
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            return cls(None, None, datetime.fromtimestamp(0, UTC), "(unreadable)", "")

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        said = {"weight": self.weight, "limit": self.limit}
        return {**said, "since": self.since.isoformat(), "by": self.by, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class TenantState:
    """A tenant's part of a queue at one moment."""

    #: ``None`` of jobs without a tenant.
    tenant_id: UUID | None
    waiting: int
    #: With workers: running, or fetched and next to run.
    running: int
    #: Seconds since the first of those that wait was first sent; see :class:`worker.queue_admin.QueueState`.
    oldest: float | None
    #: As they hold for it, its own or everybody's; a limit of ``None`` is none.
    weight: float
    limit: int | None


@dataclass(frozen=True, slots=True)
class ByTenant:
    """A queue by tenant."""

    #: Those with most first; at most as many as were asked for.
    tenants: tuple[TenantState, ...]
    #: How many there are.
    count: int
    #: How many messages wait of which it was not looked whose they are, because there are too many.
    unsorted: int
    #: The shares of tenants, of everybody (``*``) and of nobody (``-``).
    shares: Mapping[Whose, Share]


def share(
    client: redis.Redis,
    queue: str,
    whose: Whose,
    *,
    weight: float | None = None,
    limit: int | None = None,
    by: str,
    reason: str = "",
    namespace: str = "dramatiq",
    audit: Audit = log_event,
) -> Share:
    """Set what share of ``queue`` somebody has, and return it. What is not given stays as it is.

    It holds from the next fetch on, for messages that wait already, too. What is with workers runs on, but is counted.

    Arguments:
      client: To Redis.
      queue: A name; no messages need be there.
      whose: A tenant's, :data:`EVERYBODY`'s or :data:`NOBODY`'s.
      weight: Turns for each of one that weighs 1, from 0.01 to 1,000.
      limit: Jobs that may be with workers at once, 0 for as many as there are.
      by: The operator.
      reason: Why, in the operator's words.
      namespace: Prefix of every key.
      audit: Told before.

    Raises:
      ValueError: When ``queue`` is no queue name, ``weight`` or ``limit`` is not one, or neither is given.
      ConnectionClosed: For any error of Redis.
    """
    check_queue_name(queue)
    if weight is None and limit is None:
        raise ValueError("weight or limit: one of them must be given")
    if weight is not None and not (math.isfinite(weight) and LIGHTEST <= weight <= HEAVIEST):
        raise ValueError(f"weight: {weight:g} is not from {LIGHTEST:g} to {HEAVIEST:,.0f}")
    if limit is not None and not 0 <= limit <= MOST_AT_ONCE:
        raise ValueError(f"limit: {limit} is not from 0, which is none, to {MOST_AT_ONCE:,}")
    before = shares(client, queue, namespace).get(whose)
    if before is not None:
        weight = before.weight if weight is None else weight
        limit = before.limit if limit is None else limit
    with asking():
        since = datetime.fromtimestamp(int(server_time(client) / 1000), UTC)
    after = Share(weight, limit, since, clean(by), clean(reason))
    _tell(audit, queue, whose, before, after, after.by, after.reason)
    kept = json.dumps({**after.as_json(), "since": int(since.timestamp())})
    numbers = ("" if number is None else f"{number:.17g}" for number in (weight, limit))
    Scripts(client, namespace)("share", queue, _name(whose), *numbers, kept)
    return after


def unshare(
    client: redis.Redis,
    queue: str,
    whose: Whose,
    *,
    by: str,
    reason: str = "",
    namespace: str = "dramatiq",
    audit: Audit = log_event,
) -> Share | None:
    """Let somebody have everybody's share of ``queue`` again, or everybody the same; return what there was.

    ``None``, and no event, where there was none of its own. The arguments are those of :func:`share`.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    before = shares(client, queue, namespace).get(whose)
    if before is not None:
        _tell(audit, queue, whose, before, None, clean(by), clean(reason))
        Scripts(client, namespace)("share", queue, _name(whose), "", "", "")
    return before


def shares(client: redis.Redis, queue: str, namespace: str = "dramatiq") -> dict[Whose, Share]:
    """Return who has a share of ``queue``.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking():
        found = answer(client.hgetall(f"{namespace}:__dramaturg__.shares.{queue}"))
    return {_whose(name): Share.from_json(data) for name, data in sorted(found.items())}


def forget_shares(client: redis.Redis, tenant_id: UUID, namespace: str = "dramatiq") -> None:
    """Let a tenant that leaves have no share of its own in any queue. Nothing is audited: its leaving is.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking():
        names = read_keys(client, namespace).names
    run, kept = Scripts(client, namespace), "__dramaturg__.shares."
    for name in sorted(names):
        if name.startswith(kept):
            run("share", name.removeprefix(kept), tenant_id.hex, "", "", "")


def by_tenant(client: redis.Redis, queue: str, *, most: int = 20, namespace: str = "dramatiq") -> ByTenant:
    """Return who has what in ``queue``. It changes nothing, and does not read messages that say whose they are.

    Arguments:
      client: To Redis.
      queue: Its name.
      most: How many tenants to return.
      namespace: Prefix of every key.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking():
        now = server_time(client)
        alive = answer(client.zrange(f"{namespace}:__dramaturg__.alive", 0, -1))
    brokers = {*read_keys(client, namespace).holders(), *(broker.decode() for broker in alive)}
    given = shares(client, queue, namespace)
    count, unsorted, *said = Scripts(client, namespace)("queue_tenants", queue, most, *sorted(brokers))
    tenants = []
    for tenant, waiting, running, sent in zip(*(said[n::4] for n in range(4)), strict=True):
        whose = _whose(tenant)
        own = [one for one in (given.get(whose), given.get(EVERYBODY)) if one is not None]
        limit = next((one.limit for one in own if one.limit is not None), 0)
        tenants.append(
            TenantState(
                whose if isinstance(whose, UUID) else None,
                waiting,
                running,
                None if sent is None else max(0.0, (now - int(sent)) / 1000),
                next((one.weight for one in own if one.weight is not None), 1.0),
                limit or None,
            )
        )
    return ByTenant(tuple(tenants), count, unsorted, given)


def _tell(
    audit: Audit, queue: str, whose: Whose, before: Share | None, after: Share | None, by: str, reason: str
) -> None:
    about = {
        "queue": queue,
        "whose": "everybody" if whose == EVERYBODY else "nobody" if whose == NOBODY else str(whose),
    }
    audit(
        SHARED,
        changed_by=by,
        reason=reason or None,
        tenant_id=whose if isinstance(whose, UUID) else None,
        before={**about, **_numbers(before)},
        after={**about, **_numbers(after)},
    )


def _numbers(share: Share | None) -> dict[str, Any]:
    return {"weight": share and share.weight, "limit": share and share.limit}


def _name(whose: Whose) -> str:
    return whose.hex if isinstance(whose, UUID) else whose


def _whose(name: bytes) -> Whose:
    said = name.decode("utf-8", "replace")
    return said if said in {EVERYBODY, NOBODY} else UUID(said)
