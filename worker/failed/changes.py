"""What an event of the audit says beside its name: what it was done to, and what it changed, in words.

Whoever has SQL of a tenant may write events, so ``before`` and ``after`` may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from db.failed import Event
from worker.failed import words
from worker.text import last_name, one_line

#: Characters of a value, and values of an event, that are told.
_VALUE: Final = 60
_VALUES: Final = 12


@dataclass(frozen=True, slots=True)
class Subject:
    """What something was done to.

    Attributes:
      kind: ``nothing`` where an event does not tell.
      id: Of a job, a replay or a tenant; None of queues.
      name: What it is called.
    """

    kind: Literal["job", "replay", "tenant", "queue", "nothing"]
    id: UUID | None
    name: str


def subject(event: Event) -> Subject:
    """Return what an event was done to."""
    if event.failed_job_id is not None:
        return Subject("job", event.failed_job_id, str(event.failed_job_id)[:8])
    said = {**(event.before or {}), **(event.after or {})}
    for kind, key in (("replay", "replay_id"), ("tenant", "tenant_id")):
        found = _uuid(said.get(key))
        if found is not None:
            return Subject("replay" if kind == "replay" else "tenant", found, str(found)[:8])
    several = said.get("queues")
    each = [said, *(several if isinstance(several, list) else [])]
    names = [one_line(str(one["queue"])) for one in each if isinstance(one, dict) and one.get("queue")]
    return Subject("queue", None, ", ".join(names)) if names else Subject("nothing", None, "")


def told(event: Event) -> str:
    """Return what an event changed, as far as its name and its subject do not say it; empty where they do."""
    match event.event:
        case "purged" | "forgotten" if event.before is not None and event.after is None:
            return _removed(event.before)
        case "retention_changed":
            return _retention(event)
        case "queue_paused" | "queue_resumed":
            return ""
        case "queue_shared":
            return _listed(_pairs({**(event.after or {}), "queue": None}))
        case "messages_purged":
            return _listed(_messages(event.before or {}))
        case "replay_started":
            asked = (event.after or {}).get("filter")
            return _listed(_pairs(asked)) if isinstance(asked, dict) else ""
        case _ if event.before is not None and event.after is not None:
            return words.changes(event)
        case "edited":
            return words.changes(event)
        case _:
            return _listed(_pairs(event.after or event.before or {}))


def _removed(gone: Mapping[str, Any]) -> str:
    name = last_name(one_line(str(gone.get("task_name") or "?")))
    return f"{name}, which was {_value(gone.get('status'))} and failed at {_value(gone.get('failed_at'))}"


def _retention(event: Event) -> str:
    before, after = event.before or {}, event.after or {}

    def days(rule: Mapping[str, Any]) -> str:
        if not rule:
            return "as is usual"
        return "for ever" if rule.get("keep_days") is None else f"{_value(rule['keep_days'])} days"

    return f"{_value(after.get('subject', before.get('subject')))}: kept {days(before)} -> {days(after)}"


def _messages(before: Mapping[str, Any]) -> Iterator[str]:
    if before.get("actor"):
        yield f"of actor {_value(before['actor'])}"
    queues = before.get("queues")
    for one in queues if isinstance(queues, list) else []:
        if isinstance(one, dict):
            counts = [
                f"{_value(one[name])} {name}" for name in ("waiting", "delayed", "suspects", "spooled") if one.get(name)
            ]
            yield f"queue {_value(one.get('queue'))}: {', '.join(counts) or 'nothing'}"


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name in {"replay_id", "tenant_id", "edit_id"} or value in (None, [], {}, 0):
            continue
        each = value if isinstance(value, list) else [value]
        yield f"{one_line(str(name))[:_VALUE]} {', '.join(_value(one) for one in each[:_VALUES])}"


def _listed(parts: Iterator[str]) -> str:
    found = list(parts)
    return "; ".join(found[:_VALUES]) + ("; …" if len(found) > _VALUES else "")


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{one_line(str(name))[:_VALUE]} {_value(one)}" for name, one in list(value.items())[:_VALUES])
    return one_line(str(value))[:_VALUE] if value is not None else "nothing"


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None
