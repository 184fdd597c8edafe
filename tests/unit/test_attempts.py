"""What a message tells of its executions: it travels with each retry, and ends in the failure."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import dramatiq
import pytest
from dramatiq import Actor, Message, MessageProxy, Middleware, Worker
from dramatiq.errors import Retry
from hypothesis import given
from hypothesis import strategies as st

from db.failures import ATTEMPTS_KEPT, Attempt, Failure
from middleware.attempts import MESSAGE_KEPT, NAME_KEPT, OPTION, attempt, redacted, travelled
from middleware.crash_evidence import worker_lost
from middleware.redaction import Redactor
from middleware.safe_retries import SafeRetries
from worker.testing import TestBroker

A = UUID(int=0xA)
AT = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)


def entry(n: int = 0, **changes: Any) -> dict[str, Any]:
    made = Attempt(AT + timedelta(minutes=n), "host/7", "ValueError", f"number {n}", "shop.orders:close").as_json()
    return {**made, **changes}


def declare(broker: TestBroker, fn: Callable[..., Any], **options: Any) -> Actor[..., Any]:
    return dramatiq.actor(broker=broker, actor_name=f"test.{uuid.uuid4().hex}", queue_name="attribution", **options)(fn)


def outcome(broker: TestBroker, worker: Worker) -> list[Failure]:
    broker.join("attribution", timeout=20_000)
    worker.join()
    return broker.failed_jobs


def messages(failure: Failure) -> list[str]:
    assert failure.attempts is not None
    return [one["message"] for one in failure.attempts]


def message_of(actor: Actor[..., Any], retries: int, attempts: Any) -> Message[Any]:
    """Return what a retry would be, whoever made it."""
    options: dict[str, Any] = {"retries": retries, "requeue_timestamp": 0, OPTION: attempts}
    return actor.message_with_options(tenant_id=str(A), **options)


class Fails:
    """A job that says how often it has run."""

    def __init__(self, times: int = 1_000) -> None:
        self.ran = 0
        self.times = times

    def __call__(self, *_: object) -> None:
        self.ran += 1
        if self.ran <= self.times:
            raise RuntimeError(f"number {self.ran}")


class TestTravelling:
    def test_each_execution_is_told_of_once(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        before = datetime.now(UTC)
        declare(stub_broker, Fails(), max_retries=2).send_with_options(tenant_id=A)
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == ["number 1", "number 2", "number 3"]
        assert failure.attempts is not None
        times = [datetime.fromisoformat(one["at"]) for one in failure.attempts]
        assert times == sorted(times)
        assert before - timedelta(milliseconds=1) <= times[0]
        assert times[-1] <= failure.failed_at
        assert {one["worker"] for one in failure.attempts} == {failure.worker}
        assert {one["exception_class"] for one in failure.attempts} == {"RuntimeError"}
        assert {one["place"] for one in failure.attempts} == {"tests.unit.test_attempts:Fails.__call__"}
        assert failure.place == "tests.unit.test_attempts:Fails.__call__"

    def test_the_first_are_forgotten_first(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        declare(stub_broker, Fails(), max_retries=13).send_with_options(tenant_id=A)
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == [f"number {n}" for n in range(14 - ATTEMPTS_KEPT + 1, 15)]

    def test_one_that_is_not_retried(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        declare(stub_broker, Fails(), throws=RuntimeError).send_with_options(tenant_id=A)
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == ["number 1"]

    def test_a_retry_that_was_asked_for(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        def job() -> None:
            raise Retry("later", delay=1)

        declare(stub_broker, job, max_retries=1).send_with_options(tenant_id=A)
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == ["later", "later"]

    def test_a_retry_that_another_middleware_undoes(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        class Enough(Middleware):
            def after_process_message(self, broker: Any, message: Any, **_: Any) -> None:
                # What SafeRetries enqueued is on its way in this broker; ours takes it back.
                message.options["max_retries"] = 0
                message.fail()

        # First in the list is last in after hooks.
        stub_broker.middleware.insert(0, Enough())
        declare(stub_broker, Fails(1), max_retries=1).send_with_options(tenant_id=A)
        failure = outcome(stub_broker, stub_worker)[0]
        assert messages(failure) == ["number 1"]

    def test_a_retry_that_cannot_be_made(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        seen: list[dict[str, Any]] = []

        class Looks(Middleware):
            def before_nack(self, broker: Any, message: Any) -> None:
                seen.append(dict(message.options))

        def retry_when(retries: int, error: BaseException) -> bool:
            if retries:
                raise KeyError("not thought of")
            return True

        stub_broker.add_middleware(Looks())
        declare(stub_broker, Fails(), retry_when=retry_when).send_with_options(tenant_id=A)
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == ["number 1", "number 2"]
        # As it was delivered: with one execution.
        assert [one["message"] for one in seen[0][OPTION]] == ["number 1"]
        assert seen[0]["retries"] == 1

    def test_what_expired_before_it_ran_again(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        actor = declare(stub_broker, Fails(), max_age=1)
        old = message_of(actor, retries=2, attempts=[entry(1)])
        stub_broker.enqueue(old.copy(message_timestamp=0))
        (failure,) = outcome(stub_broker, stub_worker)
        assert failure.error_type == "expired"
        assert messages(failure) == ["number 1"]

    def test_what_never_ran(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        stub_broker.enqueue(Message("attribution", "gone.job", (), {}, {"tenant_id": str(A)}))
        (failure,) = outcome(stub_broker, stub_worker)
        assert failure.attempts == []

    def test_a_success_whose_follow_up_was_not_sent(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        actor = declare(stub_broker, lambda: None)
        message = actor.message_with_options(tenant_id=str(A), on_success="nobody", requeue_timestamp=0)
        stub_broker.enqueue(message)
        (failure,) = outcome(stub_broker, stub_worker)
        assert failure.attempts is not None
        assert [one["exception_class"] for one in failure.attempts] == ["middleware.errors.FollowUpNotSent"]

    def test_a_success_after_failures_leaves_nothing(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        job = Fails(2)
        declare(stub_broker, job, max_retries=3).send_with_options(tenant_id=A)
        assert outcome(stub_broker, stub_worker) == []
        assert job.ran == 3


class TestOthers:
    """What follows from a message, or is sent anew, tells of its own executions only."""

    def test_the_next_of_a_pipeline(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        first = declare(stub_broker, Fails(1), max_retries=1)
        second = declare(stub_broker, Fails(), max_retries=1)
        pipe = first.message_with_options(tenant_id=str(A)) | second.message_with_options(tenant_id=str(A))
        pipe.run()
        (failure,) = outcome(stub_broker, stub_worker)
        assert failure.task_name == second.actor_name
        assert messages(failure) == ["number 1", "number 2"]

    @pytest.mark.parametrize("option", ["on_failure", "on_retry_exhausted", "on_success"])
    def test_callbacks(self, stub_broker: TestBroker, stub_worker: Worker, option: str) -> None:
        handler = declare(stub_broker, Fails(), max_retries=0)
        actor = declare(stub_broker, Fails(1 if option == "on_success" else 1_000), max_retries=1)
        options: dict[str, Any] = {option: handler.actor_name}
        actor.send_with_options(tenant_id=A, **options)
        failures = [f for f in outcome(stub_broker, stub_worker) if f.task_name == handler.actor_name]
        assert failures
        assert all(len(f.attempts or []) == 1 for f in failures)

    def test_one_that_is_sent_anew_with_the_options_of_another(
        self, stub_broker: TestBroker, stub_worker: Worker
    ) -> None:
        actor = declare(stub_broker, Fails(), max_retries=0)
        stub_broker.enqueue(actor.message_with_options(tenant_id=str(A), dramaturg_attempts=[entry(7)]))
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == ["number 1"]

    def test_options_of_others_stay(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        seen: list[object] = []

        class Looks(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                seen.append(message.options.get("theirs"))

        stub_broker.add_middleware(Looks())
        declare(stub_broker, Fails(), max_retries=1).send_with_options(tenant_id=A, theirs={"a": [1]})
        outcome(stub_broker, stub_worker)
        assert seen == [{"a": [1]}, {"a": [1]}]


MALFORMED: dict[str, Any] = {
    "null": None,
    "a string": "hunter2",
    "a number": 5,
    "an object": entry(),
    "numbers": [1, 2],
    "lists": [[entry()]],
    "a part missing": [{name: value for name, value in entry().items() if name != "place"}],
    "no time": [entry(at="yesterday")],
    "a time without a zone": [entry(at="2025-01-01T00:00:00")],
    "a time without end": [entry(at="2025" * 1_000_000)],
    "a number for a text": [entry(message=5)],
    "null for a text": [entry(exception_class=None)],
    "nested without end": [entry(message=json.loads("[" * 900 + "]" * 900))],
}


class TestMalformed:
    @pytest.mark.parametrize("given", MALFORMED.values(), ids=MALFORMED)
    def test_it_harms_nothing_and_is_left_out(self, stub_broker: TestBroker, stub_worker: Worker, given: Any) -> None:
        actor = declare(stub_broker, Fails(), max_retries=4)
        stub_broker.enqueue(message_of(actor, retries=3, attempts=given))
        (failure,) = outcome(stub_broker, stub_worker)
        assert messages(failure) == ["number 1", "number 2"]
        assert failure.retry_count == 4

    def test_what_is_well_formed_beside_it_is_kept(self) -> None:
        given = [entry(1), 5, entry(2)]
        assert [one["message"] for one in travelled({OPTION: given}, 3)] == ["number 1", "number 2"]

    def test_no_more_than_there_were_executions(self) -> None:
        given = [entry(n) for n in range(1_000)]
        assert travelled({OPTION: given}, 0) == []
        assert [one["message"] for one in travelled({OPTION: given}, 2)] == ["number 998", "number 999"]
        assert len(travelled({OPTION: given}, 1_000)) == ATTEMPTS_KEPT

    def test_nothing_but_the_parts_and_none_too_long(self) -> None:
        big = "x" * 1_000_000
        given = entry(message=big, worker=big, exception_class=big, place=big, extra=big)
        (one,) = travelled({OPTION: [given]}, 1)
        assert {name: len(value) for name, value in one.items() if name != "at"} == {
            "worker": NAME_KEPT,
            "exception_class": NAME_KEPT,
            "message": MESSAGE_KEPT,
            "place": NAME_KEPT,
        }

    @pytest.mark.parametrize("field", ["message", "worker", "exception_class", "place"])
    def test_secrets_are_taken_out_for_the_row(self, stub_broker: TestBroker, stub_worker: Worker, field: str) -> None:
        actor = declare(stub_broker, Fails(), max_retries=1)
        given = [{**entry(), field: "postgres://app:hunter2@db/x\x00\ud800"}]
        stub_broker.enqueue(message_of(actor, retries=1, attempts=given))
        (failure,) = outcome(stub_broker, stub_worker)
        assert len(failure.attempts or []) == 2
        assert failure.attempts is not None
        assert failure.attempts[0][field] == "postgres://app:[redacted]@db/x\\x00\\ud800"

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=50),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*entry()]), inner),
        )
    )
    def test_any(self, given: Any) -> None:
        found = redacted(travelled({OPTION: given}, 3), Redactor())
        assert json.loads(json.dumps(found)) == found


class TestOne:
    def test_a_long_message_with_a_secret(self) -> None:
        error = ValueError("token=hunter2 " + "x" * 10_000)
        one = attempt("test.job", error, AT, "h/1", Redactor())
        assert len(one["message"]) == MESSAGE_KEPT
        assert one["message"].startswith("token=[redacted] xxx")
        assert one["message"].endswith("x…")
        # Read, and recorded, it is the same.
        assert redacted(travelled({OPTION: [one]}, 1), Redactor()) == [one]

    def test_a_secret_across_the_cut(self) -> None:
        error = ValueError("x" * (MESSAGE_KEPT - 20) + " postgres://app:hunter2hunter2@db/x")
        assert "hunter2" not in attempt("test.job", error, AT, "h/1", Redactor())["message"]

    def test_without_an_exception(self) -> None:
        one = attempt("test.job", None, AT, "h/1", Redactor())
        assert (one["exception_class"], one["message"], one["place"]) == ("(none)", "", None)

    def test_what_cannot_be_told_keeps_no_retry(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        class Broken(Redactor):
            def text(self, text: str, limit: int | None = None) -> str:
                raise RuntimeError("broken")

        (retries,) = (m for m in stub_broker.middleware if isinstance(m, SafeRetries))
        retries._redact = Broken()
        job = Fails(1)
        declare(stub_broker, job, max_retries=1).send_with_options(tenant_id=A)
        assert outcome(stub_broker, stub_worker) == []
        assert job.ran == 2

    def test_when_it_began(self) -> None:
        times = iter([AT, AT + timedelta(hours=1)])
        retries = SafeRetries(clock=lambda: next(times), worker_name="dyno")
        broker = TestBroker([retries])
        broker.declare_queue("attribution")
        actor = declare(broker, Fails(), max_retries=1)
        message = MessageProxy(actor.message())
        retries.before_process_message(broker, message)
        retries.after_process_message(broker, message, exception=RuntimeError("x"))
        (one,) = message.options[OPTION]
        assert (one["at"], one["worker"]) == ("2025-01-02T03:04:05.000+00:00", f"dyno/{os.getpid()}")


def test_lost_starts_are_attempts() -> None:
    facts = {"worker": "host/7", "peak": 93}
    error = worker_lost([{"started": 1_000, "silent": "3000", "facts": facts}, {"started": 5_000, "silent": 7_000}])
    assert [one.as_json() for one in error.attempts] == [
        {
            "at": "1970-01-01T00:00:01.000+00:00",
            "worker": "host/7",
            "exception_class": "middleware.errors.WorkerLost",
            "message": "its worker was lost: nothing was heard of it after 1970-01-01T00:00:03.000+00:00; "
            "peak memory 93 MiB as of its last sign of life",
            "place": None,
        },
        {
            "at": "1970-01-01T00:00:05.000+00:00",
            "worker": None,
            "exception_class": "middleware.errors.WorkerLost",
            "message": "its worker was lost: nothing was heard of it after 1970-01-01T00:00:07.000+00:00",
            "place": None,
        },
    ]
