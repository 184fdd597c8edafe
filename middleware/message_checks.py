"""What a message must be for Dramatiq's worker to survive it.

Stock Dramatiq trusts what it fetches: a payload that is no message stops its consumer, and an option of the wrong type
ends a thread or switches a limit off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from dramatiq import Message

from middleware.messages import make_message

MILLISECONDS_AT_MOST = 10**15


class InvalidMessage(ValueError):
    """Says what is wrong with a message, naming the field and its value.

    Attributes:
      kind: The same without anything that the message says: what it has in common with its like.
      fields: What of the message could be read.
    """

    def __init__(self, message: str, kind: str, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.fields: Mapping[str, Any] = fields or {}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_milliseconds(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (math.isfinite(value) and 0 <= value <= MILLISECONDS_AT_MOST)
    )


def _is_limit(value: object) -> bool:
    return value == math.inf or (_is_milliseconds(value) and value != 0)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and not _problem_with_fields(value)


def _is_messages(value: object) -> bool:
    return isinstance(value, list | tuple) and all(_is_message(v) for v in value)


#: The option that says what makes a message unique.
UNIQUE: Final = "dramaturg_unique"


def _is_unique(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("key"), str)
        and re.fullmatch("[0-9a-f]{40}", value["key"]) is not None
        # A message may be sent by who does not know its actor, and takes this as it is.
        and value.get("until") in ("start", "end")
        and value.get("second") in ("refuse", "ignore", "replace")
        and _is_milliseconds(value.get("period", 0))
        and isinstance(value.get("period", 0), int)
    )


#: Option, what it must be, and the words for it.
_OPTIONS: dict[str, tuple[Any, str]] = {
    "retries": (_is_count, "a whole number, not negative"),
    "max_retries": (_is_count, "a whole number, not negative"),
    "min_backoff": (_is_milliseconds, "milliseconds"),
    "max_backoff": (_is_milliseconds, "milliseconds"),
    "max_age": (_is_milliseconds, "milliseconds"),
    "time_limit": (_is_limit, "milliseconds, more than 0"),
    "eta": (_is_milliseconds, "milliseconds since 1970"),
    "requeue_timestamp": (_is_milliseconds, "milliseconds since 1970"),
    "delay": (_is_milliseconds, "milliseconds"),
    "now": (lambda v: isinstance(v, bool), "true or false"),
    "notify_shutdown": (lambda v: isinstance(v, bool), "true or false"),
    "pipe_ignore": (lambda v: isinstance(v, bool), "true or false"),
    "on_success": (_is_name, "the name of an actor"),
    "on_failure": (_is_name, "the name of an actor"),
    "on_retry_exhausted": (_is_name, "the name of an actor"),
    "pipe_target": (_is_message, "a message"),
    "group_completion_callbacks": (_is_messages, "a list of messages"),
    "group_completion_uuid": (_is_name, "a string"),
    "group_completion_child": (_is_name, "a string"),
    "redis_message_id": (_is_name, "a string"),
    UNIQUE: (_is_unique, "what UniqueJobs made of it"),
}

#: Where Dramatiq reckons with null. Any other option that is null counts as not given.
_NOT_NULL = {"retries", "min_backoff", "max_backoff", "redis_message_id"}

#: Options that are actors' alone: as a message's they are strings, which end Dramatiq's thread.
_ACTORS_ONLY = {"throws", "retry_when"}


def check_options(options: Mapping[str, Any]) -> None:
    """Check a message's options.

    Raises:
      InvalidMessage: Naming the first that would break a worker.
    """
    for name, value in options.items():
        rule = _OPTIONS.get(name)
        if rule is None and name not in _ACTORS_ONLY:
            continue
        if value is None and name not in _NOT_NULL:
            continue
        if rule is None:
            said = f"option {name!r} can be given to the actor only, not to a message: {_cut(value)}"
            raise InvalidMessage(said, f"option {name} can be given to the actor only")
        if not rule[0](value):
            said = f"option {name!r} must be {rule[1]}, not {_cut(value)}"
            raise InvalidMessage(said, f"option {name} must be {rule[1]}")
    if "pipe_target" not in options and "group_completion_callbacks" not in options:
        return
    for _, target in follow_ups(options):
        check_options(target["options"])


def follow_ups(options: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the messages that ``options``, which were checked, say are to be sent when theirs has succeeded, each with
    the option's name."""
    target = options.get("pipe_target")
    callbacks = options.get("group_completion_callbacks") or []
    return [
        *([("pipe_target", target)] if target is not None else []),
        *(("group_completion_callbacks", callback) for callback in callbacks),
    ]


