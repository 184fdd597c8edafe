"""Puts the parts together in a process of ours; an application's own stays as it is."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from dramatiq import Broker
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.dramatiq_internals import ChildLogging, child_logging, is_log_pipe
from worker.logs.as_json import as_json
from worker.logs.as_text import as_text
from worker.logs.guard import guard_loguru
from worker.logs.levels import LEVELS
from worker.logs.line import Line, of_loguru, of_record, raised, said
from worker.logs.options import Options, options_of
from worker.logs.output import Output
from worker.logs.records import Handler, RedactingFactory
from worker.logs.streams import LoggedStream
from worker.settings import Settings

#: The logger's name on lines about lines, and of what nothing else caught.
_OURS: Final = "worker.logs"


class Sink:
    """Where loguru's and the standard library's lines come together. Its methods raise nothing but interrupts.

    Arguments:
      options: How lines look, and which are written.
      output: Where they go.
    """

    def __init__(self, options: Options, output: Output) -> None:
        self._options = options
        self._output = output

    def take_loguru(self, record: Mapping[str, Any]) -> bool:
        """Write loguru's ``record``; return False, so that loguru does nothing more with it."""
        if record["level"].no >= self._options.levels.of(record["name"] or ""):
            self._write(lambda: of_loguru(record, self._options.redact))
        return False

    def take_record(self, record: logging.LogRecord) -> None:
        """Write a ``record`` of the standard library, which has looked at its level, and is clean."""
        self._write(lambda: of_record(record, self._options.redact))

    def say(self, level: str, name: str, message: str, error: BaseException | None = None) -> None:
        """Write what no logger was asked to."""
        if LEVELS[level] < self._options.levels.of(name):
            return

        def make() -> Line:
            line = said(level, name, message, time.time(), self._options.redact)
            line.raised = None if error is None else raised(error, self._options.redact)
            return line

        self._write(make)

    def _write(self, make: Callable[[], Line]) -> None:
        try:
            self._output.write(self._form(make()))
        except Exception as e:  # noqa: BLE001 - whatever was in it, or memory: the job goes on
            self._output.write(self._form(Line(time.time(), "ERROR", _OURS, f"a line cannot be written: {_kind(e)}")))

    def _form(self, line: Line) -> str:
        if not self._options.json:
            return as_text(line, colour=self._options.colour)
        return as_json(line, self._options, os.getpid(), self._output.limit(self._options.line_limit))


def _kind(error: BaseException) -> str:
    return type(error).__name__


def configure(
    options: Options,
    *,
    stream: Any = None,
    library_level: str | None = None,
    standard_library: bool = True,
    standard_streams: bool = False,
) -> None:
    """Let all lines of this process go to one place, in one form, without secrets.

    May be called again, and from then on does as it is told then.

    Arguments:
      options: Which form, and which lines.
      stream: Where to; by default what standard error is at each line.
      library_level: Of the standard library's lines, where not that of all others.
      standard_library: Whether its lines go there, too; where they do not, they are redacted nevertheless.
      standard_streams: Whether what is printed in this process is logged.
    """
    sink = Sink(options, Output(_original(sys.stderr if stream is None and standard_streams else stream)))
    _loguru.lead_to(sink, options.levels.least)
    guard_loguru()
    previous = logging.getLogRecordFactory()
    while isinstance(previous, RedactingFactory):
        previous = previous.make
    logging.setLogRecordFactory(RedactingFactory(previous, options.redact))
    if standard_library:
        _route_library(options, sink, library_level)
        _route_exceptions(sink, every=options.json)
    if standard_streams:
        sys.stdout = LoggedStream(_original(sys.stdout), lambda line: sink.say("INFO", "stdout", line))
        sys.stderr = LoggedStream(_original(sys.stderr), lambda line: sink.say("WARNING", "stderr", line))


