"""What we rely on and Dramatiq does not promise, checked against the installed version."""

from __future__ import annotations

import inspect
import json
import re
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, MessageProxy, Worker, cli
from dramatiq.asyncio import EventLoopThread
from dramatiq.brokers import redis as redis_module
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, Middleware, MiddlewareError, TimeLimit
from dramatiq.worker import ConsumerThread, WorkerThread

from db.errors import ConfigurationError
from middleware import dramatiq_internals as internals


def message(**options: Any) -> Message[None]:
    return Message("q", "a", (), {}, options)


def test_the_worker_stuffs_the_exception_where_we_look() -> None:
    proxy = MessageProxy(message())
    assert internals.exception_of(proxy) is None
    error = ValueError("x")
    proxy.stuff_exception(error)
    assert internals.exception_of(proxy) is error


def test_a_worker_process_is_handed_what_says_that_it_has_booted() -> None:
    source = inspect.getsource(cli.main)
    assert "event = multiprocessing.Event()" in source
    assert "args=(args, worker_id, StreamablePipe(write_pipe), canteen, event)" in source
    # Before the first message, and after all that the main process looks at then.
    booting = inspect.getsource(cli.worker_process)
    assert booting.index("canteen_try_init") < booting.index("worker.start()") < booting.index("event.set()")
    assert 'emit_before("worker_boot"' in inspect.getsource(Worker.start)


def test_retries_mark_what_they_enqueue() -> None:
    broker = StubBroker(fail_fast_default=False)
    seen: list[bool] = []

    class Spy(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            seen.append(internals.is_dramatiqs_own_enqueue(message))

    broker.add_middleware(Spy())

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, max_backoff=1)
    def job() -> None:
        raise ValueError("x")

    worker = Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    job.send_with_options(delay=1)
    broker.join("default", timeout=20_000)
    worker.stop()
    # Sent, moved when due, retried with a delay, moved when due.
    assert seen == [False, True, True, True]


def test_a_due_message_is_enqueued_by_a_thread_of_the_class_we_know() -> None:
    assert issubclass(ConsumerThread, threading.Thread)
    assert not internals.is_dramatiqs_own_enqueue(message())


def test_the_worker_has_the_whitelist_we_set() -> None:
    worker = Worker(StubBroker())
    internals.restrict_queues(worker, {"a"})
    assert worker.consumer_whitelist == {"a"}
    chosen = Worker(StubBroker(), queues={"b"})
    internals.restrict_queues(chosen, {"a"})
    assert chosen.consumer_whitelist == {"b"}


@pytest.mark.parametrize(
    ("argv", "modules"),
    [
        (["/usr/bin/dramatiq", "worker.llm"], ["worker.llm"]),
        (["dramatiq", "worker.llm", "-p", "1", "-t", "8"], ["worker.llm"]),
        (["dramatiq", "-p", "2", "worker.llm:broker", "worker.maintenance"], ["worker.llm", "worker.maintenance"]),
        (["/x/dramatiq/__main__.py", "worker.llm"], ["worker.llm"]),
        (["dramatiq-gevent", "worker.llm"], ["worker.llm"]),
        (["/usr/bin/worker", "dramatiq", "worker.llm", "-p", "1"], ["worker.llm"]),
        (["/usr/bin/python", "-m", "worker", "dramatiq", "worker.llm"], ["worker.llm"]),
        (["/usr/bin/worker", "failed", "dramatiq"], None),
        (["/usr/bin/python", "-m", "worker", "console"], None),
        (["pytest", "worker.llm"], None),
        (["/x/gunicorn/__main__.py", "app"], None),
        (["-c"], None),
    ],
)
def test_the_command_line_is_read_as_dramatiq_reads_it(argv: list[str], modules: list[str] | None) -> None:
    assert internals.modules_on_command_line(argv) == modules


