"""The actors of ``maintenance`` and ``housekeeping`` without servers, and what tells what an exception was."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis.exceptions
from dramatiq import Worker
from dramatiq.middleware import TimeLimitExceeded
from psycopg.errors import QueryCanceled

from db.deadline import set_deadline
from db.failed.expiry import Expired
from middleware.age_limit import AgeLimit
from middleware.classification import Classifier
from middleware.text import class_of
from tests.waiting import eventually
from worker import maintenance
from worker.adoption import stand_in
from worker.broker import broker, settings
from worker.housekeeping import ping, sample_queues
from worker.maintenance import adopt_dead_letters, apply_retention
from worker.scheduler.jobs import jobs_of
from worker.testing import TestBroker


@contextmanager
def nobody_else(_: str) -> Iterator[bool]:
    yield True


def test_when_they_run() -> None:
    rules = {job.name: (job.rule, job.schedule.missed) for job in jobs_of(broker, settings)}
    # Whichever others this process has imported.
    ours = ("worker.maintenance.", "worker.housekeeping.")
    assert {name: rule for name, rule in rules.items() if name.startswith(ours)} == {
        # Nobody is to be told anything here.
        "worker.housekeeping.look_for_alerts": ("off", "skip"),
        "worker.housekeeping.sample_queues": ("* * * * * UTC", "skip"),
        "worker.housekeeping.send_heartbeat": ("off", "skip"),
        "worker.maintenance.adopt_dead_letters": ("47 1 * * * UTC", "once"),
        "worker.maintenance.apply_retention": ("17 2 * * * UTC", "once"),
    }


@pytest.mark.parametrize(
    ("actor", "argument", "value"),
    [
        *(
            (actor, "batch", value)
            for actor in (apply_retention, adopt_dead_letters)
            for value in (0, 10_001, "5", True)
        ),
        (ping, "fail", "no"),
    ],
    ids=str,
)
def test_bad_input_is_a_row_at_the_first_try(
    stub_broker: TestBroker, stub_worker: Worker, actor: Any, argument: str, value: Any
) -> None:
    actor.send(**{argument: value})
    stub_broker.join(actor.queue_name)
    stub_worker.join()
    (failure,) = stub_broker.failed_jobs
    assert (failure.error_type, failure.retry_count, failure.tenant_id) == ("validation_error", 0, None)
    assert failure.error_message.startswith(f"{argument}: must be ")
    assert failure.error_message.endswith(f", not {value!r}")


def test_a_ping_that_is_to_fail_does_so_once(stub_broker: TestBroker, stub_worker: Worker) -> None:
    ping.send(fail=True)
    stub_broker.join(ping.queue_name)
    stub_worker.join()
    (failure,) = stub_broker.failed_jobs
    assert (failure.error_message, failure.retry_count) == ("housekeeping ping failure requested", 0)


def test_without_redis_there_is_nothing_to_do(stub_broker: TestBroker, stub_worker: Worker) -> None:
    for actor in (sample_queues, adopt_dead_letters):
        actor.send()
        stub_broker.join(actor.queue_name)
    stub_worker.join()
    assert stub_broker.failed_jobs == []


def test_samples_that_have_waited_are_no_failures(
    stub_broker: TestBroker, stub_worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One a minute waits while nobody consumes its queue, and MAX_AGE would make a row of each."""
    (limit,) = (m for m in stub_broker.middleware if isinstance(m, AgeLimit))
    monkeypatch.setattr(limit, "max_age", 1)
    for actor in (sample_queues, ping):
        stub_broker.enqueue(actor.message().copy(message_timestamp=1))
        stub_broker.join(actor.queue_name)
    stub_worker.join()
    assert [(f.task_name, f.error_type) for f in stub_broker.failed_jobs] == [(ping.actor_name, "expired")]


def test_retention_goes_on_with_another_message(
    stub_broker: TestBroker, stub_worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter((Expired(stopped=True, payloads=1), Expired(stopped=True, groups=1), Expired(), Expired(stopped=True)))
    batches: list[int] = []
    left: list[int] = []

    def expire(*_: Any, batch: int, **__: Any) -> Expired:
        batches.append(batch)
        return next(runs)

    def expire_once(*_: Any, **__: Any) -> tuple[int, bool]:
        left.append(1)
        return 0, False

    monkeypatch.setattr(maintenance, "GO_ON_AFTER", 1)
    monkeypatch.setattr(maintenance, "alone", nobody_else)
    monkeypatch.setattr(maintenance, "expire", expire)
    monkeypatch.setattr(maintenance, "expire_once", expire_once)
    apply_retention.send(batch=7)
    stub_broker.join(apply_retention.queue_name)
    stub_worker.join()
    assert (batches, len(left)) == ([7, 7, 7], 3)
    assert stub_broker.failed_jobs == []
    # One that removed nothing has no next, and no retry.
    apply_retention.send(batch=7)
    stub_broker.join(apply_retention.queue_name)
    stub_worker.join()
    (failure,) = stub_broker.failed_jobs
    assert (failure.exception_class, failure.retry_count) == ("worker.maintenance.NothingRemoved", 0)
    assert len(batches) == 4


def test_half_of_the_time_is_for_work() -> None:
    try:
        set_deadline(1_000)
        assert not maintenance._half_time()()
        set_deadline(0)
        eventually(maintenance._half_time())
    finally:
        set_deadline(None)
    assert not maintenance._half_time()()


class Own(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (ValueError("a: b\nc"), "validation_error"),
        (KeyError("k"), "validation_error"),
        (RuntimeError(), "application_error"),
        (Own("x"), "application_error"),
        (QueryCanceled("too long"), "timeout"),
        (redis.exceptions.ConnectionError("away"), "upstream_error"),
        (TimeLimitExceeded(), "timeout"),
        (OSError(2, "no"), "application_error"),
    ],
    ids=repr,
)
def test_an_exception_is_known_by_its_traceback(error: BaseException, error_type: str) -> None:
    try:
        try:
            raise LookupError("before")
        except LookupError as e:
            raise error from e
    except BaseException as caught:  # noqa: BLE001 - a time limit is none of Exception's
        text = "".join(traceback.format_exception(caught))
    found = stand_in(text)
    assert found is not None
    assert class_of(found) == class_of(error)
    assert str(found) == str(error)
    assert Classifier()(found) == error_type


@pytest.mark.parametrize(
    "text", ["", "nothing", "Traceback (most recent call last):\n", "Traceback (most recent call last):\n  x\n: y\n"]
)
def test_what_is_no_traceback_says_nothing(text: str) -> None:
    assert stand_in(text) is None


def test_a_class_that_cannot_be_made_is_known_by_name() -> None:
    text = "Traceback (most recent call last):\n  File\n{}: two (1 sub-exception)\n"
    found = stand_in(text.format("ExceptionGroup"))
    assert found is not None
    assert (class_of(found), Classifier()(found)) == ("ExceptionGroup", "application_error")
    # What is no exception is none.
    builtin = stand_in(text.format("print"))
    assert builtin is not None
    assert Classifier()(builtin) == "application_error"
