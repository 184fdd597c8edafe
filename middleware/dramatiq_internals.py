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
import time
from collections.abc import Callable, Iterable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import dramatiq
from dramatiq import Message, MessageProxy, Worker
from dramatiq import worker as worker_module
from dramatiq.common import iter_queue
from dramatiq.compat import StreamablePipe
from dramatiq.middleware.time_limit import TimeLimitExceeded, _CtypesTimeoutManager
from dramatiq.worker import ConsumerThread, WorkerThread

from db.errors import ConfigurationError
from middleware.interrupts import interrupt

#: What an actor's own logger says of its arguments, at DEBUG.
ACTOR_CALL_LOG = "Received args=%r kwargs=%r."

#: What a thread of a worker does with one message.
Handle = Callable[[MessageProxy], None]

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


def sent_by_somebody(messages: Iterable[Message[Any]]) -> list[Message[Any]]:
    """Return those of ``messages`` that this thread enqueues because somebody sends them: see above."""
    if is_consumer_thread():
        return []
    return [message for message in messages if "requeue_timestamp" not in message.options]


def is_consumer_thread() -> bool:
    """Tell whether this is one of the worker's threads that fetch, and move delayed messages when they are due."""
    return isinstance(threading.current_thread(), ConsumerThread)


class Deadlines(_CtypesTimeoutManager):
    """Keeps the time limits of ``TimeLimit``, and raises none that was removed, nor one while a module is imported.

    Dramatiq's lets go of the lock before it raises: the job may be over by then, and its thread at the next one, or
    waiting for one, where an interrupt ends it.
    """

    def _handle_deadlines(self) -> None:
        now = time.monotonic()
        with self.mu:
            for thread_id, deadline in self.deadlines.items():
                # Whoever imports is looked at again next time.
                if deadline and now >= deadline and interrupt(thread_id, TimeLimitExceeded):
                    self.deadlines[thread_id] = None
                    self.logger.warning("Time limit exceeded. Raising exception in worker thread %r.", thread_id)


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


def delay_nothing(thread: ConsumerThread) -> None:
    """Keep a thread that consumes no delay queue from looking after each message whether a delayed one is due."""
    if not thread.queue_name.endswith(".DQ"):
        thread.handle_delayed_messages = lambda: None  # type: ignore[method-assign]


def wake_when_told(thread: ConsumerThread, wake: Callable[[], object]) -> None:
    """Have ``wake`` called whenever a thread that fetches is told to stop or to pause, right after."""
    stop, pause = thread.stop, thread.pause

    def stop_and_wake() -> None:
        stop()
        wake()

    def pause_and_wake() -> None:
        pause()
        wake()

    thread.stop, thread.pause = stop_and_wake, pause_and_wake  # type: ignore[method-assign]


def surround_messages(thread: WorkerThread | ConsumerThread, surround: Callable[[Handle], Handle]) -> None:
    """Put something around all that a thread, which has begun to run, does with a message."""
    # A consumer's own are the delayed and the undefined ones.
    own = ("process_message",) if isinstance(thread, WorkerThread) else ("handle_message", "post_process_message")
    for name in own:
        setattr(thread, name, surround(getattr(thread, name)))


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


def take_back_last(worker: Worker, queue_name: str, count: int) -> list[MessageProxy]:
    """Return so many of a queue's messages that wait to be run, those that would be last, and let them wait no more."""
    queue = worker.work_queue
    waiting = list(iter_queue(queue))
    of_queue = [item for item in sorted(waiting) if item.message.queue_name == queue_name]
    last = of_queue[max(0, len(of_queue) - count) :]
    going = {id(item) for item in last}
    for item in waiting:
        if id(item) not in going:
            queue.put(item)
    for _ in waiting:
        # Only now, so that who joins the queue does not find it done meanwhile.
        queue.task_done()
    return [item.message for item in last]


