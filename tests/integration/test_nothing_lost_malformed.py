"""Cases 6 and 7 of the failure modes: what arrives and is no message, or one that would break the worker."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from dramatiq.common import current_millis
from dramatiq.middleware import TimeLimit

from middleware.errors import OptionRefused, UnknownFollowUp
from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, marker_of, ours, put, stock
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
        eventually(lambda: ran == ["later"] and kept(stock_side.client) == 4)
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


class TestWhatStockDoesWithIt:
    """7: none of it is refused, and each is another trouble later."""

    def test_without_its_redis_id_it_is_never_acknowledged_and_runs_again(self, stock_side: Side) -> None:
        ran: list[int] = []
        stock_side.actor(lambda: ran.append(1), actor_name="test.job")
        put(stock_side.client, "bad", BREAKERS["no redis id"])
        with stock_side.working() as worker:
            eventually(lambda: ran)
            worker.join()
            assert in_acks(stock_side.client) == 1
            # As when the process is gone for a minute.
            stock_side.client.zadd("dramatiq:__heartbeats__", {"gone": 0})
            key = next(iter(stock_side.client.scan_iter("dramatiq:__acks__.*")))
            stock_side.client.rename(key, f"dramatiq:__acks__.gone.{QUEUE}")
            stock_side.broker.maintenance_chance = 1_000_000  # type: ignore[attr-defined]
            eventually(lambda: len(ran) == 2)
            worker.join()
        assert kept(stock_side.client) == 1

    @pytest.mark.parametrize("name", ["retries a string", "max_retries a string"])
    def test_it_fails_and_is_lost(self, stock_side: Side, name: str) -> None:
        ran: list[int] = []

        def job() -> None:
            ran.append(1)
            raise ValueError("x")

        stock_side.actor(job, actor_name="test.job", max_retries=3)
        put(stock_side.client, "bad", BREAKERS[name])
        with stock_side.working():
            eventually(lambda: kept(stock_side.client) == 0)
        assert ran == [1]
        assert in_acks(stock_side.client) == stock_side.client.zcard(f"dramatiq:{QUEUE}.XQ") == 0

    def test_it_runs_without_a_limit(self, stock_side: Side) -> None:
        (limits,) = (m for m in stock_side.broker.middleware if isinstance(m, TimeLimit))
        seen: list[float | None] = []
        stock_side.actor(
            lambda: seen.append(limits.manager.deadlines.get(threading.get_ident())),  # type: ignore[union-attr]
            actor_name="test.job",
            time_limit=60_000,
        )
        put(stock_side.client, "bad", json.dumps(message()))
        with stock_side.working(threads=1):
            eventually(lambda: kept(stock_side.client) == 0)
            put(stock_side.client, "bad", BREAKERS["time_limit a string"])
            eventually(lambda: len(seen) == 2)
        assert seen[0] is not None
        assert seen[1] is None

    @pytest.mark.parametrize("name", ["eta without end", "another redis id"])
    def test_it_is_held_for_ever(self, stock_side: Side, name: str) -> None:
        stock_side.actor(lambda: None, actor_name="test.job")
        put(stock_side.client, "bad", BREAKERS[name])
        job = stock_side.actor(lambda: None)
        with stock_side.working() as worker:
            eventually(lambda: in_acks(stock_side.client) == 1)
            job.send()
            eventually(lambda: kept(stock_side.client) == 1)
            worker.work_queue.join()
        assert kept(stock_side.client) == 1

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    @pytest.mark.parametrize(
        ("name", "when"), [("another queue", "succeeds"), ("throws", "fails")], ids=["another queue", "throws"]
    )
    def test_it_ends_the_thread(self, stock_side: Side, name: str, when: str) -> None:
        ran: list[int] = []

        def job() -> None:
            ran.append(1)
            if when == "fails":
                raise ValueError("x")

        stock_side.actor(job, actor_name="test.job")
        put(stock_side.client, "bad", BREAKERS[name])
        with stock_side.working(threads=1) as worker:
            eventually(lambda: not worker.workers[0].is_alive())
        assert ran == [1]


class TestAnEtaOnTheQueueItself:
    """A stock producer may give ``eta`` as an option; whoever fetches the message then waits with it."""

    def eta(self, milliseconds: int) -> str:
        return json.dumps(message(options={"eta": current_millis() + milliseconds}))

    def test_stock_holds_it_in_memory(self, stock_side: Side) -> None:
        stock_side.actor(lambda: None, actor_name="test.job")
        put(stock_side.client, "bad", self.eta(3_600_000))
        with stock_side.working():
            eventually(lambda: in_acks(stock_side.client) == 1)

    def test_ours_moves_it_among_the_delayed(self, our_side: Side) -> None:
        our_side.actor(lambda: None, actor_name="test.job")
        put(our_side.client, "bad", self.eta(3_600_000))
        with our_side.working():
            eventually(lambda: our_side.client.zcard(f"dramatiq:__dramaturg__.due.{QUEUE}.DQ") == 1)
            assert in_acks(our_side.client) == 0
            assert our_side.client.hlen(f"dramatiq:{QUEUE}.msgs") == 0
        assert our_side.failures == []

    @pytest.mark.parametrize("milliseconds", [-3_600_000, 0, 300])
    def test_it_runs_when_it_is_due(self, our_side: Side, milliseconds: int) -> None:
        early: list[bool] = []
        eta = current_millis() + milliseconds
        our_side.actor(lambda: early.append(current_millis() < eta), actor_name="test.job")
        put(our_side.client, "bad", json.dumps(message(options={"eta": eta})))
        with our_side.working():
            eventually(lambda: kept(our_side.client) == 0)
        assert (early, our_side.failures) == ([False], [])

    def test_an_answer_lost_as_it_moves_changes_nothing(self, side: Callable[..., Side], redis_url: str) -> None:
        with CutWire(redis_url) as wire:
            one = side(ours, wire.url)
            ran: list[int] = []
            one.send(one.actor(ran.append, actor_name="test.job"), 0)
            with one.working(), redis.Redis.from_url(redis_url) as client:
                # The script is known to the server from here on.
                eventually(lambda: kept(client) == 0)
                wire.lose_answer_to(marker_of(one, "finish"))
                put(client, "bad", json.dumps(message(args=[1], options={"eta": current_millis() + 200})))
                assert wire.lost.wait(15)
                eventually(lambda: kept(client) == 0)
            assert (ran, one.failures) == ([0, 1], [])

    @pytest.mark.parametrize("eta", [math.inf, -math.inf, math.nan, "soon", -5, True, 1e16])
    def test_an_absurd_one_is_a_failure(self, our_side: Side, eta: object) -> None:
        our_side.actor(lambda: None, actor_name="test.job")
        put(our_side.client, "bad", json.dumps(message(options={"eta": eta})))
        with our_side.working():
            eventually(lambda: kept(our_side.client) == 0)
        (failure,) = our_side.failures
        assert failure.error_type == "undecodable"
        assert "option 'eta' must be milliseconds since 1970, not " in failure.error_message


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
