"""Every way in which Dramatiq rejects a message ends as one failure, described as well as can be."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import dramatiq
import pytest
from dramatiq import Actor, Message, Middleware, Worker
from dramatiq.middleware import SkipMessage

from db.failures import Failure
from db.tenancy import current_tenant
from middleware.dead_letters import MESSAGE_LIMIT, TRACEBACK_LIMIT
from worker.testing import TestBroker

A = UUID(int=0xA)


def declare(broker: TestBroker, fn: Callable[..., Any], **options: Any) -> Actor[..., Any]:
    name = f"test.{uuid.uuid4().hex}"
    return dramatiq.actor(broker=broker, actor_name=name, queue_name="attribution", **options)(fn)


def outcome(broker: TestBroker, worker: Worker) -> Failure:
    broker.join("attribution", timeout=20_000)
    worker.join()
    (failure,) = broker.failed_jobs
    return failure


def failing(error: BaseException) -> Callable[..., None]:
    def job(*_: Any, **__: Any) -> None:
        raise error

    return job


class TestReasons:
    def test_retries_exhausted(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        before = datetime.now(UTC)
        actor = declare(stub_broker, failing(RuntimeError("gone wrong")), max_retries=2, min_backoff=1, max_backoff=1)
        sent = actor.send_with_options(args=(1, {"a": 2}), kwargs={"window": "w"}, tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert failure.task_id == sent.message_id
        assert failure.task_name == actor.actor_name
        assert failure.queue == "attribution"
        assert failure.worker is not None
        assert failure.worker.endswith(f"/{os.getpid()}")
        assert failure.task_args == [1, {"a": 2}]
        assert failure.task_kwargs == {"window": "w"}
        assert failure.tenant_id == A
        assert failure.error_type == "application_error"
        assert failure.exception_class == "RuntimeError"
        assert failure.error_message == "gone wrong"
        assert failure.traceback is not None
        assert failure.traceback.endswith("RuntimeError: gone wrong\n")
        assert failure.retry_count == 2
        assert failure.last_retry_at is not None
        assert before <= failure.last_retry_at <= failure.failed_at <= datetime.now(UTC)
        assert failure.correlation_id == UUID(sent.message_id)

    def test_throws(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        declare(stub_broker, failing(ValueError("bad input")), throws=ValueError).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert (failure.error_type, failure.retry_count, failure.last_retry_at) == ("validation_error", 0, None)

    def test_throws_after_a_retry(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        errors = [RuntimeError("first"), ValueError("then")]

        def job() -> None:
            raise errors.pop(0)

        declare(stub_broker, job, throws=ValueError, min_backoff=1, max_backoff=1).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert (failure.error_message, failure.retry_count) == ("then", 1)

    def test_age_limit(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        actor = declare(stub_broker, lambda: None, max_age=1)
        old = actor.message_with_options(tenant_id=str(A)).copy(message_timestamp=int(time.time() * 1000) - 60_000)
        stub_broker.enqueue(old)
        failure = outcome(stub_broker, stub_worker)
        assert (failure.error_type, failure.exception_class) == ("expired", "middleware.errors.MessageExpired")
        assert failure.tenant_id == A

    def test_age_limit_of_a_message_that_ran_before(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        # Three executions, so two after the first; this delivery adds none.
        actor = declare(stub_broker, lambda: None, max_age=1)
        old = actor.message_with_options(tenant_id=str(A), retries=3, requeue_timestamp=0)
        stub_broker.enqueue(old.copy(message_timestamp=0))
        assert outcome(stub_broker, stub_worker).retry_count == 2

    def test_time_limit(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def endless() -> None:
            while True:
                time.sleep(0.01)

        # Started by hand: the worker of the command line does it when a process boots.
        stub_broker.emit_after("process_boot")
        declare(stub_broker, endless, time_limit=100, max_retries=0).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert failure.error_type == "timeout"
        assert failure.exception_class == "dramatiq.middleware.time_limit.TimeLimitExceeded"
        assert "endless" in (failure.traceback or "")

    def test_unknown_actor(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        message: Message[None] = Message("attribution", "gone.job", (1,), {"token": "hunter2"}, {"tenant_id": str(A)})
        stub_broker.enqueue(message)
        failure = outcome(stub_broker, stub_worker)
        assert (failure.error_type, failure.task_name, failure.tenant_id) == ("unknown_actor", "gone.job", A)
        assert failure.task_kwargs == {"token": "[redacted]"}

    def test_rejected_without_an_exception(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        class Reject(Middleware):
            def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
                message.fail()

        stub_broker.add_middleware(Reject())
        declare(stub_broker, lambda: None).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert (failure.error_type, failure.exception_class) == ("unknown", "(none)")

    def test_skipped_by_a_users_middleware(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        class Closed(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                message.fail()
                raise SkipMessage("closed on Sundays")

        stub_broker.add_middleware(Closed())
        declare(stub_broker, lambda: None).send_with_options(tenant_id=A)
        assert outcome(stub_broker, stub_worker).error_message == "closed on Sundays"

    def test_async(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        async def job() -> None:
            raise KeyError("nothing here")

        declare(stub_broker, job, max_retries=0).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert (failure.exception_class, failure.error_message) == ("KeyError", "'nothing here'")

    def test_system_exit(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        declare(stub_broker, failing(SystemExit(3)), max_retries=0).send_with_options(tenant_id=A)
        assert outcome(stub_broker, stub_worker).exception_class == "SystemExit"

    def test_a_success_leaves_nothing(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        declare(stub_broker, lambda: None).send_with_options(tenant_id=A)
        stub_broker.join("attribution", timeout=20_000)
        stub_worker.join()
        assert stub_broker.failed_jobs == []


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not telling")


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class Tells(Exception):
    @property
    def orig(self) -> object:
        raise RuntimeError("not telling")


class TestHostile:
    def test_an_exception_that_cannot_be_classified(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, Tells("x"), 1)
        assert (failure.error_type, failure.error_message, failure.task_args) == ("unknown", "x", [1])

    def fail_with(self, broker: TestBroker, worker: Worker, error: BaseException, *args: Any, **kwargs: Any) -> Failure:
        actor = declare(broker, failing(error), max_retries=0)
        actor.send_with_options(args=args, kwargs=kwargs, tenant_id=A)
        return outcome(broker, worker)

    def test_str_raises(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, Mute())
        assert failure.error_message == "(the exception's __str__ raised RuntimeError)"

    def test_str_exits(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, Exits())
        assert failure.error_message == "(the exception's __str__ raised SystemExit)"
        assert all(thread.is_alive() for thread in stub_worker.workers)

    def test_secrets_by_the_name_of_a_starred_parameter(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def job(first: str, *secrets: str) -> None:
            raise ValueError("x")

        declare(stub_broker, job, max_retries=0).send_with_options(args=("a", "hunter2", "hunter2"), tenant_id=A)
        assert outcome(stub_broker, stub_worker).task_args == ["a", "[redacted]", "[redacted]"]

    def test_nul_and_surrogates(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, ValueError("a\x00b\ud800"), "c\x00\ud800", k={"d\x00": 1})
        assert failure.error_message == "a\\x00b\\ud800"
        assert failure.task_args == ["c\\x00\\ud800"]
        assert failure.task_kwargs == {"k": {"d\\x00": 1}}

    def test_nan(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, ValueError("x"), float("nan"), float("inf"))
        assert failure.task_args == ["nan", "inf"]

    def test_ten_megabytes_of_arguments(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, ValueError("x"), "y" * 10_000_000, list(range(100_000)))
        assert failure.task_args is not None
        assert failure.task_args[0].endswith("… [9,995,904 more characters]")
        assert failure.task_args[1][-1] == "… [99,000 more]"

    def test_a_long_message_says_how_much_is_missing(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        failure = self.fail_with(stub_broker, stub_worker, ValueError("z" * 1_000_000))
        assert failure.error_message == "z" * MESSAGE_LIMIT + "… [990,000 more characters]"
        assert len(failure.traceback or "") < TRACEBACK_LIMIT + 200
        assert "characters cut]" in (failure.traceback or "")

    def test_a_traceback_without_end(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def job() -> None:
            job()

        declare(stub_broker, job, max_retries=0).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)
        assert failure.exception_class == "RecursionError"
        assert "frames left out]" in (failure.traceback or "")

    def test_secrets_in_message_traceback_and_arguments(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def login(user: str, password: str, options: dict[str, str]) -> None:
            raise ValueError("cannot reach postgres://app:hunter2@db/x with token=hunter2")

        declare(stub_broker, login, max_retries=0).send_with_options(
            args=("ada", "hunter2"), kwargs={"options": {"api_key": "hunter2"}}, tenant_id=A
        )
        failure = outcome(stub_broker, stub_worker)
        assert "hunter2" not in repr(failure)
        assert failure.task_args == ["ada", "[redacted]"]

    def test_ids_of_any_kind(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        actor = declare(stub_broker, failing(ValueError("x")), max_retries=0)
        options = {"tenant_id": str(A), "correlation_id": str(A)}
        stub_broker.enqueue(Message("attribution", actor.actor_name, (), {}, options, message_id="m" * 400))
        failure = outcome(stub_broker, stub_worker)
        assert len(failure.task_id) == 64
        assert failure.correlation_id == A


def test_the_veto_keeps_the_message_until_it_is_recorded(stub_broker: TestBroker, stub_worker: Worker) -> None:
    from middleware.dead_letters import DeadLetters

    attempts: list[UUID | None] = []
    (dead_letters,) = (m for m in stub_broker.middleware if isinstance(m, DeadLetters))
    record = stub_broker.failed_jobs.append

    def away_at_first(failure: Failure) -> None:
        attempts.append(current_tenant())
        if len(attempts) == 1:
            raise ConnectionError("Postgres is away")
        record(failure)

    dead_letters._record = away_at_first
    declare(stub_broker, failing(ValueError("x")), max_retries=0).send_with_options(tenant_id=A)
    failure = outcome(stub_broker, stub_worker)
    assert attempts == [A, A]
    assert failure.error_message == "x"
    assert len(stub_broker.dead_letters) == 1


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dramatiq waits five seconds between two attempts to let go of a message.
    monkeypatch.setattr("dramatiq.worker.POST_PROCESS_MESSAGE_RETRY_DELAY_SECS", 0.01)
