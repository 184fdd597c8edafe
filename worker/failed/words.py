"""What a failed job's page says in words, on a terminal and in a browser."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from db.failed import Event, FailedJob, Group
from db.replays.items import Part, Waiting
from worker.failed.groups import tenants_touched
from worker.text import age, ago, counted, one_line, printable, short

#: Columns whose change is no news, or too long; and events whose name says what the status is.
_SAID: Final = {"status", "remediation_notes", "resolved_at", "failed_at", "last_retry_at", "error_message"}
_MOVES: Final = {"claimed", "released", "resolved", "abandoned", "reopened", "failed_again"}


def tenant(tenant_id: UUID | None, names: Mapping[UUID, str]) -> str:
    """Return whose it is: the name, and the id."""
    if tenant_id is None:
        return "no tenant"
    name = one_line(names.get(tenant_id) or "")
    return f"{name} ({tenant_id})" if name else str(tenant_id)


def tried(job: FailedJob, now: datetime) -> str:
    """Return how often it was executed, when last, and where."""
    said = counted(job.retry_count + 1, "time")
    if job.last_retry_at is not None:
        said += f", last begun {ago(job.last_retry_at, now)}"
    return said + (f", on {job.worker}" if job.worker else "")


def counts(group: Group) -> str:
    """Return how many rows of a group have which status."""
    found = ", ".join(
        f"{getattr(group, status):,} {status.replace('_', ' ')}"
        for status in ("pending", "in_progress", "resolved", "abandoned")
        if getattr(group, status)
    )
    return found or "no rows left"


def of_group(group: Group, now: datetime) -> str:
    """Return how often, for how many, and since when there are failures like this one."""
    return (
        f"{group.fingerprint[:8]}: failed {counted(group.failures, 'time')} for {tenants_touched(group)}, "
        f"first {age(group.first_seen, now)} ago, last {age(group.last_seen, now)} ago ({counts(group)})"
    )


def original(job: FailedJob) -> str:
    """Return whether the message is kept as it was fetched."""
    if job.forgotten_at is not None:
        return f"forgotten {job.forgotten_at:%Y-%m-%d}, and the arguments with it"
    if job.has_original is None:
        return "for operators of all tenants alone"
    if not job.has_original:
        return "not kept"
    return "kept, encrypted" if job.original_sealed else "kept"


def attempted_at(attempt: Mapping[str, Any]) -> datetime | None:
    """Return when an execution began; None where what is kept does not say."""
    try:
        found = datetime.fromisoformat(str(attempt.get("at")))
    except ValueError:
        return None
    return found if found.tzinfo else None


def changes(event: Event) -> str:
    """Return what changed, as far as the event's name does not say it."""
    arguments = (event.after or {}).get("arguments")
    # Whoever has SQL of a tenant may write there what is none.
    if event.event == "edited" and isinstance(arguments, list):
        return printable(", ".join(map(str, arguments)))
    if event.event == "captured" or event.before is None or event.after is None:
        return ""
    known = _SAID if event.event in _MOVES else _SAID - {"status"}
    told = [
        f"{name} {_value(event.before.get(name))} -> {_value(event.after.get(name))}"
        for name in event.after
        if name not in known
    ]
    return printable(", ".join(told))


def _value(value: object) -> str:
    return one_line(str(value))[:60] if value is not None else "nothing"


#: What became of a job in a replay, by the state of its item there.
_BECAME: Final = {
    "claimed": "is about to send it",
    "sent": "sent it, and it has not ended",
    "succeeded": "sent it, and it succeeded",
    "failed": "sent it, and it failed again",
    "refused": "did not send it",
    "released": "let it go",
}


def part(part: Part) -> str:
    """Return what became of a job in a replay."""
    edited = " with other arguments" if part.edited else ""
    said = _BECAME.get(part.state, part.state).replace("sent it", f"sent it{edited}")
    return f"{said}: {one_line(part.why)}" if part.why else said


def waiting(waiting: Waiting, now: datetime) -> str:
    """Return which replay is to send a job, and what it waits for."""
    said = f"replay {short(waiting.replay_id)}, made {age(waiting.created_at, now)} ago by {one_line(waiting.by)}, "
    return said + ("is about to send it" if waiting.runs else "sends it as soon as a process runs it")
