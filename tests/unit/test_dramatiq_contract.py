"""What we rely on and Dramatiq does not promise, checked against the installed version."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, MessageProxy, Worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, MiddlewareError, TimeLimit
from dramatiq.worker import ConsumerThread

from middleware import dramatiq_internals as internals


def message(**options: Any) -> Message[None]:
    return Message("q", "a", (), {}, options)


def test_the_worker_stuffs_the_exception_where_we_look() -> None:
    proxy = MessageProxy(message())
    assert internals.exception_of(proxy) is None
    error = ValueError("x")
    proxy.stuff_exception(error)
    assert internals.exception_of(proxy) is error


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

    worker = Worker(broker, worker_timeout=50, worker_threads=1)
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
        (["pytest", "worker.llm"], None),
        (["/x/gunicorn/__main__.py", "app"], None),
        (["-c"], None),
    ],
)
def test_the_command_line_is_read_as_dramatiq_reads_it(argv: list[str], modules: list[str] | None) -> None:
    assert internals.modules_on_command_line(argv) == modules


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
