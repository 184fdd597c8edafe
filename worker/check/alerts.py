"""Whether anybody is alerted, and can be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from worker.check.findings import Finding, ok, warning
from worker.settings import Settings

NAME = "alerts"
_LOOKS = "worker.housekeeping.look_for_alerts"


def judge_alerts(settings: Settings, commands: Mapping[str, str]) -> Iterator[Finding]:
    """Judge whether alerts are sent, where somebody is to get them.

    Arguments:
      settings: Of the deployment.
      commands: Of the Procfile, by name; empty where there is none.
    """
    if settings.alert_webhook_url is None:
        return
    found = [*_judge_way(settings), *_judge_looking(settings, commands)]
    yield from found or [
        ok(NAME, f"alerts are posted, {'signed' if settings.alert_webhook_secrets else 'and not signed'}")
    ]


def _judge_way(settings: Settings) -> Iterator[Finding]:
    parts = urlsplit(settings.alert_webhook_url or "")
    if parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        yield warning(
            NAME,
            "ALERT_WEBHOOK_URL is http://: whoever is on the way reads alerts, and the address",
            "Say https://, if the receiver has it.",
        )


def _judge_looking(settings: Settings, commands: Mapping[str, str]) -> Iterator[Finding]:
    if _LOOKS in settings.schedule_off:
        yield warning(
            NAME, f"ALERT_WEBHOOK_URL is set, and SCHEDULE_OFF keeps {_LOOKS} from running: nobody is alerted",
            "Take it out of SCHEDULE_OFF.",
        )  # fmt: skip
    elif commands and not any(re.search(r"\bworker scheduler\b", command) for command in commands.values()):
        yield warning(
            NAME,
            f"ALERT_WEBHOOK_URL is set, and no entry is a scheduler, which sends {_LOOKS}: nobody is alerted",
            "Add an entry, scheduler: worker scheduler.",
        )
