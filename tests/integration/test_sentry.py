"""Sentry is told of each final failure once, without a secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import sentry_sdk
from loguru import logger
from opentelemetry.sdk.trace import TracerProvider

from db.failed_jobs import failed_job_id
from db.failures import Failure
from middleware.dead_letters import DeadLetters
from middleware.errors import AlreadyRecorded, WorkerLost
from middleware.sentry import Sentry
from middleware.sentry_client import EXCEPTIONS
from tests.collector import Collector, running_collector
from tests.integration.nothing_lost import QUEUE, TENANT, Side, kept, ours, put
from tests.integration.test_tracing import tracing
from tests.servers import free_port
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture
def told(side: Make, redis_url: str, collector: Collector) -> Side:
    """A broker whose failures Sentry is told of."""
    return side(lambda url: ours(url, SENTRY_DSN=collector.dsn, MIN_BACKOFF="1", MAX_BACKOFF="1"), redis_url)


def sentry_of(side: Side) -> Sentry:
    return next(m for m in side.broker.middleware if isinstance(m, Sentry))


def drained(side: Side) -> None:
    """Wait until nothing is left to do, and what there is to tell is told."""
    eventually(lambda: kept(side.client) == 0)


def test_one_event_for_three_tries_and_none_where_the_last_succeeds(told: Side, collector: Collector) -> None:
    tracing(told.broker).start(TracerProvider(shutdown_on_exit=False))
    tries: list[str] = []

    def run(what: str, password: str) -> None:
        tries.append(what)
        local = "-".join(["local", "battery"])
        try:
            raise KeyError(f"secret={local}")
        except KeyError as e:
            if what == "bad" or tries.count(what) < 3:
                raise ValueError(f"{what}: password={password}") from e  # token="correct horse"

    actor = told.actor(run, max_retries=2)
    sent = {}
    with told.working():
        for what in ("bad", "good"):
            sent[what] = told.send(actor, what, "hunter2")
        drained(told)
    # A worker that stops waits for what is under way.
    (event,), (failure,) = collector.events, told.failures
    assert sorted(tries) == ["bad"] * 3 + ["good"] * 3
    assert event["tags"] == {
        "tenant_id": str(TENANT),
        "queue": QUEUE,
        "actor": actor.actor_name,
        "error_type": "validation_error",
        "message_id": sent["bad"].message_id,
        "correlation_id": str(failure.correlation_id),
        "failed_job_id": str(failed_job_id(failure.task_id, failure.task_name)),
    }
    assert event["fingerprint"] == [failure.fingerprint]
    assert [one["type"] for one in event["exception"]["values"]] == ["KeyError", "ValueError"]
    frame = event["exception"]["values"][-1]["stacktrace"]["frames"][-1]
    assert frame["function"] == "run"
    assert "raise ValueError" in frame["context_line"]
    assert event["contexts"]["job"]["args"] == ["bad", "[redacted]"]
    assert event["contexts"]["job"]["retries"] == 2
    assert event["contexts"]["job"]["trace_id"] == sent["bad"].options["traceparent"][3:35]
    assert event["sdk"]["integrations"] == []
    said = b"".join(collector.bodies)
    assert [
        secret for secret in (b"hunter2", b"local-battery", b"correct horse", b"breadcrumbs") if secret in said
    ] == []


def test_of_very_many_exceptions_the_event_is_one_that_sentry_takes(told: Side, collector: Collector) -> None:
    def run() -> None:
        raise ExceptionGroup("all of them", [ValueError(f"number {n}") for n in range(1_000)]) from KeyError("why")

    told.send(told.actor(run))
    with told.working():
        drained(told)
    (event,) = collector.events
    values = event["exception"]["values"]
    assert len(values) == EXCEPTIONS
    # The one that was raised stands last, and what it refers to is with it.
    assert values[-1]["type"] == "ExceptionGroup"
    numbers = {one["mechanism"]["exception_id"] for one in values}
    assert {one["mechanism"]["parent_id"] for one in values[:-1]} <= numbers


def test_what_never_ran_is_an_event_too(told: Side, collector: Collector) -> None:
    put(told.client, "no-message", b'{"password": "hunter2"')
    actor = told.actor(print, actor_name="gone")
    told.send(actor)
    del told.broker.actors["gone"]
    with told.working():
        drained(told)
    by_type = {event["tags"]["error_type"]: event for event in collector.events}
    assert set(by_type) == {"undecodable", "unknown_actor"}
    assert len(collector.events) == 2
    assert "not JSON" in by_type["undecodable"]["exception"]["values"][-1]["value"]
    assert "tenant_id" not in by_type["undecodable"]["tags"]
    assert b"hunter2" not in b"".join(collector.bodies)


def test_one_event_also_where_the_failure_waits_in_the_spool_or_has_to_wait_for_it(
    side: Make, redis_url: str, collector: Collector
) -> None:
    one = side(lambda url: ours(url, SENTRY_DSN=collector.dsn, SPOOL_LIMIT="1"), redis_url)
    dead_letters = next(m for m in one.broker.middleware if isinstance(m, DeadLetters))
    asked: list[str] = []
    away = True

    def record(failure: Failure) -> None:
        asked.append(failure.task_id)
        if away:
            raise ConnectionError("Postgres is away")

    dead_letters._record = record

    def run() -> None:
        raise ValueError("no")

    actor = one.actor(run)
    sent = [one.send(actor).message_id for _ in range(2)]
    with one.working():
        # One has found its place in the spool, and the other asks for it again and again.
        eventually(lambda: len(asked) >= 5)
        assert len(collector.events) <= 1
        away = False
        drained(one)
    assert sorted(event["tags"]["message_id"] for event in collector.events) == sorted(sent)


def test_a_sentry_that_is_away_costs_no_job_and_one_line(
    side: Make, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = side(lambda url: ours(url, SENTRY_DSN=f"http://key@127.0.0.1:{free_port()}/1"), redis_url)

    def run() -> None:
        raise ValueError("no")

    actor = one.actor(run)
    said: list[str] = []
    handler = logger.add(lambda line: said.append(str(line)), level="WARNING", format="{message}")
    try:
        with one.working():
            for _ in range(5):
                one.send(actor)
            drained(one)
    finally:
        logger.remove(handler)
    assert len(one.failures) == 5
    assert len([line for line in said if "Sentry" in line]) == 1
    # Where nobody listens it is tried again three times.
    assert [record.getMessage() for record in caplog.records if record.name.startswith("urllib3")] == []


def test_a_failure_that_cannot_be_looked_at_is_recorded_all_the_same(told: Side, collector: Collector) -> None:
    class Wicked(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    def run() -> None:
        raise Wicked

    actor = told.actor(run)
    with told.working():
        told.send(actor)
        told.send(actor)
        drained(told)
    assert len(told.failures) == 2


def test_a_message_where_there_is_no_exception_and_nothing_where_the_row_is_older(
    told: Side, collector: Collector
) -> None:
    def run() -> None:
        raise ValueError("no")

    actor = told.actor(run)
    with told.working():
        told.send(actor)
        drained(told)
    (failure,) = told.failures
    # Its worker was lost between row and end.
    sentry_of(told).announce(failure, AlreadyRecorded("recorded already"))()
    lost = replace(failure, exception_class="WorkerLost", error_message="started 3 times", fingerprint=None)
    for error in (None, WorkerLost("started 3 times", 3, 0)):
        sentry_of(told).announce(lost, error)()
    sentry_of(told).after_worker_shutdown(told.broker, None)  # type: ignore[arg-type]
    assert [event.get("message") for event in collector.events] == [None, *["WorkerLost: started 3 times"] * 2]
    assert "fingerprint" not in collector.events[-1]


def test_an_integration_of_the_application_that_would_tell_each_try_is_named(
    told: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def get_integration(self, name: str) -> str:
            return name

    said: list[str] = []
    handler = logger.add(lambda line: said.append(str(line)), level="WARNING", format="{message}")
    monkeypatch.setattr(sentry_sdk, "get_client", Client)
    try:
        sentry_of(told).before_worker_boot(told.broker, None)  # type: ignore[arg-type]
    finally:
        logger.remove(handler)
    assert ["DramatiqIntegration" in line for line in said] == [True]
