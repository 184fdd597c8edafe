"""Replays in words: for people, and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from rich.text import Text

from db.failed import Filter
from db.replays.items import Holder
from db.replays.runs import Replay, State, filter_as_json
from worker.cli.failed.options import Access
from worker.cli.text import counted, listed, one_line, short

STATE_STYLES: Final[dict[State, str]] = {
    "running": "cyan",
    "paused": "bold yellow",
    "stopped": "bold red",
    "cancelled": "dim",
    "finished": "green",
}

#: What became of jobs, in words.
OUTCOMES: Final = {
    "succeeded": ("succeeded", "green"),
    "failed": ("failed again", "bold red"),
    "refused": ("refused", "yellow"),
    "released": ("let go", "yellow"),
}
#: Ids of jobs that are named.
_IDS_NAMED: Final = 3


def arguments_of(where: Filter) -> str:
    """Return a filter as arguments of ``worker failed``."""
    words: list[str] = []
    for field in fields(where):
        value = getattr(where, field.name)
        for each in value if isinstance(value, tuple) else () if value is None else (value,):
            plain = each.isoformat() if isinstance(each, datetime) else str(each)
            option = "--tenant" if field.name == "tenant_id" else f"--{field.name.replace('_', '-')}"
            words += [plain] if field.name == "ids" else [option, plain]
    return one_line(shlex.join(words))


def which(where: Filter) -> str:
    """Return which jobs a filter means, in a few words."""
    if where.ids:
        named = [short(each) for each in where.ids[:_IDS_NAMED]]
        more = f" and {counted(len(where.ids) - _IDS_NAMED, 'other')}" if len(where.ids) > _IDS_NAMED else ""
        return f"{'jobs' if len(where.ids) > 1 else 'job'} {', '.join(named)}{more}"
    # Not what it nearly always says: those that wait, and had failed when somebody asked.
    usual = replace(where, status=() if where.status == ("pending",) else where.status, until=None)
    return arguments_of(usual) or "every pending job"


def outcomes(replay: Replay) -> Text:
    """Return what became of how many: ``57 succeeded, 2 failed again``."""
    found = [
        Text(f"{replay.items[state]:,} {word}", style)
        for state, (word, style) in OUTCOMES.items()
        if replay.items.get(state)
    ]
    if replay.under_way:
        found.append(Text(f"{replay.under_way:,} under way", "cyan"))
    return Text(", ").join(found) if found else Text("none was sent")


def sends_it(holder: Holder) -> str:
    """Return which replay a job is in progress for."""
    if holder.state is None:
        return f"{short(holder.id)}, an operator's, sends it again"
    return f"{short(holder.id)} sends it again: {holder.state}, by {one_line(holder.created_by or '')}"


def not_sent(replay: Replay) -> int:
    """Return how many it has not come to; none where that is not known."""
    return max(0, (replay.matched or 0) - sum(replay.items.values()))


def command(work: Access, words: str) -> str:
    """Return a command of ``worker replays`` as it must be typed by whoever typed this one."""
    return f"worker replays {words}{work.suffix}"


def next_steps(replay: Replay, work: Access) -> list[tuple[str, str]]:
    """Return what can be done about a replay, each a command and what it is for."""
    ident = short(replay.id)
    steps: list[tuple[str, str]] = []
    failed, refused = (replay.items.get(state, 0) for state in ("failed", "refused"))
    left = [f"{n:,} {words}" for n, words in ((failed, "failed again"), (refused, "refused")) if n]
    if left:
        steps.append((work.command(f"list --replay {ident}"), f"what of it is open: {listed(left)}"))
    if replay.under_way:
        steps.append((work.command(f"list --replay {ident} --status in_progress"), "what of it is under way"))
    if failed and replay.settings.edit is not None and work.tenant_id is None:
        steps.append((f"worker failed edit {short(replay.filter.ids[0])}", "a retry sends the original's arguments"))
    match replay.state:
        case "running":
            steps.append((command(work, f"pause {ident}"), "send no more for now"))
            if replay.runner is None:
                steps.append((command(work, f"resume {ident}"), "run it here"))
        case "paused" | "stopped":
            purpose = "go on" if replay.state == "paused" else "go on, when what is wrong is mended"
            steps.append((command(work, f"resume {ident}"), purpose))
    if replay.state in {"running", "paused", "stopped"}:
        steps.append((command(work, f"cancel {ident}"), "send no more, ever"))
    return steps


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


def ids_in_words(ids: Iterable[UUID]) -> str:
    """Return the beginnings of ids."""
    return ", ".join(map(short, ids))
