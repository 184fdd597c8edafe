"""Makes the message of a replay: of the original the id, tenant, arguments and options; retries begin anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dramatiq import Message
from dramatiq.common import current_millis, q_name

from db.errors import DramaturgError, KeyMissing, SealBroken
from db.failed.originals import opened
from db.replays.claims import Candidate
from db.replays.edits import Arguments
from db.sealing import Keys
from middleware.attempts import OPTION as ATTEMPTS
from middleware.job_metrics import DUE
from middleware.message_checks import UNIQUE
from middleware.redaction import REDACTED
from middleware.replays import OPTION as REPLAY
from middleware.text import clean

#: Options that tell of the executions before.
_OF_BEFORE: Final = (
    *("retries", "traceback", "requeue_timestamp", "eta", "redis_message_id"),
    *(ATTEMPTS, DUE, REPLAY, UNIQUE),
)


#: What says that something was taken out of arguments, here or by others; and that a text goes on.
_MARKS: Final = (REDACTED, "… [", "[Filtered]", "[FILTERED]", "***")
_CUT: Final = ("...", "…")


class NotReplayable(DramaturgError):
    """Raised when a failed job cannot be sent again; the message says why, in words for a person."""


class ArgumentsUnknown(NotReplayable):
    """Raised when it is not known what a job was called with; with other arguments it can be sent."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a replay's message is to say, before it has an id in Redis."""

    actor_name: str
    queue_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    message_id: str
    #: The actor that it was for then.
    was: str
    #: Whether an operator said which actor runs it.
    chosen: bool = False

    def message(self, redis_id: str, replay: Mapping[str, str]) -> Message[Any]:
        """Return the message.

        Arguments:
          redis_id: Under which Redis keeps it.
          replay: What it carries of the replay; :func:`middleware.replays.option`.
        """
        return Message(
            queue_name=self.queue_name,
            actor_name=self.actor_name,
            args=self.args,
            kwargs=self.kwargs,
            options={**self.options, "redis_message_id": redis_id, REPLAY: dict(replay)},
            message_id=self.message_id,
            # An age limit counts from now.
            message_timestamp=current_millis(),
        )


def content_of(
    job: Candidate,
    *,
    keys: Keys | None,
    actor: str | None = None,
    edit: Arguments | None = None,
    renamed: Mapping[str, str] | None = None,
    by_operator: bool = True,
) -> Content:
    """Return what the replay of a job is to say.

    Arguments:
      job: Which.
      keys: Of ``FAILED_JOB_KEYS``.
      actor: The actor that is to run it, where it is another than then.
      edit: Arguments instead of its own, which then need not be known.
      renamed: Today's names of actors that had others, the Celery system's for example.
      by_operator: Whether it is an operator who chose ``actor``, and not somebody who is bound to a tenant.

    Raises:
      ArgumentsUnknown: When it can be sent with other arguments alone.
      NotReplayable: When it cannot be sent again.
    """
    try:
        content = _from_original(job, keys) if job.original is not None else _from_row(job, edited=edit is not None)
    except ArgumentsUnknown:
        if edit is None:
            raise
        content = _from_row(job, edited=True)
    was = clean(content.actor_name)[:255]
    if actor is None and was != job.task_name:
        # Tenants write both: what runs is what people see, or what an operator says.
        raise NotReplayable(f"its original is for {was!r}, its row for {job.task_name!r}: say --as which")
    name = actor or (renamed or {}).get(content.actor_name, content.actor_name)
    args, kwargs = content.args, content.kwargs
    if edit is not None:
        args, kwargs = tuple(edit.args), dict(edit.kwargs)
    options = dict(content.options)
    # The row says whose it is: it may have been handed to another tenant since.
    if job.tenant_id is None:
        options.pop("tenant_id", None)
    else:
        options["tenant_id"] = str(job.tenant_id)
    if job.correlation_id is not None:
        options["correlation_id"] = str(job.correlation_id)
    return Content(
        name,
        content.queue_name,
        args,
        kwargs,
        options,
        content.message_id,
        content.was,
        chosen=actor is not None and by_operator,
    )


def _from_original(job: Candidate, keys: Keys | None) -> Content:
    assert job.original is not None  # noqa: S101 - the caller looked
    try:
        raw = opened(job.original, keys)
    except (KeyMissing, SealBroken) as e:
        raise ArgumentsUnknown(f"its original cannot be read: {e}") from e
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise NotReplayable("its original is not JSON") from None
    kinds = {"queue_name": str, "actor_name": str, "args": list, "kwargs": dict, "options": dict, "message_id": str}
    if not isinstance(fields, dict):
        raise NotReplayable("its original is no message")
    for name, kind in kinds.items():
        if not isinstance(fields.get(name), kind):
            raise NotReplayable(f"its original is no message: field {name!r} is missing, or not what it should be")
    return Content(
        actor_name=fields["actor_name"],
        queue_name=q_name(fields["queue_name"]),
        args=tuple(fields["args"]),
        kwargs=fields["kwargs"],
        options={name: value for name, value in fields["options"].items() if name not in _OF_BEFORE},
        message_id=fields["message_id"],
        was=fields["actor_name"],
    )


def _from_row(job: Candidate, *, edited: bool) -> Content:
    """Return what can be told from a row of which no original is kept: the Celery system's."""
    if job.forgotten_at is not None:
        raise NotReplayable("its arguments were forgotten")
    args, kwargs = ([], {}) if edited else _arguments(job)
    return Content(job.task_name, q_name(job.queue or ""), tuple(args), kwargs, {}, job.task_id, job.task_name)


def _arguments(job: Candidate) -> tuple[list[Any], dict[str, Any]]:
    """Return a row's arguments, where they are those that it was called with, and not what was left for the eye."""
    try:
        whole = _is_whole(job.task_args) and _is_whole(job.task_kwargs)
    except RecursionError:
        raise ArgumentsUnknown("no original is kept, and its arguments are nested too deep") from None
    if not whole:
        raise ArgumentsUnknown("no original is kept, and its arguments were redacted or cut")
    if job.task_args is None and job.task_kwargs is None:
        raise ArgumentsUnknown("neither an original nor arguments are kept")
    args, kwargs = job.task_args or [], job.task_kwargs or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ArgumentsUnknown("its arguments are no list and no object")
    return args, kwargs


def _is_whole(value: Any) -> bool:
    """Tell whether arguments for the eye are the arguments: nothing redacted, nothing cut."""
    match value:
        case str():
            return not any(mark in value for mark in _MARKS) and not value.endswith(_CUT)
        case dict():
            return all(_is_whole(key) and _is_whole(item) for key, item in value.items())
        case list():
            return all(map(_is_whole, value))
        case _:
            return True