class TestCommandLine:
    def test_what_was_said_is_told_from_what_was_not(self) -> None:
        silent = internals.read_command_line(["a.b:broker", "c"])
        assert silent == internals.CommandLine(["a.b", "c"], None, ["."], None, 8, None)
        said = internals.read_command_line(
            ["a", "-p", "2", "-t", "4", "-Q", "q", "-P", "x", "y", "--worker-shutdown-timeout", "20000"]
        )
        assert said == internals.CommandLine(["a"], ["q"], ["x", "y"], 2, 4, 20_000)

    @pytest.mark.parametrize("arguments", [[], ["a", "-p", "many"], ["a", "--no-such"]])
    def test_what_dramatiq_refuses_is_refused_in_its_words(self, arguments: list[str]) -> None:
        with pytest.raises(ValueError, match=r"required|invalid int value: 'many'|unrecognized arguments: --no-such"):
            internals.read_command_line(arguments)


class TestLogs:
    def test_the_threads_work_on_messages_in_the_methods_that_we_surround(self) -> None:
        assert "self.process_message(item.message)" in inspect.getsource(WorkerThread.run)
        assert "self.consumers[message.queue_name].post_process_message(" in inspect.getsource(
            WorkerThread.process_message
        )
        assert "self.handle_message(message)" in inspect.getsource(ConsumerThread.run)
        for handles in (ConsumerThread.handle_message, ConsumerThread.handle_delayed_messages):
            assert "self.post_process_message(message)" in inspect.getsource(handles)
        for kind, boot in ((WorkerThread, "worker"), (ConsumerThread, "consumer")):
            source = inspect.getsource(kind.run)
            assert source.index(f'emit_after("{boot}_thread_boot", self)') < source.index("while self.running")

    def test_the_processes_of_the_command_set_up_theirs_where_we_do(self) -> None:
        assert "logger = setup_worker_logging(args, worker_id, logging_pipe)" in inspect.getsource(cli.worker_process)
        assert "logger = setup_fork_logging(args, fork_id, logging_pipe)" in inspect.getsource(cli.fork_process)
        main = inspect.getsource(cli.main)
        assert "target=worker_process" in main
        assert "setup_parent_logging(args, stream=StreamablePipe(parent_write_pipe))" in main
        # What is a child's standard error, and where its lines come out.
        source = inspect.getsource(cli.make_logging_setup)
        assert "sys.stdout = logging_pipe\n        sys.stderr = logging_pipe\n" in source
        watch = inspect.getsource(cli.watch_logs)
        assert "with file_or_stderr(log_filename" in watch
        assert "log_file.write(data)" in watch
        # Frames are as long as this says, and one system call while they are not too long.
        assert 'struct.pack("!i", n)' in inspect.getsource(Connection._send_bytes)  # type: ignore[attr-defined]

    def test_what_the_command_was_told_about_them(self) -> None:
        silent = internals.logging_told(internals.parse_command(["a"]))
        assert silent == internals.ChildLogging(verbose=False, to_file=False, skip=False)
        said = internals.logging_told(internals.parse_command(["a", "-v", "--log-file", "x", "--skip-logging"]))
        assert said == internals.ChildLogging(verbose=True, to_file=True, skip=True)
        # This is no process of its.
        assert internals.child_logging() is None


def test_an_actor_logs_its_arguments_in_the_words_we_replace() -> None:
    assert internals.ACTOR_CALL_LOG in inspect.getsource(dramatiq.Actor.__call__)


def test_only_a_middleware_error_leaves_a_before_hook() -> None:
    class Raises(Middleware):
        def before_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
            raise {"plain": ValueError, "middleware": MiddlewareError}[message.actor_name]

    broker = StubBroker(middleware=[Raises()])
    broker.declare_queue("q")
    with pytest.raises(MiddlewareError):
        broker.enqueue(Message("q", "middleware", (), {}, {}))
    broker.enqueue(Message("q", "plain", (), {}, {}))


