"""Where a worker's log lines go, and what never goes there.

Dramatiq logs a failing message with its arguments and its exception as they are; both may hold secrets.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq import Broker, Message, MessageProxy
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.dramatiq_internals import ACTOR_CALL_LOG
from middleware.redaction import Redactor
from middleware.signatures import positional_names
from middleware.text import message_of
from middleware.traceback_text import traceback_text

#: Characters of one line, and of the traceback under it.
LINE_LIMIT = 20_000


class Logs(Middleware):
    """Configures logging in the processes that the ``dramatiq`` command starts; an application's own stays as it is.

    Arguments:
      level: Of loguru's lines; the standard library's follows ``dramatiq --verbose``.
      redact: Takes secrets out.
    """

    def __init__(self, level: str, redact: Redactor) -> None:
        self._level = level
        self._redact = redact

    def after_process_boot(self, broker: Broker) -> None:
        configure(self._level, self._redact)


def configure(level: str, redact: Redactor) -> None:
    """Send loguru's lines of ``level`` and above to standard error, and redact them and the standard library's.

    Standard error is looked up at each line: Dramatiq's workers replace it by a pipe that keeps lines of several
    processes whole.
    """

    def write(line: str) -> None:
        sys.stderr.write(redact.text(line.rstrip("\n"), 2 * LINE_LIMIT) + "\n")

    logger.remove()
    # No "diagnose": it prints the values of variables.
    logger.add(write, level=level, diagnose=False, backtrace=False)
    previous = logging.getLogRecordFactory()
    if isinstance(previous, RedactingFactory):
        previous = previous.make
    logging.setLogRecordFactory(RedactingFactory(previous, redact))


class RedactingFactory:
    """Makes log records whose text, and whose exception's, is redacted; messages show their arguments redacted by name.

    Arguments:
      make: The factory to use.
      redact: Takes secrets out.
    """

    def __init__(self, make: Callable[..., logging.LogRecord], redact: Redactor) -> None:
        self.make = make
        self._redact = redact

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.make(*args, **kwargs)
        try:
            self._clean(record)
        except BaseException as e:  # noqa: BLE001 - an argument's __str__ may raise anything, in the middle of Dramatiq
            record.msg, record.args = f"(a log line that could not be redacted is left out: {type(e).__name__})", None
            record.exc_info = None
        return record

    def _clean(self, record: logging.LogRecord) -> None:
        if record.msg == ACTOR_CALL_LOG:
            record.msg, record.args = "Received arguments, which are not logged.", None
        elif isinstance(record.args, tuple):
            record.args = tuple(self._argument(a) for a in record.args)
        elif record.args:
            record.args = self._redact.value(record.args)
        record.msg, record.args = self._redact.text(record.getMessage(), LINE_LIMIT), None
        # Formatters use this text where it is there, instead of formatting the exception.
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            text = traceback_text(record.exc_info[1]) or message_of(record.exc_info[1])
            record.exc_text = self._redact.text_ends(text.rstrip("\n"), LINE_LIMIT)

    def _argument(self, argument: object) -> object:
        match argument:
            case Message() | MessageProxy():
                names = positional_names(dramatiq.get_broker(), argument.actor_name, len(argument.args))
                shown = [repr(value) for value in self._redact.arguments(argument.args, names)]
                shown += [f"{name}={value!r}" for name, value in self._redact.value(argument.kwargs).items()]
                return f"{argument.actor_name}({', '.join(shown)})"
            case dict() | list() | tuple() | set():
                return self._redact.value(argument)
            case BaseException():
                return message_of(argument)
            case _:
                return argument