def _cut(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


#: A message's fields and what they must be.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "queue_name": str,
    "actor_name": str,
    "args": (list, tuple),
    "kwargs": dict,
    "options": dict,
    "message_id": str,
    "message_timestamp": int,
}


#: What they are where they were read from JSON.
_USUAL = (str, str, list, dict, dict, str, int)


def _problem_with_fields(fields: Mapping[str, Any]) -> InvalidMessage | None:
    if tuple(map(type, map(fields.get, _FIELDS))) == _USUAL and len(fields) == len(_FIELDS):
        return None
    if fields.keys() != _FIELDS.keys():
        missing = [name for name in _FIELDS if name not in fields]
        if missing:
            return InvalidMessage(f"field {missing[0]!r} is missing", f"field {missing[0]} is missing")
        unknown = [name for name in fields if name not in _FIELDS]
        return InvalidMessage(f"field {_cut(unknown[0])} is unknown", "a field is unknown")
    for name, kind in _FIELDS.items():
        if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
            said = f"field {name!r} must not be {_cut(fields[name])}"
            return InvalidMessage(said, f"field {name} is of the wrong type")
    return None


_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


def _read(data: bytes) -> Any:
    """Do as :func:`json.loads`, which looks for encodings and white space first, and takes half as long again."""
    if data.startswith(b'{"'):
        # As UTF-16 and UTF-32 it would begin otherwise.
        text = data.decode("utf-8", "surrogatepass")
        try:
            found, end = _scan(text, 0)
        except StopIteration:
            return json.loads(data)
        if end == len(text):
            return found
    return json.loads(data)


def decode(data: bytes, queue_name: str, redis_id: str) -> Message[Any]:
    """Return the message that was fetched from ``queue_name`` under ``redis_id``.

    Raises:
      InvalidMessage: When ``data`` is none that may be run.
    """
    try:
        fields = _read(data)
    except (ValueError, RecursionError) as e:
        raise InvalidMessage(f"not JSON: {e}", "not JSON") from None
    if not isinstance(fields, dict):
        raise InvalidMessage(f"not a message but {type(fields).__name__}", "not a message")
    try:
        _check(fields, queue_name, redis_id)
    except InvalidMessage as e:
        raise InvalidMessage(str(e), e.kind, fields) from None
    except Exception as e:  # noqa: BLE001 - nested so deep that it cannot be looked at
        raise InvalidMessage(f"cannot be checked: {type(e).__name__}", "cannot be checked", fields) from None
    fields["args"] = tuple(fields["args"])
    return make_message(**fields)


def _check(fields: dict[str, Any], queue_name: str, redis_id: str) -> None:
    problem = _problem_with_fields(fields)
    if problem is not None:
        raise problem
    check_options(fields["options"])
    # Dramatiq ends a delivery on the queue that the message names.
    if fields["queue_name"] != queue_name:
        said = f"field 'queue_name' is {_cut(fields['queue_name'])} in queue {queue_name!r}"
        raise InvalidMessage(said, "field queue_name is not its queue")
    if fields["options"].get("redis_message_id") != redis_id:
        said = _cut(fields["options"].get("redis_message_id"))
        said = f"option 'redis_message_id' is {said}, kept under {redis_id!r}"
        raise InvalidMessage(said, "option redis_message_id is not what it is kept under")
    # Dramatiq would run it off the delay queue. One that is delayed though its queue is another is moved there.
    if queue_name.endswith(".DQ") and fields["options"].get("eta") is None:
        said = f"option 'eta' is {_cut(fields['options'].get('eta'))} in queue {queue_name!r}"
        raise InvalidMessage(said, "option eta is missing in a delay queue")