def test_the_time_limit_is_where_we_read_it() -> None:
    assert TimeLimit().actor_options == {"time_limit"}
    source = inspect.getsource(TimeLimit.before_process_message)
    assert 'message.options.get("time_limit") or actor.options.get("time_limit", self.time_limit)' in source


def test_deadlines_fire_under_a_lock_that_may_be_taken_twice() -> None:
    deadlines = internals.Deadlines(1_000)
    with deadlines.mu, deadlines.mu:
        deadlines.add_timeout(threading.get_ident(), 0)
    held: list[bool] = []

    class Lock:
        def __enter__(self) -> None:
            held.append(True)

        def __exit__(self, *_: object) -> None:
            held.pop()

    seen: list[bool] = []
    deadlines.mu = Lock()  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("middleware.interrupts.raise_thread_exception", lambda *_: seen.append(bool(held)))
        deadlines._handle_deadlines()
    assert seen == [True]


def test_a_worker_thread_boots_before_its_loop_and_calls_its_own_process_message() -> None:
    source = inspect.getsource(WorkerThread.run)
    boot, call = (
        source.index('emit_after("worker_thread_boot", self)'),
        source.index("self.process_message(item.message)"),
    )
    assert boot < call


class TestWhatStoppingReliesOn:
    def test_the_handler_of_signals_keeps_whether_it_was_called_where_we_look(self) -> None:
        def made_like_it() -> Any:
            running = True

            def termhandler(signum: int, frame: Any) -> None:
                nonlocal running
                running = not running

            return termhandler

        handler = made_like_it()
        assert not internals.was_told_to_stop(handler)
        handler(15, None)
        assert internals.was_told_to_stop(handler)
        source = inspect.getsource(cli.worker_process)
        assert "        nonlocal running\n        if running:\n" in source
        assert "            running = False\n        else:\n" in source

    def test_it_is_installed_before_the_process_boots_and_the_worker_starts_after(self) -> None:
        source = inspect.getsource(cli.worker_process)
        places = [
            source.index("signal.signal(signal.SIGTERM, termhandler)"),
            source.index('broker.emit_after("process_boot")'),
            source.index("worker.start()"),
            source.index("worker.stop(timeout=args.worker_shutdown_timeout)"),
        ]
        assert places == sorted(places)

    def test_the_main_process_ends_all_when_one_does_and_exits_as_that_one_did(self) -> None:
        source = inspect.getsource(cli.main)
        assert "stop_subprocesses(signal.SIGTERM)\n                retcode = proc.exitcode" in source

    def test_threads_say_that_they_run_until_they_are_told_not_to(self) -> None:
        for kind in (WorkerThread, ConsumerThread):
            assert inspect.getsource(kind).count("self.running = True") == 1
            assert "self.running = False" in inspect.getsource(kind.stop)
            assert "while self.running:" in inspect.getsource(kind.run)

    def test_what_waits_in_a_worker_is_where_we_look(self) -> None:
        worker = Worker(StubBroker())
        assert worker.work_queue.empty()
        assert (worker.consumers, worker.workers) == ({}, [])
        assert "item.message for item in iter_queue(self.delay_queue)" in inspect.getsource(ConsumerThread.close)

    def test_coroutines_run_on_the_thread_that_we_replace(self) -> None:
        assert "event_loop_thread.run_coroutine(" in inspect.getsource(dramatiq.asyncio.async_to_sync)
        source = inspect.getsource(EventLoopThread)
        assert "self.loop = asyncio.new_event_loop()" in source
        assert "self.interrupt_check_ival = interrupt_check_ival" in source
        assert "event_loop_thread.stop()" in inspect.getsource(AsyncIO.after_worker_shutdown)


