"""Every line that a message causes says so, and no other does."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import uuid
from typing import Any
from uuid import UUID

import dramatiq
from dramatiq import Message, MessageProxy, Middleware, Worker
from loguru import logger

from db.tenancy import tenant_context
from middleware.log_context import Job, current_job, lines_of
from tests.logged import Written, logging_to
from worker.testing import TestBroker

A, B = UUID(int=0xA), UUID(int=0xB)
FIELDS = ("queue", "actor", "message_id", "tenant_id", "correlation_id", "attempt")


def declare(broker: TestBroker, fn: Any, **options: Any) -> dramatiq.Actor[..., Any]:
    name = f"test.{uuid.uuid4().hex}"
    return dramatiq.actor(broker=broker, actor_name=name, queue_name="attribution", **options)(fn)


def finish(broker: TestBroker, worker: Worker) -> None:
    broker.join("attribution", timeout=20_000)
    worker.join()


def context(line: dict[str, Any]) -> tuple[Any, ...] | None:
    found = tuple(line[name] for name in FIELDS if name in line)
    assert len(found) in {0, len(FIELDS)}, line
    return found or None


def said(written: Written, message: str) -> list[tuple[Any, ...] | None]:
    return [context(line) for line in written.lines() if message in line["message"]]


class TestJobs:
    def test_from_wherever_it_logs(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        log = logging.getLogger("anybody")

        def job() -> None:
            logger.info("here")
            log.info("here")
            thread = threading.Thread(target=contextvars.copy_context().run, args=(log.info, "here"))
            thread.start()
            thread.join()
            alone = threading.Thread(target=log.info, args=("alone",))
            alone.start()
            alone.join()

        async def async_job() -> None:
            logger.info("here")
            await asyncio.sleep(0)
            await asyncio.to_thread(log.info, "here")
            await asyncio.create_task(later())

        async def later() -> None:
            log.info("here")

        actors = [declare(stub_broker, job), declare(stub_broker, async_job)]
        with logging_to() as written:
            sent = [actor.send_with_options(tenant_id=A, correlation_id=B) for actor in actors]
            finish(stub_broker, stub_worker)
        found = said(written, "here")
        for message in sent:
            expected = ("attribution", message.actor_name, message.message_id, str(A), str(B), 1)
            assert found.count(expected) == 3
        assert len(found) == 6
        # Threads of Python's own carry nothing.
        assert said(written, "alone") == [None]

    def test_from_its_receipt_to_its_end(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def job() -> None:
            raise ValueError("broken")

        actor = declare(stub_broker, job, max_retries=1)
        with logging_to(LOG_LEVEL="DEBUG") as written:
            sent = actor.send_with_options(tenant_id=A)
            finish(stub_broker, stub_worker)
        first = ("attribution", actor.actor_name, sent.message_id, str(A), sent.message_id, 1)
        second = (*first[:-1], 2)
        assert said(written, "Received message ") == [first, second]
        assert said(written, "Received arguments") == [first, second]
        assert said(written, "Failed to process message") == [first, second]
        assert said(written, "Retrying message") == [first]
        assert said(written, "Retries exceeded") == [second]
        # At the end of the first when the options say already that there was one more; and what waits to be due is it.
        assert said(written, "Acknowledging message") == [first, second]
        assert said(written, "Rejecting message") == [second]
        lines = written.lines()
        assert {line["logger"] for line in lines if context(line) is None} <= {
            f"dramatiq.worker.{name}" for name in ("ConsumerThread(attribution)", "_WorkerMiddleware", "Worker")
        } | {"asyncio"}

    def test_in_every_hook_in_which_it_ends(self, stub_broker: TestBroker) -> None:
        class Logging(Middleware):
            def before_ack(self, broker: Any, message: Any) -> None:
                logger.info("hook")

            before_nack = after_ack = after_nack = before_process_message = before_ack

            def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
                logger.info("hook")

            after_skip_message = after_process_message

        stub_broker.add_middleware(Logging())
        fails = declare(stub_broker, lambda: 1 / 0, max_retries=0)
        works = declare(stub_broker, lambda: None)
        worker = Worker(stub_broker, worker_timeout=20, worker_threads=1)
        worker.start()
        try:
            with logging_to() as written:
                for actor in (fails, works):
                    actor.send_with_options(tenant_id=A)
                # No tenant, so that it is not run.
                stub_broker.enqueue(Message("attribution", works.actor_name, (), {}, {"requeue_timestamp": 1}))
                finish(stub_broker, worker)
        finally:
            worker.stop()
        found = said(written, "hook")
        assert None not in found
        assert len(found) == 11
        assert [one[3] for one in found if one is not None].count(None) == 3

    def test_what_no_worker_knows_and_what_is_not_due(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        actor = declare(stub_broker, lambda: logger.info("here"))
        unknown: Message[Any] = Message("attribution", "nobody", (), {}, {"tenant_id": str(A), "requeue_timestamp": 1})
        with logging_to(LOG_LEVEL="DEBUG") as written:
            stub_broker.enqueue(unknown)
            sent = actor.send_with_options(tenant_id=A, delay=5)
            finish(stub_broker, stub_worker)
        nobody = ("attribution", "nobody", unknown.message_id, str(A), unknown.message_id, 1)
        assert said(written, "Received message for undefined actor") == [nobody]
        assert said(written, "Rejecting message") == [nobody]
        known = ("attribution", actor.actor_name, sent.message_id, str(A), sent.message_id, 1)
        assert said(written, "onto delay queue") == [known]
        assert said(written, "here") == [known]
        assert set(said(written, "Acknowledging message")) == {known}

    def test_nothing_stays_for_the_next(self, stub_broker: TestBroker) -> None:
        seen: list[Any] = []
        worker = Worker(stub_broker, worker_timeout=20, worker_threads=1)
        worker.start()
        try:
            (thread,) = worker.workers
            before = thread.work_queue.get

            def get(*args: Any, **kwargs: Any) -> Any:
                seen.append(current_job())
                return before(*args, **kwargs)

            thread.work_queue.get = get  # type: ignore[method-assign]
            for error in (None, ValueError("x"), SystemExit(1)):
                declare(stub_broker, raising(error), max_retries=0).send_with_options(tenant_id=A)
            finish(stub_broker, worker)
        finally:
            worker.stop()
        assert len(stub_broker.failed_jobs) == 2
        assert len(seen) >= 3
        assert set(seen) == {None}

    def test_what_it_sends_is_said_by_itself(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        child = declare(stub_broker, lambda: logger.info("child"))

        class Logging(Middleware):
            def after_enqueue(self, broker: Any, message: Any, delay: Any) -> None:
                logger.info("sent {}", message.actor_name)

        stub_broker.add_middleware(Logging())
        parent = declare(stub_broker, lambda: child.send())
        with logging_to() as written:
            sent = parent.send_with_options(tenant_id=A)
            finish(stub_broker, stub_worker)
        of_parent = ("attribution", parent.actor_name, sent.message_id, str(A), sent.message_id, 1)
        assert said(written, f"sent {parent.actor_name}") == [None]
        assert said(written, f"sent {child.actor_name}") == [of_parent]
        (of_child,) = said(written, "child")
        assert of_child is not None
        assert of_child[1] == child.actor_name
        # The same piece of work.
        assert of_child[3:5] == (str(A), sent.message_id)

    def test_of_no_tenant_and_of_one_that_it_works_for(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def job() -> None:
            logger.info("nobodys")
            with tenant_context(B):
                logger.info("theirs")

        actor = declare(stub_broker, job, tenant_scoped=False)
        with logging_to() as written:
            sent = actor.send()
            finish(stub_broker, stub_worker)
        assert said(written, "nobodys") == [
            ("attribution", actor.actor_name, sent.message_id, None, sent.message_id, 1)
        ]
        assert said(written, "theirs") == [
            ("attribution", actor.actor_name, sent.message_id, str(B), sent.message_id, 1)
        ]


def raising(error: BaseException | None) -> Any:
    def job() -> None:
        if error is not None:
            raise error

    return job


def test_outside_of_a_job_a_tenant_is_not_one() -> None:
    with tenant_context(A), logging_to() as written:
        logger.info("one")
    assert context(written.line()) is None


def test_whatever_the_message_is() -> None:
    options = {"tenant_id": ["no"], "correlation_id": "\ud800", "retries": "many"}
    message: Message[Any] = Message("q\ud800", "a" * 1_000, (), {}, options, message_id="\x00")
    fields = Job(MessageProxy(message)).fields()
    assert fields["queue"] == "q\\ud800"
    assert len(fields["actor"]) < 300
    assert fields["message_id"] == "\\x00"
    assert fields["tenant_id"] is None
    assert UUID(fields["correlation_id"])
    assert fields["attempt"] == 1


def test_another_thread_may_speak_of_it() -> None:
    message = MessageProxy(Message("q", "a", (), {}, {"retries": 2}))
    with logging_to() as written:
        with lines_of(message):
            logger.info("one")
        logger.info("two")
        # A retry's, by then.
        message.options["retries"] = 3
        with lines_of(message):
            logger.info("three")
    one, two, three = written.lines()
    assert (one["actor"], one["attempt"]) == (three["actor"], three["attempt"]) == ("a", 3)
    assert context(two) is None
