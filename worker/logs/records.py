"""The standard library's records: without secrets as soon as they are made, whoever handles them, and on their way to
where all lines go.

Dramatiq logs a failing message with its arguments and its exception as they are; both may hold secrets.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import dramatiq
from dramatiq import Message, MessageProxy

from middleware.dramatiq_internals import ACTOR_CALL_LOG
from middleware.redaction import Redactor
from middleware.signatures import positional_names
from middleware.text import message_of
from middleware.traceback_text import traceback_text
from worker.logs.guard import may_be_swallowed
from worker.logs.line import JOB_OF_RECORD, TEXT_LIMIT, job_fields

#: Parameters of a statement that SQLAlchemy shows: it is a class of its own, whose text has them all.
_SHOWN_PARAMETERS = "_repr_params"
#: Of those that stand for many rows.
_ROWS_SHOWN = 10


class RedactingFactory:
    """Makes log records whose text, and whose exception's, is redacted; messages show their arguments redacted by name.

    Arguments:
      make: The factory to use.
      redact: Takes secrets out.
    """

    def __init__(self, make: Callable[..., logging.LogRecord], redact: Redactor) -> None:
        self.make = make
        self.redact = redact

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.make(*args, **kwargs)
        clean_record(record, self.redact)
        # It may be handled in another thread. No attribute that an extra may be called, which would be an error.
        setattr(record, JOB_OF_RECORD, job_fields())
        return record


def clean_record(record: logging.LogRecord, redact: Redactor) -> None:
    """Redact the text of ``record`` and that of its exception, unless nothing has changed since that was done."""
    if record.args is None and vars(record).get("_dramaturg_clean") is record.msg:
        return
    try:
        _clean(record, redact)
    except BaseException as e:
        # An argument's __str__ may raise anything, in the middle of Dramatiq.
        if not may_be_swallowed(e):
            raise
        _clean_what_is_left(record, redact, type(e).__name__)
    vars(record)["_dramaturg_clean"] = record.msg


def _clean(record: logging.LogRecord, redact: Redactor) -> None:
    if record.msg == ACTOR_CALL_LOG:
        record.msg, record.args = "Received arguments, which are not logged.", None
    elif isinstance(record.args, tuple):
        record.args = tuple(_argument(a, redact) for a in record.args)
    elif record.args:
        record.args = redact.value(record.args)
    record.msg, record.args = redact.text(record.getMessage(), TEXT_LIMIT), None
    _clean_exception(record, redact)


def _clean_exception(record: logging.LogRecord, redact: Redactor) -> None:
    # Formatters use this text where it is there, instead of formatting the exception.
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        text = traceback_text(record.exc_info[1]) or message_of(record.exc_info[1])
        record.exc_text = redact.text_ends(text.rstrip("\n"), TEXT_LIMIT)


def _clean_what_is_left(record: logging.LogRecord, redact: Redactor, why: str) -> None:
    """Leave of a ``record`` that cannot be formatted what can."""
    shown = redact.text(record.msg, TEXT_LIMIT) if isinstance(record.msg, str) else type(record.msg).__name__
    record.msg, record.args = f"{shown} (what belongs in here cannot be formatted: {why})", None
    try:
        _clean_exception(record, redact)
    except BaseException as e:
        if not may_be_swallowed(e):
            raise
        record.exc_info = record.exc_text = None


def _argument(argument: object, redact: Redactor) -> object:
    match argument:
        case Message() | MessageProxy():
            names = positional_names(dramatiq.get_broker(), argument.actor_name, len(argument.args))
            shown = [repr(value) for value in redact.arguments(argument.args, names)]
            shown += [f"{name}={value!r}" for name, value in redact.value(argument.kwargs).items()]
            return f"{argument.actor_name}({', '.join(shown)})"
        case dict() | list() | tuple() | set():
            return redact.value(argument)
        case BaseException():
            return message_of(argument)
        case _ if type(argument).__name__ == _SHOWN_PARAMETERS:
            return _parameters(argument, redact)
        case _:
            return argument


def _parameters(shown: Any, redact: Redactor) -> object:
    """Return parameters redacted by name, where they have names."""
    given = shown.params
    if isinstance(given, Mapping):
        return redact.value(given)
    if isinstance(given, list) and given and isinstance(given[0], Mapping):
        rows = redact.value(given[:_ROWS_SHOWN])
        return [*rows, f"… [{len(given) - len(rows)} more rows]"] if len(given) > len(rows) else rows
    return shown


class Handler(logging.Handler):
    """Hands records on.

    Arguments:
      take: Takes a record that is clean.
      redact: Takes secrets out of what another factory has made.
    """

    def __init__(self, take: Callable[[logging.LogRecord], object], redact: Redactor) -> None:
        super().__init__()
        self._take = take
        self._redact = redact

    def createLock(self) -> None:
        """Have none: only writing needs one, and another has it."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand ``record`` on."""
        clean_record(record, self._redact)
        self._take(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: what takes records does, where there is anything to say."""