class _Loguru:
    """Loguru's one handler. It takes 3 ms to make, so the second time that this is configured it leads elsewhere."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._made: tuple[int, int] | None = None

    def lead_to(self, sink: Sink, level: int) -> None:
        """Have loguru's lines of a level, or more severe, go to ``sink``, and nowhere else."""
        self._sink = sink
        if self._made is not None and self._made == (level, _only_handler()):
            return
        logger.remove()
        # As a filter, because a filter sees the record as it is. Before a sink does, loguru formats the exception, with
        # what its __str__ may raise, and takes a lock that no signal's handler may find taken.
        self._made = (level, logger.add(_nowhere, level=level, format="", filter=self._take))

    def _take(self, record: Mapping[str, Any]) -> bool:
        return self._sink is not None and self._sink.take_loguru(record)


_loguru: Final = _Loguru()


def _only_handler() -> int | None:
    """Return the id of the only handler of loguru's, or None where there are others, or loguru is not as known here."""
    handlers = getattr(getattr(logger, "_core", None), "handlers", None)
    return next(iter(handlers)) if isinstance(handlers, dict) and len(handlers) == 1 else None


def _nowhere(_: str) -> None:
    pass


def _original(stream: Any) -> Any:
    while isinstance(stream, LoggedStream):
        stream = stream.original
    return stream


def _route_library(options: Options, sink: Sink, level: str | None) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        # Dramatiq's, and whoever else writes to the same place. What goes elsewhere is the application's.
        if isinstance(handler, Handler) or (
            type(handler) is logging.StreamHandler and _is_standard(getattr(handler, "stream", None))
        ):
            root.removeHandler(handler)
    root.addHandler(Handler(sink.take_record, options.redact))
    root.setLevel(options.levels.default if level is None else level)
    logging.addLevelName(LEVELS["TRACE"], "TRACE")
    for name, number in options.levels.by_name.items():
        logging.getLogger(name).setLevel(number)
    # Of a broker that nobody uses here; Dramatiq does the same.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.captureWarnings(True)


def _is_standard(stream: object) -> bool:
    ours = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return is_log_pipe(stream) or isinstance(stream, LoggedStream) or any(stream is one for one in ours)


def _route_exceptions(sink: Sink, *, every: bool) -> None:
    def of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
            name = args.thread.name if args.thread else "unknown"
            sink.say("CRITICAL", _OURS, f"thread {name} has died", args.exc_value)

    threading.excepthook = of_thread

    def of_process(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not every or isinstance(error, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            sink.say("CRITICAL", _OURS, "this process ends, because of what nobody caught", error)

    sys.excepthook = of_process


def configure_process(settings: Settings, *, library_level: str | None = None) -> None:
    """Configure a process of the command ``worker``.

    Arguments:
      settings: Of the deployment.
      library_level: See :func:`configure`.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()
    configure(options_of(settings, terminal=terminal), library_level=library_level)


def configure_dramatiq(settings: Settings, stream: Any, told: ChildLogging, *, is_child: bool) -> None:
    """Configure a process of the ``dramatiq`` command.

    Arguments:
      settings: Of the deployment.
      stream: Where its lines go: a pipe of the main process, which has the terminal, if there is one.
      told: What the command was told.
      is_child: Whether it is one that the main process started.
    """
    encoding = getattr(sys.__stderr__, "encoding", None) or "ascii"
    options = options_of(
        settings,
        terminal=not told.to_file and _is_terminal(),
        verbose=told.verbose,
        ascii=not told.to_file and encoding.lower().replace("-", "") != "utf8",
    )
    configure(options, stream=stream, standard_library=not told.skip, standard_streams=is_child)


def _is_terminal() -> bool:
    # The streams of Python are Dramatiq's pipes, but standard error itself is the main process'.
    try:
        return os.isatty(2)
    except OSError:
        return False


def configure_worker(settings: Settings) -> bool:
    """Configure this process if it is a worker process of the ``dramatiq`` command; tell whether it is."""
    told = child_logging()
    if told is not None:
        configure_dramatiq(settings, _original(sys.stderr), told, is_child=True)
    return told is not None


class Logs(Middleware):
    """Configures logging in the worker processes of the ``dramatiq`` command; an application's own stays as it is.

    Arguments:
      settings: Of the deployment.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def after_process_boot(self, broker: Broker) -> None:
        # Once more: what was imported meanwhile may have configured it, too, and a keeper stays behind with its own.
        configure_worker(self._settings)
