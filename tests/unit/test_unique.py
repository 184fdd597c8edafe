"""Unique jobs on a StubBroker, by the rules that hold on Redis; and what is said of declarations that cannot be."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import dramatiq
import pytest
from dramatiq import Worker
from freezegun import freeze_time

from middleware.errors import OptionRefused
from middleware.unique import InvalidUnique, NotUnique, Outcome, Unique, outcome
from worker.sending import enqueue_many
from worker.testing import TestBroker

pytestmark = pytest.mark.usefixtures("tenant")


def actor_of(
    broker: TestBroker, fn: Callable[..., Any], unique: Unique | str, **options: Any
) -> dramatiq.Actor[..., Any]:
    return dramatiq.actor(
        broker=broker, queue_name="housekeeping", actor_name=f"test.{uuid.uuid4().hex}", unique=unique, **options
    )(fn)


def test_a_second_is_refused_until_the_first_has_ended(stub_broker: TestBroker, stub_worker: Worker) -> None:
    began, ends = threading.Event(), threading.Event()

    def job(order: str) -> None:
        began.set()
        assert ends.wait(15)

    actor = actor_of(stub_broker, job, Unique())
    first = actor.send("a")
    assert began.wait(15)
    with pytest.raises(NotUnique, match=f"message {first.message_id} is running"):
        actor.send(order="a")
    actor.send("b")
    ends.set()
    stub_broker.join("housekeeping")
    stub_worker.join()
    actor.send("a")


def test_until_its_start(stub_broker: TestBroker, stub_worker: Worker) -> None:
    began, ends = threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        assert ends.wait(15)

    actor = actor_of(stub_broker, job, Unique(until="start", second="ignore"))
    actor.send()
    assert began.wait(15)
    assert outcome(actor.send()).sent
    ends.set()
    stub_broker.join("housekeeping")


def test_while_it_is_retried_and_not_after_it_has_failed(stub_broker: TestBroker, stub_worker: Worker) -> None:
    again = list[Outcome]()

    def job() -> None:
        again.append(outcome(actor.send()))
        raise ValueError("again")

    actor = actor_of(stub_broker, job, Unique(second="ignore"), max_retries=2, min_backoff=1)
    first = actor.send()
    stub_broker.join("housekeeping")
    stub_worker.join()
    assert again == [Outcome(sent=False, because_of=first.message_id, state="running")] * 3
    assert [failure.task_id for failure in stub_broker.failed_jobs] == [first.message_id]
    assert outcome(actor.send()).sent


def test_a_replacement_runs_in_its_place(stub_broker: TestBroker) -> None:
    ran: list[str] = []
    actor = actor_of(stub_broker, lambda order, note: ran.append(order + note), Unique(by=("order",), second="replace"))
    first = actor.send("a", "1")
    actor.send("b", "1")
    assert outcome(actor.send("a", "2")).replaced == first.message_id
    actor.send_with_options(args=("a", "3"), delay=10)
    worker = Worker(stub_broker, worker_timeout=20, worker_threads=1)
    worker.start()
    stub_broker.join("housekeeping")
    worker.join()
    worker.stop()
    assert sorted(ran) == ["a3", "b1"]


def test_for_a_period(stub_broker: TestBroker, stub_worker: Worker) -> None:
    actor = actor_of(stub_broker, lambda: None, Unique(period=60, second="ignore"))
    with freeze_time("2026-01-01 12:00:00", ignore=["threading", "queue"]) as time:
        actor.send()
        stub_broker.join("housekeeping")
        stub_worker.join()
        assert outcome(actor.send()).state == "recent"
        time.tick(61)
        assert outcome(actor.send()).sent


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"by": "order"}, r"by: must be names of arguments, such as \('window_start',\), not 'order'"),
        ({"until": "ever"}, "until: must be 'start' or 'end', not 'ever'"),
        ({"second": "queue"}, "second: must be 'refuse', 'ignore' or 'replace', not 'queue'"),
        ({"period": 0}, "period: must be seconds, more than 0 and at most ten years, not 0"),
        ({"period": float("nan")}, "period: .*, not nan"),
    ],
)
def test_what_cannot_be_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidUnique, match=said):
        Unique(**given)


def test_what_an_actor_cannot_be_is_named(stub_broker: TestBroker) -> None:
    with pytest.raises(InvalidUnique, match=r"test\..*: unique: by names 'windw', which job\(\) does not take"):

        def job(window: str) -> None: ...

        actor_of(stub_broker, job, Unique(by=("windw",)))
    with pytest.raises(InvalidUnique, match=r"must be middleware\.unique\.Unique"):
        actor_of(stub_broker, job, "yes")


def test_it_is_not_for_a_message_to_say(stub_broker: TestBroker) -> None:
    actor = dramatiq.actor(broker=stub_broker, queue_name="housekeeping", actor_name=f"test.{uuid.uuid4().hex}")(print)
    good = {"key": "0" * 40, "until": "end", "second": "ignore"}
    for wrong in (
        {"key": "x"},
        {"until": "ever"},
        {"second": None},
        {"period": 1.5},
        {"period": -1},
        {"until": ["end"]},
    ):
        with pytest.raises(OptionRefused, match="'dramaturg_unique'"):
            actor.send_with_options(dramaturg_unique={**good, **wrong})
    made = actor.send_with_options(dramaturg_unique=good)
    assert "dramaturg_unique" not in made.options


def test_among_many_a_second_is_left_out_and_told_and_one_that_is_refused_stops_all(stub_broker: TestBroker) -> None:
    actor = actor_of(stub_broker, lambda order: None, Unique())
    with pytest.raises(OptionRefused):
        enqueue_many([actor.message("a"), actor.message_with_options(args=("b",), max_retries="3")])
    with pytest.raises(TypeError):
        enqueue_many([actor.message("a"), actor.message(object)])
    assert stub_broker.queues["housekeeping"].qsize() == 0
    sent = enqueue_many([actor.message("a"), actor.message("a"), actor.message("b")])
    assert [outcome(message).sent for message in sent] == [True, False, True]
    assert outcome(sent[1]).because_of == sent[0].message_id
    assert stub_broker.queues["housekeeping"].qsize() == 2