def prefetch_is_set() -> bool:
    """Tell whether the environment says how many messages a worker holds of a queue."""
    return worker_module.QUEUE_PREFETCH > 0


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
    # Which need not be parsed once more in there.
    arguments = _given_to_child() if argv is None else None
    if arguments is not None:
        return _modules_of(arguments)
    argv = sys.argv if argv is None else argv
    program = Path(argv[0])
    given = argv[1:]
    if program.stem not in {"dramatiq", "dramatiq-gevent"} and program.parts[-2:] != (
        "dramatiq",
        "__main__.py",
    ):
        if given[:3] == ["-m", "worker", "dramatiq"]:
            del given[:2]
        elif program.stem != "worker":
            return None
        # As in `worker dramatiq`.
        if given[:1] != ["dramatiq"]:
            return None
        del given[0]
    # Imported late: it costs every process that only sends.
    from dramatiq.cli import make_argument_parser

    arguments, _ = make_argument_parser().parse_known_args(given)
    return _modules_of(arguments)


def _modules_of(arguments: Any) -> list[str]:
    return [name.partition(":")[0] for name in [arguments.broker, *arguments.modules]]


class ChildLogging(NamedTuple):
    """What the ``dramatiq`` command was told about the logs of the process at hand, which it started.

    Attributes:
      verbose: Whether to log more.
      to_file: Whether its main process writes them to a file.
      skip: Whether the standard library's logging is somebody else's.
    """

    verbose: bool
    to_file: bool
    skip: bool


def logging_told(arguments: Any) -> ChildLogging:
    """Return what the parsed ``arguments`` of the ``dramatiq`` command say about logs."""
    return ChildLogging(arguments.verbose > 0, arguments.log_file is not None, arguments.skip_logging)


def child_logging() -> ChildLogging | None:
    """Return what this process, if it is a worker process of the ``dramatiq`` command, was told about its logs."""
    arguments = _given_to_child()
    return None if arguments is None else logging_told(arguments)


def _given_to_child() -> Any:
    """Return the command's arguments, parsed, in a worker process that it started; None in others."""
    process = multiprocessing.current_process()
    target = getattr(process, "_target", None)
    if getattr(target, "__module__", None) != "dramatiq.cli" or getattr(target, "__name__", None) != "worker_process":
        return None
    return getattr(process, "_args")[0]  # noqa: B009 - not in the types


def is_log_pipe(stream: object) -> bool:
    """Tell whether ``stream`` leads to Dramatiq's main process, which writes what it gets, a write at a time.

    Two threads that write to it at the same time break the frames: https://github.com/Bogdanp/dramatiq/issues/888.
    """
    return isinstance(stream, StreamablePipe)


def parse_command(arguments: list[str]) -> Any:
    """Parse the arguments of a ``dramatiq`` command, as it does: what it refuses ends this process."""
    from dramatiq.cli import make_argument_parser

    return make_argument_parser().parse_args(arguments)


def run_command(arguments: Any, set_up: Callable[[Any, ChildLogging, bool], object]) -> int:
    """Be the ``dramatiq`` command, with its logging set up by somebody else; return the status to exit with.

    Arguments:
      arguments: The command's, parsed.
      set_up: Called in the main process and, unless ``--use-spawn``, in its children, with the stream to write to, what
        was told about logs, and whether it is a child.
    """
    from dramatiq import cli

    def of_parent(args: Any, *, stream: Any = sys.stderr) -> Any:
        set_up(stream, logging_told(args), False)
        return dramatiq.get_logger("dramatiq", "MainProcess")

    def of_child(prefix: str) -> Callable[[Any, int, Any], Any]:
        def set_up_child(args: Any, child_id: int, logging_pipe: Any) -> Any:
            sys.stdout = sys.stderr = logging_pipe
            set_up(logging_pipe, logging_told(args), True)
            return dramatiq.get_logger("dramatiq", f"{prefix}({child_id})")

        return set_up_child

    cli.setup_parent_logging = of_parent
    cli.setup_worker_logging = of_child("WorkerProcess")
    cli.setup_fork_logging = of_child("ForkProcess")
    return int(cli.main(arguments))


class CommandLine(NamedTuple):
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
    return CommandLine(
        _modules_of(found), found.queues, path, found.processes, found.threads, found.worker_shutdown_timeout
    )
