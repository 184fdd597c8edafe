"""What is remembered of alerts, in Redis.

It is where the queues are, so that a cause is noted as told and its alert is put on its queue in one step: both or
neither, whenever a process dies, and once, however many look at the same time. Where Redis has lost it (no AOF, a
failover to an old replica), what is there is no news, as at the first look.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from middleware.deliveries import Entry
from middleware.lossless_broker import LosslessBroker
from worker.alerts.bundling import Sent, still
from worker.alerts.causes import Change
from worker.alerts.groups import CLOSED, OPEN, Mark
from worker.alerts.rates import RATES
from worker.queue_admin.keys import answer, asking

#: Changes that are made in one step: more would keep Redis from its other work.
AT_ONCE: Final = 2_000
#: The hash that is not of groups or rates, and its fields.
OWN: Final = ""
BEGAN, SPOOL, SENT, TIDIED = "began", "spool", "sent", "tidied"


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered. Times are seconds since 1970.

    Attributes:
      version: Changes with each step.
      now: The time by Redis' clock.
      began: Since when groups and rates are looked at; None before the first look.
      spool: Since when the spool is in use, if that was told.
      sent: What went out lately.
      tidied: When groups that are gone were last forgotten.
      rates: Since when rates are too high, by actor.
      marks: Of open groups.
    """

    version: str
    now: float
    began: float | None
    spool: float | None
    sent: Sequence[Sent]
    tidied: float | None
    rates: Mapping[str, float]
    marks: Mapping[str, Mark]


class State:
    """What is remembered, of one broker's namespace.

    Raises (from every method):
      ConnectionClosed: For any error of Redis. Saying it again does no harm.
    """

    def __init__(self, broker: LosslessBroker) -> None:
        self._client = broker.client
        self._run = broker.run
        self._key = f"{broker.namespace}:__dramaturg__.alerts"

    def read(self, *, marks: bool = True) -> Known:
        """Return what is remembered.

        Arguments:
          marks: Whether those of groups, which are many, are needed.
        """
        with asking(), self._client.pipeline(transaction=False) as pipeline:
            # First, so that what others do meanwhile is noticed.
            pipeline.hgetall(self._key + OWN)
            pipeline.time()
            pipeline.hgetall(self._key + RATES)
            if marks:
                pipeline.hgetall(self._key + OPEN)
            own, (seconds, micros), rates, *rest = answer(pipeline.execute())
        now = seconds + micros / 1_000_000
        return Known(
            version=own.get(b"version", b"0").decode(),
            now=now,
            began=_number(own.get(BEGAN.encode())),
            spool=_number(own.get(SPOOL.encode())),
            sent=list(_sent(own.get(SENT.encode()))),
            tidied=_number(own.get(TIDIED.encode())),
            rates={name.decode(): since for name, data in rates.items() if (since := _number(data)) is not None},
            marks={
                name.decode(): mark
                for name, data in (rest[0] if rest else {}).items()
                if (mark := Mark.read(data)) is not None
            },
        )

    def closed(self, fingerprints: Sequence[str]) -> dict[str, int]:
        """Return those groups that are known and were closed, with how often they had come back."""
        if not fingerprints:
            return {}
        with asking():
            found = answer(self._client.hmget(self._key + CLOSED, list(fingerprints)))
        return {name: int(data) for name, data in zip(fingerprints, found, strict=True) if data is not None}

    def all_closed(self) -> list[str]:
        """Return the fingerprints of all groups that are known and were closed."""
        with asking():
            return [name.decode() for name in answer(self._client.hkeys(self._key + CLOSED))]

    def take(
        self, version: str, silent: Sequence[Change], told: Sequence[Change] = (), entries: Sequence[Entry] = ()
    ) -> bool:
        """Remember changes, and enqueue messages; tell whether all of that was done here.

        Arguments:
          version: As it was looked at.
          silent: Changes that nobody is told of: some may be made though the rest is not.
          told: Those that are made in the same step in which the messages are enqueued.
          entries: The messages.
        """
        while silent:
            if not self._take(version, silent[:AT_ONCE], ()):
                return False
            version, silent = str(int(version) + 1), silent[AT_ONCE:]
        return not told or self._take(version, told, entries)

    def _take(self, version: str, changes: Sequence[Change], entries: Sequence[Entry]) -> bool:
        parts: list[str | bytes | int] = [version, len(changes)]
        for change in changes:
            parts += [change.part, change.name, "" if change.value is None else change.value]
        for entry in entries:
            parts += entry
        return bool(self._run("alerts_take", *parts))


def own(name: str, value: Any) -> Change:
    """Return a change of a field that is of no group or rate."""
    return Change(OWN, name, None if value is None else json.dumps(value))


def remember_sent(sent: Sequence[Sent], more: Sequence[Sent], now: float) -> Change:
    """Return what keeps what went out lately."""
    return own(SENT, [[each.at, each.bundle] for each in (*still(sent, now), *more)])


def _number(data: bytes | None) -> float | None:
    try:
        return None if data is None else float(data)
    except ValueError:
        return None


def _sent(data: bytes | None) -> Iterator[Sent]:
    try:
        found = json.loads(data or b"[]")
        yield from [Sent(float(at), bool(bundle)) for at, bundle in found]
    except (ValueError, TypeError):
        return
