"""Replays in words, at a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from typing import Final
from uuid import UUID

from rich.text import Text

from db.failed import Filter
from db.replays.runs import Replay, State
from worker.cli.failed.options import Access
from worker.replay import words
from worker.text import counted, listed, one_line, short

STATE_STYLES: Final[dict[State, str]] = {
    "running": "cyan",
    "paused": "bold yellow",
    "stopped": "bold red",
    "cancelled": "dim",
    "finished": "green",
}

#: What became of jobs, in words, and how those look.
_STYLES: Final = {"succeeded": "green", "failed": "bold red", "refused": "yellow", "released": "yellow"}
OUTCOMES: Final = {state: (word, _STYLES[state]) for state, word in words.OUTCOMES.items()}
#: Ids of jobs that are named.
_IDS_NAMED: Final = 3


def arguments_of(where: Filter) -> str:
    """Return a filter as arguments of ``worker failed``."""
    arguments: list[str] = []
    for field in fields(where):
        value = getattr(where, field.name)
        for each in value if isinstance(value, tuple) else () if value is None else (value,):
            plain = each.isoformat() if isinstance(each, datetime) else str(each)
            option = "--tenant" if field.name == "tenant_id" else f"--{field.name.replace('_', '-')}"
            arguments += [plain] if field.name == "ids" else [option, plain]
    return one_line(shlex.join(arguments))


def which(where: Filter) -> str:
    """Return which jobs a filter means, in a few words."""
    if where.ids:
        named = [short(each) for each in where.ids[:_IDS_NAMED]]
        more = f" and {counted(len(where.ids) - _IDS_NAMED, 'other')}" if len(where.ids) > _IDS_NAMED else ""
        return f"{'jobs' if len(where.ids) > 1 else 'job'} {', '.join(named)}{more}"
    return arguments_of(words.unusual(where)) or "every pending job"


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


def command(work: Access, arguments: str) -> str:
    """Return a command of ``worker replays`` as it must be typed by whoever typed this one."""
    return f"worker replays {arguments}{work.suffix}"


def next_steps(replay: Replay, work: Access) -> list[tuple[str, str]]:
    """Return what can be done about a replay, each a command and what it is for."""
    ident = short(replay.id)
    steps: list[tuple[str, str]] = []
    failed, refused = (replay.items.get(state, 0) for state in ("failed", "refused"))
    left = [f"{n:,} {word}" for n, word in ((failed, "failed again"), (refused, "refused")) if n]
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


def ids_in_words(ids: Iterable[UUID]) -> str:
    """Return the beginnings of ids."""
    return ", ".join(map(short, ids))
