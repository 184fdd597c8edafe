"""Where log lines go, and what never goes there.

Dramatiq logs a failing message with its arguments and its exception as they are; both may hold secrets.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq import Message, MessageProxy
from loguru import logger

from middleware.dramatiq_internals import ACTOR_CALL_LOG
from middleware.redaction import Redactor
from middleware.signatures import parameters_of
from middleware.traceback_text import traceback_text

#: Characters of one traceback in a log line.
TRACEBACK_LIMIT = 20_000


def configure(level: str, redact: Redactor) -> None:
    """Send loguru's lines of ``level`` and above to standard error, and redact what the standard library's loggers say.

    Standard error is looked up at each line: Dramatiq's workers replace it by a pipe that keeps lines of several
    processes whole.
    """
    logger.remove()
    # No "diagnose": it prints the values of variables, secrets among them.
    logger.add(_write, level=level, diagnose=False, backtrace=False)
    previous = logging.getLogRecordFactory()
    if isinstance(previous, _RedactingFactory):
        previous = previous.make
    logging.setLogRecordFactory(_RedactingFactory(previous, redact))


def _write(line: str) -> None:
    sys.stderr.write(line)


class _RedactingFactory:
    """Makes log records, in which messages show redacted arguments and exceptions a redacted traceback."""

    def __init__(self, make: Callable[..., logging.LogRecord], redact: Redactor) -> None:
        self.make = make
        self._redact = redact

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.make(*args, **kwargs)
        try:
            self._clean(record)
        except Exception:  # noqa: BLE001 - a line that cannot be cleaned is not logged as it is
            record.msg, record.args = "(a log line that could not be redacted is left out)", None
            record.exc_info = None
        return record

    def _clean(self, record: logging.LogRecord) -> None:
        if record.msg == ACTOR_CALL_LOG:
            record.msg, record.args = "Received arguments, which are not logged.", None
        elif isinstance(record.args, tuple):
            record.args = tuple(self._argument(a) for a in record.args)
        # Formatters use this text where it is there, instead of formatting the exception.
        if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
            text = traceback_text(record.exc_info[1]) or repr(record.exc_info[1])
            record.exc_text = self._redact.text_ends(text.rstrip("\n"), TRACEBACK_LIMIT)

    def _argument(self, argument: object) -> object:
        match argument:
            case Message() | MessageProxy():
                names = tuple(parameters_of(dramatiq.get_broker(), argument.actor_name) or ())
                shown = [repr(value) for value in self._redact.arguments(argument.args, names)]
                shown += [f"{name}={value!r}" for name, value in self._redact.value(argument.kwargs).items()]
                return f"{argument.actor_name}({', '.join(shown)})"
            case str():
                return self._redact.text(argument)
            case BaseException():
                return self._redact.text(str(argument))
            case _:
                return argument
