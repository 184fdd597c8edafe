"""Replays in words: for people, on a terminal and in a browser, and for programs."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final

from db.failed import Filter
from db.replays.runs import Replay, filter_as_json

#: What became of jobs.
OUTCOMES: Final = {
    "succeeded": "succeeded",
    "failed": "failed again",
    "refused": "refused",
    "released": "let go",
}
#: Of one that is to run and that no process runs.
WAITS: Final = (
    "no process runs it. A worker that consumes housekeeping does as soon as there is one "
    "(dramatiq worker.housekeeping), with OPERATOR_DATABASE_URL"
)


def not_sent(replay: Replay) -> int:
    """Return how many it has not come to; none where that is not known."""
    return max(0, (replay.matched or 0) - sum(replay.items.values()))


def all_succeeded(replay: Replay) -> bool:
    """Tell whether there is nothing left of a replay to do."""
    return (
        replay.state == "finished"
        and replay.items.get("succeeded", 0) > 0
        and not any(replay.items.get(state) for state in ("failed", "refused", "released"))
    )


def unusual(where: Filter) -> Filter:
    """Return a replay's filter without what it nearly always says: those that wait, and had failed when somebody
    asked."""
    return replace(where, status=() if where.status == ("pending",) else where.status, until=None)


def in_json(replay: Replay) -> dict[str, Any]:
    """Return a replay as programs get it."""
    plain = {f.name: getattr(replay, f.name) for f in fields(replay) if f.name not in {"filter", "settings", "come_to"}}
    return {
        **plain,
        "filter": filter_as_json(replay.filter),
        "settings": replay.settings.as_json(),
        "under_way": replay.under_way,
        "not_sent": not_sent(replay),
    }
