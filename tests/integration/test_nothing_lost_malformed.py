"""Cases 6 and 7 of the failure modes: what arrives and is no message, or one that would break the worker."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest

from middleware.errors import OptionRefused, UnknownFollowUp
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, ours, put, stock
from tests.waiting import eventually


@pytest.fixture
def stock_side(side: Callable[..., Side], redis_url: str) -> Side:
    return side(stock, redis_url)


@pytest.fixture
def our_side(side: Callable[..., Side], redis_url: str) -> Side:
    return side(ours, redis_url)


def message(**changes: Any) -> dict[str, Any]:
    options = {"redis_message_id": "bad", "tenant_id": str(TENANT), **changes.pop("options", {})}
    return {
        "queue_name": QUEUE,
        "actor_name": "test.job",
        "args": [],
        "kwargs": {},
        "options": {name: value for name, value in options.items() if value is not ...},
        "message_id": "m-1",
        "message_timestamp": 1_700_000_000_000,
        **changes,
    }


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in message().items() if name != field}


NO_MESSAGES: dict[str, bytes | str] = {
    "not json": b"{",
    "not utf-8": b"\xff\xfe",
    "null": b"null",
    "a list": b"[]",
    "nested without end": b"[" * 100_000,
    "a field missing": json.dumps(without("args")),
    "a field too many": json.dumps({**message(), "extra": 1}),
    "args no list": json.dumps(message(args=5)),
    "kwargs null": json.dumps(message(kwargs=None)),
    "options a list": json.dumps({**message(), "options": []}),
    "actor name a number": json.dumps(message(actor_name=7)),
}
BREAKERS: dict[str, bytes | str] = {
    "no redis id": json.dumps(message(options={"redis_message_id": ...})),
    "another redis id": json.dumps(message(options={"redis_message_id": "other"})),
    "another queue": json.dumps(message(queue_name="llm")),
    "its delay queue": json.dumps(message(queue_name=f"{QUEUE}.DQ")),
    "retries a string": json.dumps(message(options={"retries": "a"})),
    "max_retries a string": json.dumps(message(options={"max_retries": "3"})),
    "time_limit a string": json.dumps(message(options={"time_limit": "9"})),
    "max_age a string": json.dumps(message(options={"max_age": "9"})),
    "eta without end": json.dumps(message(options={"eta": math.inf})),
    "throws": json.dumps(message(options={"throws": "ValueError"})),
    "pipe_target no message": json.dumps(message(options={"pipe_target": {"actor_name": "x"}})),
    "on_success a number": json.dumps(message(options={"on_success": 3})),
}


@pytest.mark.parametrize("data", [NO_MESSAGES[n] for n in ("not json", "null", "a field missing")])
def test_stock_strands_it_and_its_neighbours(stock_side: Side, data: bytes | str) -> None:
    ran: list[object] = []
    job = stock_side.actor(ran.append, actor_name="test.job")
    # In the order of one fetch: what is before it runs, what is after it waits in acks for ever.
    put(stock_side.client, "bad", data)
    for n in range(3):
        job.send(n)
    with stock_side.working():
        eventually(lambda: in_acks(stock_side.client) == 4)
        job.send("later")
        eventually(lambda: ran == ["later"])
        assert in_acks(stock_side.client) == 4


@pytest.mark.parametrize("data", [*NO_MESSAGES.values(), *BREAKERS.values()], ids=[*NO_MESSAGES, *BREAKERS])
def test_ours_makes_it_a_failure_and_its_neighbours_run_at_once(our_side: Side, data: bytes | str) -> None:
    ran: list[object] = []
    started = threading.Event()

    def run(n: int) -> None:
        ran.append(n)
        started.set()

    job = our_side.actor(run, actor_name="test.job")
    our_side.send(job, 1)
    put(our_side.client, "bad", data)
    our_side.send(job, 2)
    with our_side.working():
        eventually(lambda: kept(our_side.client) == 0)
    assert sorted(ran, key=str) == [1, 2]
    (failure,) = our_side.failures
    assert failure.error_type == "undecodable"
    assert failure.queue == QUEUE
    assert failure.exception_class == "middleware.message_checks.InvalidMessage"
    assert in_acks(our_side.client) == 0


def test_the_row_says_what_could_be_read(our_side: Side) -> None:
    our_side.actor(lambda: None, actor_name="test.job")
    put(our_side.client, "bad", BREAKERS["retries a string"])
    put(our_side.client, "worse", b"\x00{")
    with our_side.working():
        eventually(lambda: kept(our_side.client) == 0)
    worse, bad = sorted(our_side.failures, key=lambda f: f.task_name)
    assert (bad.task_id, bad.task_name, bad.tenant_id) == ("m-1", "test.job", TENANT)
    assert bad.error_message == "option 'retries' must be a whole number, not negative, not 'a'"
    assert (len(worse.task_id), worse.task_name, worse.tenant_id) == (64, "(undecodable)", None)


def test_among_delayed_messages_too(our_side: Side) -> None:
    payloads: list[bytes | str] = [b"{", json.dumps(message()), json.dumps(message(options={"eta": "soon"}))]
    for n, data in enumerate(payloads):
        put(our_side.client, f"bad{n}", data, f"{QUEUE}.DQ")
    ran: list[int] = []
    our_side.send(our_side.actor(ran.append), 1, delay=10)
    with our_side.working():
        eventually(lambda: kept(our_side.client) == 0)
    assert ran == [1]
    assert [f.error_type for f in our_side.failures] == ["undecodable"] * 3
    assert {f.queue for f in our_side.failures} == {QUEUE}


def test_stock_accepts_what_its_worker_will_not_survive(stock_side: Side) -> None:
    job = stock_side.actor(lambda: None)
    for options in ({"throws": "ValueError"}, {"time_limit": "9"}, {"on_success": "nobody"}, {"max_retries": "3"}):
        job.send_with_options(**options)  # type: ignore[arg-type]
    assert kept(stock_side.client) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"throws": "ValueError"}, "'throws'"),
        ({"retries": None}, "'retries' must be a whole number, not negative, not None"),
        ({"max_retries": "3"}, "'max_retries' must be a whole number, not negative, not '3'"),
        ({"time_limit": 0}, "'time_limit' must be milliseconds, more than 0, not 0"),
        ({"min_backoff": None}, "'min_backoff' must be milliseconds, not None"),
        ({"eta": 5}, "'eta' is set by delay=, not given: 5"),
        ({"pipe_target": {"actor_name": "x"}}, "'pipe_target' must be a message"),
        ({"pipe_target": message(options={"retries": "a"})}, "'retries' must be a whole number"),
    ],
)
def test_ours_refuses_it_naming_option_and_value(our_side: Side, options: dict[str, Any], words: str) -> None:
    job = our_side.actor(lambda: None)
    with pytest.raises(OptionRefused, match=words) as refused:
        our_side.send(job, **options)
    assert job.actor_name in str(refused.value)
    assert kept(our_side.client) == 0


@pytest.mark.parametrize("option", ["on_success", "on_failure", "on_retry_exhausted"])
def test_ours_refuses_a_follow_up_that_nobody_knows(our_side: Side, option: str) -> None:
    job = our_side.actor(lambda: None)
    with pytest.raises(UnknownFollowUp, match=f"option '{option}' names actor 'nobody'"):
        our_side.send(job, **{option: "nobody"})
    with pytest.raises(UnknownFollowUp, match="option 'pipe_target' names actor 'nobody'"):
        our_side.send(job, pipe_target=message(actor_name="nobody"))
    known = our_side.actor(lambda *_: None)
    our_side.send(job, **{option: known.actor_name})
    assert kept(our_side.client) == 1


def test_a_retry_with_options_of_another_time_is_not_refused(our_side: Side) -> None:
    errors: list[Exception] = [ValueError("once")]

    def job() -> None:
        if errors:
            raise errors.pop()

    actor = our_side.actor(job, max_retries=1, min_backoff=1, max_backoff=1)
    our_side.send(actor)
    with our_side.working():
        eventually(lambda: kept(our_side.client) == 0)
    assert (errors, our_side.failures) == ([], [])
