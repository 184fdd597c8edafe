"""Every use of what Dramatiq does not document, in one place. ``tests/unit/test_dramatiq_contract.py`` checks them
against the installed version, so that an upgrade that moves one fails there and not at night.

What ``LosslessBroker`` relies on cannot be put behind a function, and is checked there, too: that a consumer thread
starts a new consumer after a ``BrokerConnectionError`` and drops the delayed messages of the old one; that it enqueues
a due message with the options it arrived with, and acknowledges it next; that ending a message is tried again after a
``BrokerConnectionError``; that an unknown actor is rejected on the consumer thread; the keys in Redis.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import multiprocessing
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq import Message, MessageProxy, Worker
from dramatiq.common import iter_queue
from dramatiq.middleware.time_limit import _CtypesTimeoutManager
from dramatiq.worker import ConsumerThread, WorkerThread

from db.errors import ConfigurationError

#: What an actor's own logger says of its arguments, at DEBUG.
ACTOR_CALL_LOG = "Received args=%r kwargs=%r."

#: The minor version that all of this was checked against.
KNOWN_VERSION = "2.2"


def check_version(version: str = dramatiq.__version__) -> None:
    """Check that this is a Dramatiq whose insides we know.

    Raises:
      ConfigurationError: When it is not, naming both versions.
    """
    if not re.match(rf"{re.escape(KNOWN_VERSION)}(\.|$)", version):
        raise ConfigurationError(
            f"dramatiq {version} is installed, and this works with {KNOWN_VERSION} only, because it relies on how "
            f"Dramatiq works inside: pip install 'dramatiq>={KNOWN_VERSION},<2.3'"
        )


def exception_of(message: MessageProxy) -> BaseException | None:
    """Return the exception that the worker stuffed into ``message``; the proxy has a way in, but none out."""
    return message._exception


def is_dramatiqs_own_enqueue(message: Message[Any]) -> bool:
    """Tell a retry, and a delayed message that has come due, from a message that somebody sends.

    ``Retries`` marks what it enqueues; a due message is enqueued by the thread that consumes the delay queue.
    """
    return "requeue_timestamp" in message.options or is_consumer_thread()


def is_consumer_thread() -> bool:
    """Tell whether this is one of the worker's threads that fetch, and move delayed messages when they are due."""
    return isinstance(threading.current_thread(), ConsumerThread)


class Deadlines(_CtypesTimeoutManager):
    """Keeps the time limits of ``TimeLimit``, and raises none that was removed.

    Dramatiq's lets go of the lock before it raises: the job may be over by then, and its thread at the next one, or
    waiting for one, where an interrupt ends it.
    """

    def _handle_deadlines(self) -> None:
        with self.mu:
            super()._handle_deadlines()


def catch_what_escapes(thread: WorkerThread, caught: Callable[[MessageProxy, BaseException], None]) -> None:
    """Keep a worker thread alive, which has begun to run, whatever gets out of its processing of a message.

    Dramatiq's own would end: an interrupt may come between any two instructions, its error handling included.
    """
    process = thread.process_message

    def process_message(message: MessageProxy) -> None:
        try:
            process(message)
        except BaseException as e:  # noqa: BLE001 - a thread that ends is missed by nobody
            caught(message, e)

    thread.process_message = process_message  # type: ignore[method-assign]


def say_booted() -> None:
    """Tell Dramatiq's main process that this worker process has booted, before a first message is run in it.

    Dramatiq says so when all threads have started: a message that kills its process may come first, and the main
    process then waits for half a minute; or, where it comes in the midst of saying it, for ever, on a lock that the
    dead hold.
    Does nothing in a process that the ``dramatiq`` command did not start.
    """
    for argument in getattr(multiprocessing.current_process(), "_args", ()):
        if isinstance(argument, Event):
            argument.set()