class TestVersion:
    def test_the_installed_one_is_known(self) -> None:
        internals.check_version()

    @pytest.mark.parametrize("version", ["2.2", "2.2.0", "2.2.17", "2.2.1.post1"])
    def test_so_is_every_patch(self, version: str) -> None:
        internals.check_version(version)

    @pytest.mark.parametrize("version", ["2.1.9", "2.3.0", "2.20.0", "3.0.0", "1.2.2"])
    def test_others_are_refused_by_name(self, version: str) -> None:
        with pytest.raises(ConfigurationError, match=f"dramatiq {re.escape(version)} is installed.*2.2 only"):
            internals.check_version(version)

    def test_no_broker_is_made_on_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from worker import broker as module

        def refuse() -> None:
            internals.check_version("9.9.9")

        monkeypatch.setattr(module, "check_version", refuse)
        with pytest.raises(ConfigurationError, match=r"9\.9\.9"):
            module.make_broker(module.settings)


class TestWhatTheLosslessBrokerReliesOn:
    def test_a_consumer_is_replaced_after_a_connection_error(self) -> None:
        source = inspect.getsource(ConsumerThread.run)
        assert "except BrokerConnectionError" in source
        assert "self.delay_queue = PriorityQueue()" in source
        assert "self.consumer = self.broker.consume(" in source

    def test_a_due_message_keeps_its_options_and_is_acknowledged_next(self) -> None:
        source = inspect.getsource(ConsumerThread.handle_delayed_messages)
        enqueue, post = source.index("self.broker.enqueue(new_message)"), source.index("self.post_process_message")
        assert enqueue < post
        assert 'new_message = message.copy(queue_name=queue_name)\n            del new_message.options["eta"]' in source

    def test_ending_a_message_is_tried_again_after_a_connection_error(self) -> None:
        source = inspect.getsource(ConsumerThread.post_process_message)
        assert source.index('emit_before("ack"') < source.index("self.consumer.ack(") < source.index('emit_after("ack"')
        assert "except BrokerConnectionError" in source
        assert "continue" in source

    def test_an_unknown_actor_is_rejected_by_the_consumer_thread(self) -> None:
        source = inspect.getsource(ConsumerThread.handle_message)
        assert "except ActorNotFound as e:\n" in source
        assert "message.stuff_exception(e)" in source

    def test_a_message_is_ended_on_the_queue_it_names(self) -> None:
        assert "self.consumers[message.queue_name].post_process_message" in inspect.getsource(
            WorkerThread.process_message
        )

    def test_every_after_hook_runs_inside_one_emit(self) -> None:
        source = inspect.getsource(WorkerThread.process_message)
        assert source.count('self.broker.emit_after("process_message"') == 2
        assert source.count('self.broker.emit_after("skip_message"') == 1

    def test_a_redis_broker_has_what_we_override_and_read(self) -> None:
        for name in ("consume", "enqueue", "emit_before", "emit_after", "get_actor", "close", "__getattr__"):
            assert hasattr(RedisBroker, name)
        source = inspect.getsource(RedisBroker)
        assert "self.do_qsize(queue_name)" in source
        assert "self.do_purge(name)" in source

    def test_the_keys_and_the_format_are_stocks(self) -> None:
        keys = Path(redis_module.__file__).with_name("redis").joinpath("dispatch.lua").read_text()
        assert 'redis.call("hset", queue_messages, message_id, message_data)' in keys
        assert 'redis.call("rpush", queue_full_name, message_id)' in keys
        assert 'local queue_full_name = namespace .. ":" .. queue_name' in keys
        assert 'local queue_messages = queue_full_name .. ".msgs"' in keys
        assert 'local acks = namespace .. ":__acks__." .. worker_id' in keys
        fields = ["queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp"]
        assert list(json.loads(message().encode())) == fields


def test_a_message_that_is_skipped_is_so_inside_the_handler_of_its_exception() -> None:
    assert "except SkipMessage as e:\n            if message.failed:\n                message.stuff_exception(e)" in (
        inspect.getsource(WorkerThread.process_message)
    )
