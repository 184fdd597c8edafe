"""An alert as it is posted: JSON whose fields the README describes, and text for people in it.

It is made of what a row's reader may see, which is redacted already; tenants are counted, never named.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID, uuid5

from db.failed import Group
from middleware.text import clean, cut
from worker.alerts.bundling import DESCRIBED_AT_MOST
from worker.alerts.causes import Cause, Kind
from worker.failed.groups import tenants_touched
from worker.settings import Settings
from worker.text import counted, last_name, listed, one_line, short, short_age

VERSION: Final = 1
#: Characters of an exception's message, without its values.
_TITLE_AT_MOST: Final = 300


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes alerts of one deployment.

    Arguments:
      environment: What it is called; empty where it has no name.
      console_url: Where its console is, if anywhere.
    """

    environment: str
    console_url: str | None

    @classmethod
    def of(cls, settings: Settings) -> Writer:
        """Return the one of the settings."""
        return cls(settings.alert_environment, settings.console_url)

    def single(self, cause: Cause, group: Group | None, now: float) -> dict[str, Any]:
        """Return the alert of one cause.

        Arguments:
          cause: Which.
          group: That it is about, if it is about one that is still there.
          now: Seconds since 1970.
        """
        return self._alert(str(cause.id), now, **self._about(cause, group, now))

    def bundle(self, causes: Sequence[Cause], groups: Mapping[str, Group], now: float) -> dict[str, Any]:
        """Return one alert for many causes, of which the first are described.

        Arguments:
          causes: The worst first.
          groups: Those that the first are about, by fingerprint.
          now: Seconds since 1970.
        """
        counts = Counter(str(cause.kind) for cause in causes)
        described = [
            self._about(cause, groups.get(cause.fingerprint or ""), now) for cause in causes[:DESCRIBED_AT_MOST]
        ]
        said = listed(f"{count:,} {kind}" for kind, count in counts.items())
        return self._alert(
            # The same for the same causes.
            str(uuid5(causes[0].id, " ".join(str(cause.id) for cause in causes))),
            now,
            event=str(Kind.BUNDLE),
            title=f"{len(causes):,} alerts at once: {said}",
            counts=dict(counts),
            alerts=described,
            link=self._link("/groups"),
            commands=["worker failed groups"],
        )

    def test(self, alert_id: UUID, now: float) -> dict[str, Any]:
        """Return one that says that alerts arrive."""
        return self._alert(
            str(alert_id),
            now,
            event=str(Kind.TEST),
            title="This is a test: alerts arrive",
            link=self._link(""),
            commands=["worker alerts test"],
        )

    def _alert(self, alert_id: str, now: float, **about: Any) -> dict[str, Any]:
        alert = {"version": VERSION, "id": alert_id, "at": _time(now), "environment": self.environment or None, **about}
        return {**alert, "text": _text(alert)}

    def _about(self, cause: Cause, group: Group | None, now: float) -> dict[str, Any]:
        match cause.kind:
            case Kind.SPOOL_IN_USE:
                return self._spool(cause, now)
            case Kind.FAILURE_RATE:
                return self._rate(cause)
        return self._group(cause, group)

    def _group(self, cause: Cause, group: Group | None) -> dict[str, Any]:
        fingerprint = cause.fingerprint or ""
        where = f"--fingerprint {shlex.quote(fingerprint[:8])}"
        about: dict[str, Any] = {
            "event": str(cause.kind),
            "title": "A group of failures, which was removed since",
            "group": {"fingerprint": fingerprint},
            "link": self._link(f"/groups/{quote(fingerprint, safe='')}"),
            "commands": [f"worker failed groups {where}", f"worker failed retry {where} --dry-run"],
        }
        if group is None:
            return about
        about["title"] = _title(cause.kind, group)
        about["group"] = {
            "fingerprint": fingerprint,
            "actor": _plain(group.task_name),
            "queue": None if group.queue is None else _plain(group.queue),
            "error_type": _plain(group.error_type),
            "exception_class": _plain(group.exception_class),
            "message": None if group.title is None else _plain(group.title),
            "place": None if group.place is None else _plain(group.place),
            "first_seen": group.first_seen.isoformat(),
            "last_seen": group.last_seen.isoformat(),
            "failures": group.failures,
            "open": group.open,
            "tenants": group.tenants,
            "regressions": group.regressions,
            "sample": None if group.sample_id is None else str(group.sample_id),
        }
        about["summary"] = (
            f"{counted(group.failures, 'failure')} for {tenants_touched(group)}, {group.open:,} open, first seen"
            f" {group.first_seen:%Y-%m-%d %H:%M} UTC"
        )
        if group.sample_id is not None:
            about["commands"] = [f"worker failed show {short(group.sample_id)}", *about["commands"]]
        return about

    def _rate(self, cause: Cause) -> dict[str, Any]:
        facts = cause.facts
        actor = None if facts["actor"] is None else _plain(facts["actor"])
        of = "" if actor is None else f" of {actor}"
        lately = f"{counted(facts['failures'], 'job')}{of} failed within {counted(facts['minutes'], 'minute')}"
        return {
            "event": str(cause.kind),
            "state": _state(cause),
            "title": f"It is over: only {lately}" if cause.over else lately,
            "summary": f"alerts begin above {facts['threshold']:,}, and end at half of it",
            "rate": {**facts, "actor": actor, "since": _time(facts["since"])},
            "link": self._link("/groups"),
            "commands": [
                f"worker failed groups --since {facts['minutes']}m"
                + ("" if actor is None else f" --actor {shlex.quote(actor)}"),
                "worker queues list",
            ],
        }

    def _spool(self, cause: Cause, now: float) -> dict[str, Any]:
        facts = cause.facts
        since = facts["since"]
        if cause.over:
            title = f"The failures that Redis kept are recorded, after {short_age(now - since)}"
        else:
            title = f"Postgres is away for workers, and Redis keeps {counted(facts['failures'], 'failure')}"
        return {
            "event": str(cause.kind),
            "state": _state(cause),
            "title": title,
            "summary": f"nothing is lost, and workers wait when there are {facts['limit']:,}",
            "spool": {**facts, "since": _time(since)},
            "link": self._link(""),
            "commands": ["worker spool", "worker check"],
        }

    def _link(self, path: str) -> str | None:
        return None if self.console_url is None else self.console_url + path


