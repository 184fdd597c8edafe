"""A message's last executions. They travel with it, in its options, so that a retry costs no write to the database."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final

from db.failures import ATTEMPTS_KEPT, Attempt
from middleware.fingerprint import place
from middleware.redaction import Redactor
from middleware.text import class_of, message_of

#: The option they travel in. Whoever sends a message anew leaves it out, together with ``retries``.
OPTION: Final = "dramaturg_attempts"

#: Characters of an attempt's message, and of its other parts.
MESSAGE_KEPT: Final = 500
NAME_KEPT: Final = 300
#: Longer than any point in time is written.
_TIME_AT_MOST: Final = 40


def attempt(
    actor_name: str, error: BaseException | None, at: datetime, worker: str | None, redact: Redactor
) -> dict[str, Any]:
    """Return an execution that ended with ``error``, as it travels.

    Arguments:
      actor_name: Tells the application's own code, as in :func:`middleware.fingerprint.fingerprint`.
      error: What it raised; ``None`` where the message was rejected without an exception.
      at: When it began, or where that is not known, ended.
      worker: What failure rows call the process.
      redact: Takes secrets out of the message.
    """
    said = short(message_of(error), redact) if error is not None else ""
    return told(error, at, worker, said, place(actor_name, error))


def told(error: BaseException | None, at: datetime, worker: str | None, said: str, where: str | None) -> dict[str, Any]:
    """Return what :func:`attempt` does, of which the message and the place are known already."""
    kind = class_of(error) if error is not None else "(none)"
    return Attempt(at=at, worker=worker, exception_class=kind, message=said, place=where).as_json()


def travelled(options: Mapping[str, Any], executions: int) -> list[dict[str, Any]]:
    """Return what ``options`` say of a message's executions before this one, the oldest first.

    Anybody who can write to Redis may have written it: what is not of the form is left out, and the rest cut to size,
    but not redacted.

    Arguments:
      options: The message's.
      executions: How many there were. No more are believed, so what is sent anew begins with none.
    """
    given = options.get(OPTION)
    if not isinstance(given, list) or executions < 1:
        return []
    return [one for entry in given[-min(executions, ATTEMPTS_KEPT) :] if (one := _read(entry)) is not None]


def last(attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those that are kept."""
    return attempts[-ATTEMPTS_KEPT:]


def redacted(attempts: list[dict[str, Any]], redact: Redactor) -> list[dict[str, Any]]:
    """Return what travelled fit for a row that a tenant may read."""
    if not attempts:
        return []
    # Most say the same as the one before.
    message = cache(lambda text: short(text, redact))
    name = cache(lambda text: None if text is None else redact.text(text)[:NAME_KEPT])
    return [
        {
            "at": entry["at"],
            "worker": name(entry["worker"]),
            "exception_class": name(entry["exception_class"]),
            "message": message(entry["message"]),
            "place": name(entry["place"]),
        }
        for entry in attempts
    ]


def _read(entry: object) -> dict[str, Any] | None:
    match entry:
        case {
            "at": str() as at,
            "worker": str() | None as worker,
            "exception_class": str() as exception_class,
            "message": str() as message,
            "place": str() | None as where,
        } if len(at) <= _TIME_AT_MOST:
            try:
                moment = datetime.fromisoformat(at)
            except ValueError:
                return None
            if moment.tzinfo is None:
                return None
            cut = (None if name is None else name[:NAME_KEPT] for name in (worker, where))
            return Attempt(moment, next(cut), exception_class[:NAME_KEPT], message[:MESSAGE_KEPT], next(cut)).as_json()
    return None


def short(text: str, redact: Redactor, redacted: str | None = None) -> str:
    """Return a message fit for a row and cut to size.

    Arguments:
      redacted: The whole of it, where it was redacted already.
    """
    if redacted is not None and len(text) < MESSAGE_KEPT:
        return redacted[:MESSAGE_KEPT]
    # The redactor's mark, of which only the ellipsis remains, is not put there again when this is read.
    return redact.text(text, MESSAGE_KEPT - 1)[:MESSAGE_KEPT]
