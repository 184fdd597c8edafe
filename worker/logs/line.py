"""A line before it has a form: from loguru or the standard library, and already without secrets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from middleware.log_context import current_job
from middleware.redaction import Redactor
from middleware.text import class_of, clean, message_of
from middleware.traceback_text import traceback_text
from middleware.tracing import current_trace_id

#: Characters of a message and of a traceback that are looked at: more than any line may have is not.
TEXT_LIMIT: Final = 20_000
#: Characters of other parts.
NAME_LIMIT: Final = 255
#: Characters that a secret under a secret name must have to be looked for in the message as well.
_SECRET_AT_LEAST: Final = 4
#: The attribute of a record in which the fields of its job travel; a name that nobody gives an extra of his own.
JOB_OF_RECORD: Final = "_dramaturg_job"
#: What every record of the standard library has, and what uvicorn says twice.
_OF_RECORDS: Final = frozenset(
    {
        *vars(logging.makeLogRecord({})),
        *("message", "asctime", "taskName", "color_message", JOB_OF_RECORD, "_dramaturg_clean"),
    }
)


@dataclass(slots=True)
class Raised:
    """The exception that a line tells of; its class, its text and its traceback, if it was raised."""

    kind: str
    message: str
    traceback: str | None


@dataclass(slots=True)
class Line:
    """What a line says.

    Attributes:
      time: Seconds since 1970.
      level: Its name.
      logger: Its name, or that of the module.
      message: One text, maybe of several lines.
      job: The fields of :meth:`middleware.log_context.Job.fields`, if a job caused it.
      thread: The thread's name.
      function: Where it was logged.
      number: The line there.
      raised: The exception that it tells of.
      extras: What was bound to it.
      stack: Where it was logged, as a text, if that was asked for.
    """

    time: float
    level: str
    logger: str
    message: str
    job: Mapping[str, Any] | None = None
    thread: str = ""
    function: str | None = None
    number: int | None = None
    raised: Raised | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    stack: str | None = None


def job_fields() -> dict[str, Any] | None:
    """Return the fields of the job at hand, with the trace that it belongs to, if any."""
    job = current_job()
    if job is None:
        return None
    fields, trace_id = job.fields(), current_trace_id()
    return fields if trace_id is None else {**fields, "trace_id": trace_id}


def of_loguru(record: Mapping[str, Any], redact: Redactor) -> Line:
    """Return loguru's ``record`` as a line."""
    extras, message = record["extra"], record["message"]
    if extras:
        message = _without_secrets_of(extras, message, redact)
    exception = record["exception"]
    return Line(
        time=record["time"].timestamp(),
        level=record["level"].name,
        logger=_name(record["name"]),
        message=redact.text(message, TEXT_LIMIT),
        job=job_fields(),
        thread=_name(record["thread"].name),
        function=record["function"],
        number=record["line"],
        raised=None if exception is None or exception.value is None else raised(exception.value, redact),
        extras=redact.value(extras) if extras else {},
    )


def of_record(record: logging.LogRecord, redact: Redactor) -> Line:
    """Return a cleaned ``record`` of the standard library as a line."""
    exception = record.exc_info[1] if record.exc_info else None
    extras = {name: value for name, value in vars(record).items() if name not in _OF_RECORDS}
    job = getattr(record, JOB_OF_RECORD, None) or job_fields()
    message = record.getMessage()
    if extras:
        message = _without_secrets_of(extras, message, redact)
    return Line(
        time=record.created,
        level=record.levelname,
        logger=_name(record.name),
        message=message,
        job=job,
        thread=_name(record.threadName),
        function=record.funcName,
        number=record.lineno,
        raised=None if exception is None else raised(exception, redact, record.exc_text),
        extras=redact.value(extras) if extras else {},
        stack=redact.text(record.stack_info, TEXT_LIMIT) if record.stack_info else None,
    )


def raised(error: BaseException, redact: Redactor, traceback: str | None = None) -> Raised:
    """Return what a line says of ``error``.

    Arguments:
      error: The exception.
      redact: Takes secrets out.
      traceback: Its own, where there is one without secrets already.
    """
    if traceback is None:
        text = traceback_text(error)
        traceback = None if text is None else redact.text_ends(text.rstrip("\n"), TEXT_LIMIT)
    return Raised(class_of(error), redact.text(message_of(error), TEXT_LIMIT), traceback)


def said(level: str, logger: str, message: str, time: float, redact: Redactor) -> Line:
    """Return a line that no logger made."""
    thread = _name(threading.current_thread().name)
    return Line(time, level, logger, redact.text(message, TEXT_LIMIT), job_fields(), thread)


def _name(value: object) -> str:
    return clean(str(value))[:NAME_LIMIT]


def _without_secrets_of(extras: Mapping[str, Any], message: str, redact: Redactor) -> str:
    """Return ``message`` without the values of extras with secret names: loguru's arguments are among these."""
    for name, value in extras.items():
        if isinstance(value, str) and len(value) >= _SECRET_AT_LEAST and redact.is_secret(name):
            message = message.replace(value, "[redacted]")
    return message