def _title(kind: Kind, group: Group) -> str:
    actor = _plain(group.task_name)
    if kind is Kind.POISON_PILL:
        return f"A message of {actor} ended its worker each time it was started"
    what = _plain(last_name(group.exception_class))
    said = f": {one_line(_plain(group.title))}" if group.title else ""
    news = "is back after it was resolved" if kind is Kind.REGRESSED_GROUP else "was never seen before"
    return f"{what} in {actor} {news}{said}"


def _state(cause: Cause) -> str:
    return "over" if cause.over else "begun"


def _text(alert: Mapping[str, Any]) -> str:
    """Return an alert in words, for chats that show the field ``text`` of what is posted to them."""
    return "\n".join(_harmless(line) for line in _lines(alert))


def _lines(alert: Mapping[str, Any]) -> Iterator[str]:
    environment = alert["environment"]
    yield (f"[{environment}] " if environment else "") + alert["title"]
    if "summary" in alert:
        yield alert["summary"]
    for each in alert.get("alerts", ()):
        yield f"- {each['title']}"
    if "alerts" in alert and (more := sum(alert["counts"].values()) - len(alert["alerts"])) > 0:
        yield f"and {more:,} more"
    yield from alert["commands"]
    if alert["link"] is not None:
        yield alert["link"]


def _harmless(text: str) -> str:
    """Return text that calls nobody in a chat, whatever a failure says: Slack's ``<!channel>``, Mattermost's ``@all``.

    https://docs.slack.dev/messaging/formatting-message-text#escaping
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("@", "@\u200b")


def _plain(value: str) -> str:
    return cut(one_line(clean(value)), _TITLE_AT_MOST)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
