"""What to do next about a failed job: commands to copy, and what its kind of error asks for first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from db.failed import FailedJob, Group
from middleware import classification as kinds
from worker.explain.errors import BUDGET_EXCEEDED
from worker.text import counted, short

#: What to look at first, by error type.
_FIRST: Final = {
    kinds.VALIDATION_ERROR: "Its input is wrong, and will be again: correct what sent it, then close it.",
    kinds.DATABASE_ERROR: "Postgres refused: the message above names the constraint or the statement.",
    kinds.TIMEOUT: "It took too long: is there more work in it than its time limit allows, or did it wait for a lock?",
    kinds.RATE_LIMITED: "Somebody's limit was reached: send fewer at once, or later.",
    kinds.UPSTREAM_ERROR: "Another server did not answer, or badly: see whether it does now.",
    kinds.EXPIRED: "It waited longer than its max_age: more processes on its queue, or a longer max_age.",
    kinds.UNKNOWN_ACTOR: "No worker of its queue knows the actor: import or rename it there, or close the job.",
    kinds.UNDECODABLE: "It is no message: find who sent it; nothing can run it.",
    kinds.TENANT_ERROR: "It has no tenant that may run it: correct what sent it.",
    kinds.WORKER_LOST: "It ended its worker each time it was started: look for memory, os._exit, or C code.",
    kinds.CONFIGURATION_ERROR: "Something of the deployment is missing: worker check says what.",
    BUDGET_EXCEEDED: "The tenant's budget for the month is spent: send it again next month, or with a larger budget.",
}


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it is for."""

    command: str
    purpose: str


def first(job: FailedJob, *, replayed: bool) -> str | None:
    """Return what its kind of error asks for; None where nothing general can be said, or it is closed."""
    if replayed:
        return "It is being sent again: that closes it where it succeeds, and else returns it."
    return _FIRST.get(job.error_type) if job.status in {"pending", "in_progress"} else None


def steps(
    job: FailedJob,
    group: Group | None,
    chained: int,
    command: Callable[[str], str],
    *,
    truncated: bool,
    replayed: bool = False,
) -> list[Step]:
    """Return what can be done about a job, in the order in which one would.

    Arguments:
      group: Its group, if it has one.
      chained: Failed jobs with its correlation id.
      command: Makes the words after ``worker failed`` a command.
      truncated: Whether frames are folded.
      replayed: Whether a replay has it.
    """
    return [Step(command(words), purpose) for words, purpose in _steps(job, group, chained, truncated, replayed)]


def _steps(
    job: FailedJob, group: Group | None, chained: int, truncated: bool, replayed: bool
) -> Iterator[tuple[str, str]]:
    ident = short(job.id)
    if truncated:
        yield f"show {ident} --traceback", "every frame"
    others = group.open - (job.status in {"pending", "in_progress"}) if group else 0
    if group is not None and others > 0:
        yield f"list --fingerprint {group.fingerprint[:8]}", f"the other {counted(others, 'open job')} of its group"
    if chained > 1:
        yield f"list --status all --correlation-id {job.correlation_id}", "what failed with it"
    match job.status:
        case "pending" | "in_progress":
            if job.status == "in_progress":
                yield f"reopen {ident}", "if whoever works on it does not any more"
            else:
                yield f"retry {ident}", "send it again; it is closed when it succeeds"
            if not replayed:
                # Else how that ends says what it is, and closes it, perhaps.
                yield f"resolve {ident} --note '...'", "when there is nothing left to do"
                yield f"abandon {ident} --reason '...'", "if it is not worth it"
            if group is not None and others > 0:
                yield f"retry --fingerprint {group.fingerprint[:8]}", "its whole group, few at first"
                yield (
                    f"resolve --fingerprint {group.fingerprint[:8]} --note '...'",
                    f"its whole group, {counted(group.open, 'job')}",
                )
        case "abandoned":
            yield f"retry {ident}", "send it again; it is closed when it succeeds"
            yield f"reopen {ident}", "if it is worth it after all"
    yield f"note {ident} --note '...'", "for whoever looks next"


def closed(job: FailedJob) -> str | None:
    """Return how it was closed, in a sentence; None where it is open."""
    match job.status:
        case "resolved":
            return "Resolved, which is final."
        case "abandoned":
            return "Abandoned: nothing more is done about it, unless somebody re-opens it."
    return None