def was_told_to_stop(handler: Callable[..., Any]) -> bool:
    """Tell whether the handler of signals that ``dramatiq`` installs in its worker processes has been called before.

    From the second call on it ends the process, whatever runs.
    """
    return inspect.isfunction(handler) and inspect.getclosurevars(handler).nonlocals.get("running") is False


def stop_taking(worker: Worker) -> bool:
    """Let every thread of ``worker`` end with what it does now, and tell whether all that fetch have ended."""
    for thread in list(worker.workers):
        thread.stop()
    consumers = list(worker.consumers.values())
    for consumer in consumers:
        consumer.stop()
    return not any(consumer.is_alive() for consumer in consumers)


def dead_threads(worker: Worker) -> list[threading.Thread]:
    """Return the threads of ``worker`` that have ended without having been told to."""
    threads: list[WorkerThread | ConsumerThread] = [*list(worker.workers), *list(worker.consumers.values())]
    # One that has not begun yet does not say that it runs, either.
    return [thread for thread in threads if thread.running and not thread.is_alive()]


def give_back_waiting(worker: Worker) -> int:
    """Give back what waits in this process to be run or to be due, and return how much that was to be run.

    Raises:
      ConnectionClosed: When Redis did not say so; the rest goes back when the broker is closed.
    """
    waiting: dict[str, list[MessageProxy]] = {}
    for item in iter_queue(worker.work_queue):
        waiting.setdefault(item.message.queue_name, []).append(item.message)
    for queue_name, messages in waiting.items():
        worker.consumers[queue_name].requeue_messages(messages)
    for consumer in worker.consumers.values():
        if not consumer.is_alive():
            consumer.close()
    return sum(map(len, waiting.values()))


def queues_were_named(worker: Worker) -> bool:
    """Tell whether ``--queues`` says what ``worker`` consumes."""
    return bool(worker.consumer_whitelist)


def restrict_queues(worker: Worker, queues: set[str]) -> None:
    """Make ``worker`` consume ``queues`` only, unless ``--queues`` said already; before it starts its consumers."""
    if not worker.consumer_whitelist:
        worker.consumer_whitelist = queues


def modules_on_command_line(argv: list[str] | None = None) -> list[str] | None:
    """Return the modules that the ``dramatiq`` command was given, or ``None`` in a process it did not start.

    Its worker processes are forked, or spawned with the same ``sys.argv``.
    """
    argv = sys.argv if argv is None else argv
    program = Path(argv[0])
    if program.stem not in {"dramatiq", "dramatiq-gevent"} and program.parts[-2:] != (
        "dramatiq",
        "__main__.py",
    ):
        return None
    # Imported late: it costs every process that only sends.
    from dramatiq.cli import make_argument_parser

    arguments, _ = make_argument_parser().parse_known_args(argv[1:])
    return [name.partition(":")[0] for name in [arguments.broker, *arguments.modules]]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What the ``dramatiq`` command was told; None where it was not, and its default holds."""

    modules: list[str]
    queues: list[str] | None
    #: Folders that it looks for modules in first.
    path: list[str]
    processes: int | None
    threads: int
    #: Milliseconds that it gives jobs to end when it is stopped.
    shutdown_timeout: int | None


def read_command_line(arguments: list[str]) -> CommandLine:
    """Read the arguments of a ``dramatiq`` command.

    Raises:
      ValueError: When the command would refuse them, in its words.
    """
    from dramatiq.cli import make_argument_parser

    parser = make_argument_parser()
    parser.set_defaults(processes=None, worker_shutdown_timeout=None)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            found = parser.parse_args(arguments)
    except SystemExit:
        last = said.getvalue().strip().rpartition("\n")[2]
        raise ValueError(last.partition("error: ")[2] or "it runs no worker") from None
    path = [found.path] if isinstance(found.path, str) else found.path
    modules = [name.partition(":")[0] for name in [found.broker, *found.modules]]
    return CommandLine(modules, found.queues, path, found.processes, found.threads, found.worker_shutdown_timeout)
