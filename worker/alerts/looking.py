"""Looks whether there is news, and sends what somebody is to be told: each a message of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Final

import dramatiq
from loguru import logger
from sqlalchemy.orm import Session

from db.failed import Filter, Group, find_groups
from db.failed.watch import failures_by_actor, groups_that_are_gone, open_groups, regressions_by_group
from middleware.deliveries import Entry
from middleware.lossless_broker import LosslessBroker
from worker.alerts import groups, rates
from worker.alerts.bundling import DESCRIBED_AT_MOST, Chosen, Sent, choose
from worker.alerts.causes import Cause, Change, Kind
from worker.alerts.groups import CLOSED
from worker.alerts.message import Writer
from worker.alerts.rates import Limits
from worker.alerts.state import BEGAN, SPOOL, TIDIED, Known, State, own, remember_sent
from worker.live.spool import spool_state
from worker.settings import Settings
from worker.text import counted

#: Seconds that the spool has been in use for when it is told: a moment's hiccup of Postgres is over by then.
SPOOL_AFTER: Final = 10.0
#: Seconds between two times that groups which are gone are forgotten.
TIDY_EVERY: Final = 3_600.0

#: Characters of a fingerprint.
_FINGERPRINT: Final = 32

Begin = Callable[[], AbstractContextManager[Session]]


class Lookout:
    """Looks for news of one deployment.

    Arguments:
      broker: Which sends alerts.
      settings: Say what is news.
      deliver: The actor that posts an alert.
      without: Actors whose failures are nobody's news: those of alerts themselves.
      begin: Opens an operator's transaction.
    """

    def __init__(
        self,
        broker: LosslessBroker,
        settings: Settings,
        deliver: dramatiq.Actor[..., Any],
        *,
        without: Sequence[str] = (),
        begin: Begin,
    ) -> None:
        self._broker = broker
        self._deliver = deliver
        self._without = without
        self._begin = begin
        self._state = State(broker)
        self._writer = Writer.of(settings)
        self._spool_limit = settings.spool_limit
        self._limits = Limits(settings.alert_failures, settings.alert_actor_failures, settings.alert_within)

    def look_at_spool(self) -> int:
        """Look whether failures wait in Redis, which needs no Postgres; return how many alerts were sent.

        Raises:
          ConnectionClosed: For any error of Redis. The next look finds the same.
        """
        known = self._state.read(marks=False)
        spool = spool_state(self._broker.client, namespace=self._broker.namespace)
        since = None if spool.since is None else spool.since.timestamp()
        if known.spool is not None and not spool.size:
            cause = self._spool_cause(0, known.spool, over=True)
        elif known.spool is None and since is not None and known.now - since >= SPOOL_AFTER:
            cause = self._spool_cause(spool.size, since, over=False)
        else:
            return 0
        # Whatever else goes on: it says that of the rest nothing may be heard.
        return self._send(known, (), Chosen(singles=[cause]), {})

    def _spool_cause(self, size: int, since: float, *, over: bool) -> Cause:
        facts = {"failures": size, "since": since, "limit": self._spool_limit}
        change = own(SPOOL, None if over else since)
        return Cause(Kind.SPOOL_IN_USE, str(since), (change,), over=over, facts=facts)

    def look_at_failures(self) -> int:
        """Look at what is recorded in Postgres; return how many alerts were sent.

        At the first look what is there is no news.

        Raises:
          ConnectionClosed: For any error of Redis. The next look finds the same.
          sqlalchemy.exc.SQLAlchemyError: When Postgres is away.
        """
        known = self._state.read()
        if known.began is None:
            self._begin_with(known)
            return 0
        with self._begin() as session:
            found = open_groups(session, self._without)
            failures = failures_by_actor(session, timedelta(minutes=self._limits.minutes), self._without)
        closed = self._state.closed([group.fingerprint for group in found if group.fingerprint not in known.marks])
        silent, causes = groups.compare(found, known.marks, closed, known.now)
        causes += rates.compare(failures, known.rates, self._limits, known.now)
        chosen = choose(causes, known.sent, known.now)
        return self._send(known, [*silent, *self._tidy(known)], chosen, self._describe(chosen))

    def _begin_with(self, known: Known) -> None:
        with self._begin() as session:
            everything, found = regressions_by_group(session), open_groups(session, self._without)
        changes = groups.begin(everything, found, known.now)
        self._state.take(known.version, [*changes, own(BEGAN, known.now), own(TIDIED, known.now)])

    def _tidy(self, known: Known) -> list[Change]:
        """Return what forgets groups that are gone: the next of their kind was never seen."""
        if known.tidied is not None and 0 <= known.now - known.tidied < TIDY_EVERY:
            return []
        with self._begin() as session:
            gone = groups_that_are_gone(session, self._state.all_closed())
        return [*(Change(CLOSED, name, None) for name in gone), own(TIDIED, known.now)]

    def _describe(self, chosen: Chosen) -> dict[str, Group]:
        """Return the groups that are to be described."""
        asked = [
            cause.fingerprint
            for cause in (*chosen.singles, *chosen.bundle[:DESCRIBED_AT_MOST])
            # Whoever has SQL of a tenant may have written what is none.
            if cause.fingerprint is not None and len(cause.fingerprint) == _FINGERPRINT
        ]
        if not asked:
            return {}
        with self._begin() as session:
            found, _ = find_groups(session, Filter(fingerprint=tuple(asked)), limit=len(asked))
        return {group.fingerprint: group for group in found}

    def _send(self, known: Known, silent: Sequence[Change], chosen: Chosen, found: Mapping[str, Group]) -> int:
        """Send what was chosen, and note it in the same step; return how many alerts that are."""
        now = known.now
        # One that had to wait for the others of a bundle may be all that is left.
        singles = chosen.bundle if len(chosen.bundle) == 1 else chosen.singles
        alerts = [self._writer.single(cause, found.get(cause.fingerprint or ""), now) for cause in singles]
        if len(chosen.bundle) > 1:
            alerts.append(self._writer.bundle(chosen.bundle, found, now))
        told = [change for cause in (*chosen.singles, *chosen.bundle) for change in cause.changes]
        if alerts:
            told.append(remember_sent(known.sent, [Sent(now, bool(chosen.bundle)) for _ in alerts], now))
        if not self._state.take(known.version, silent, told, [self._entry(alert) for alert in alerts]):
            # What is left of it, the next look finds.
            logger.debug("another process looked for alerts at the same time")
            return 0
        for alert in alerts:
            logger.warning("alert {}, {}: {}", alert["id"], alert["event"], alert["title"])
        if alerts:
            logger.info("{} sent", counted(len(alerts), "alert is", "alerts are"))
        return len(alerts)

    def _entry(self, alert: dict[str, Any]) -> Entry:
        message = self._deliver.message(alert=alert).copy(message_id=alert["id"])
        # As every message is sent, up to the step that puts it on its queue.
        with self._broker.collecting() as collected:
            self._broker.enqueue(message)
        ((_, entry),) = collected
        return entry
