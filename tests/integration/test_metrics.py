"""What processes count, how it gets into Redis, and what of it grows."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest
import redis
from dramatiq import Message, Middleware
from dramatiq.common import current_millis
from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware import metrics
from middleware.deliveries import REPLAY, Delivery
from middleware.heartbeat import Heartbeat
from middleware.job_metrics import DUE, WAIT_AT_MOST, Counts, JobMetrics
from middleware.lua_scripts import Scripts
from middleware.metric_families import (
    DURATION,
    ERRORS,
    FAMILIES,
    JOBS,
    LATENESS,
    OTHER,
    QUARANTINES,
    RECORDING,
    REDELIVERIES,
    REPLAYS,
    SPOOLED,
    UNKNOWN,
    WAIT,
    Family,
)
from middleware.metrics import Teller
from middleware.tally import FAILED, RETRIED, SUCCEEDED, UNCOUNTED
from tests.integration.nothing_lost import QUEUE, TENANT, Side, kept, ours, put
from tests.waiting import eventually
from worker.live.counted import Counted, counted
from worker.queue_admin.keys import answer

OWN = "dramatiq:__dramaturg__.metrics."


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def some(client: redis.Redis, family: Family) -> Counted:
    """Return the series of a family that are not 0."""
    return {labels: values for labels, values in counted(client)[family.name].items() if any(values)}


def count_of(client: redis.Redis, family: Family, *labels: str) -> int:
    return sum(counted(client)[family.name].get(labels, (0, 0))[:-1])


class TestWithAWorker:
    @pytest.fixture
    def one(self, side: Callable[..., Side], redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(metrics, "TELL_EVERY", 0.02)
        return side(ours, redis_url)

    def test_each_execution_is_counted_by_how_it_ends(self, one: Any, client: redis.Redis) -> None:
        def fail() -> None:
            raise ValueError("no")

        good, bad = one.actor(lambda: None), one.actor(fail)
        worse = one.actor(fail, max_retries=2, min_backoff=1, max_backoff=1)
        stale = one.actor(lambda: None, max_age=1)
        with one.working(4):
            one.send(good)
            # Only moved by the delay queue.
            one.send(good, delay=1)
            one.send(bad)
            one.send(worse)
            one.broker.enqueue(stale.message_with_options(tenant_id=str(TENANT)).copy(message_timestamp=1))
            # Neither a job of anybody's, nor with a tenant.
            one.send(good, **{UNCOUNTED: True})
            put(client, "none", "{")
            eventually(lambda: kept(client) == 0)
        job_names = {actor.actor_name: n for n, actor in enumerate((good, bad, worse, stale))}
        assert {(job_names.get(a, a), o): v for (_, a, o), v in some(client, JOBS).items()} == {
            (0, SUCCEEDED): (2,),
            (1, FAILED): (1,),
            (2, RETRIED): (2,),
            (2, FAILED): (1,),
            (3, FAILED): (1,),
            (UNKNOWN, FAILED): (1,),
        }
        assert some(client, ERRORS) == {
            (QUEUE, "validation_error", FAILED): (2,),
            (QUEUE, "validation_error", RETRIED): (2,),
            (QUEUE, "expired", FAILED): (1,),
            (QUEUE, "undecodable", FAILED): (1,),
        }
        # What was not run has neither.
        for family in (DURATION, WAIT):
            ran = {job_names[a]: sum(values[:-1]) for (_, a), values in some(client, family).items()}
            assert ran == {0: 2, 1: 1, 2: 3}
        (recording,) = some(client, RECORDING).values()
        assert sum(recording[:-1]) == 2

    def test_a_retry_waits_from_when_it_is_due(self, one: Any, client: redis.Redis) -> None:
        dues: list[Any] = []

        def fail() -> None:
            raise ValueError("no")

        class Looks(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                dues.append(message.options.get(DUE))

        one.broker.add_middleware(Looks())
        actor = one.actor(fail, max_retries=2, min_backoff=1, max_backoff=1)
        began = current_millis()
        message = actor.message_with_options(tenant_id=str(TENANT))
        with one.working():
            # Sent by a clock that is an hour behind.
            one.broker.enqueue(message.copy(message_timestamp=began - 3_600_000))
            eventually(lambda: kept(client) == 0)
        first, second, third = dues
        assert first is None
        assert began <= second < third
        # One of an hour and two of nearly nothing.
        (values,) = some(client, WAIT).values()
        assert 3_600_000_000 <= values[-1] < 3_660_000_000
        assert sum(values[:-1]) == 3

    def test_what_follows_from_a_job_waits_from_its_end(self, one: Any, client: redis.Redis) -> None:
        first, then = one.actor(lambda: None), one.actor(lambda: None)
        target = then.message_with_options(tenant_id=str(TENANT)).copy(message_timestamp=1)
        with one.working():
            one.send(first, pipe_target=target.asdict(), pipe_ignore=True)
            eventually(lambda: kept(client) == 0)
        waited = some(client, WAIT)[QUEUE, then.actor_name]
        assert waited[-1] < 3_600_000_000

    def test_one_that_loses_too_many_workers_is_a_quarantine(self, one: Any, client: redis.Redis) -> None:
        actor = one.actor(lambda: None)
        message = one.send(actor)
        redis_id = str(message.options["redis_message_id"])
        client.delete(f"dramatiq:{QUEUE}")
        client.rpush(f"dramatiq:__dramaturg__.suspects.{QUEUE}", redis_id)
        loss = {"started": 1, "silent": 2, "facts": {}}
        client.hset("dramatiq:__dramaturg__.crashes", f"{QUEUE}:{redis_id}", json.dumps([loss] * 3))
        with one.working():
            eventually(lambda: kept(client) == 0)
        assert [failure.task_id for failure in one.failures] == [message.message_id]
        assert some(client, QUARANTINES) == {(QUEUE,): (1,)}
        assert some(client, ERRORS) == {(QUEUE, "worker_lost", FAILED): (1,)}
        assert some(client, JOBS) == {(QUEUE, actor.actor_name, FAILED): (1,)}

    def test_what_a_shutdown_interrupts_is_given_back(self, one: Any, client: redis.Redis) -> None:
        actor = one.actor(lambda: None)
        one.send(actor)
        consumer = one.broker.consume(QUEUE, prefetch=1, timeout=100)
        message = next(consumer)
        # In a context of its own, so that nobody's tenant is bound in this one.
        copy_context().run(one.broker.emit_before, "process_message", message)
        message.give_back = True
        consumer.ack(message)
        # One that had not begun was no execution.
        message = next(consumer)
        message.give_back = True
        consumer.ack(message)
        assert Teller(one.broker.metrics, one.broker.run).tell()
        assert some(client, JOBS) == {(QUEUE, actor.actor_name, "given_back"): (1,)}
        assert some(client, DURATION) == {}

    def test_failures_in_the_spool_and_replays(self, one: Any, client: redis.Redis) -> None:
        gone = threading.Event()
        item = {"row": str(TENANT), "item": str(TENANT)}

        def record(_: Any) -> None:
            gone.set()
            raise ConnectionError("Postgres is away")

        for middleware in one.broker.middleware:
            if hasattr(middleware, "_record") and type(middleware).__name__ in {"DeadLetters", "ReplayOutcomes"}:
                middleware._record = record
        job = one.actor(lambda fails: 1 / 0 if fails else None)
        with one.working():
            one.send(job, True)
            one.send(job, True, **{REPLAY: item})
            one.send(job, False, **{REPLAY: item})
            eventually(lambda: kept(client) == 0)
        assert gone.is_set()
        assert some(client, SPOOLED) == {(QUEUE,): (3,)}
        assert some(client, REPLAYS) == {(QUEUE, SUCCEEDED): (1,), (QUEUE, FAILED): (1,)}

    def test_hundreds_of_names_that_nobody_knows_are_one_series(self, one: Any, client: redis.Redis) -> None:
        with client.pipeline() as pipeline:
            for n in range(600):
                message = Message[None](QUEUE, f"nobody{n}", (), {}, {"redis_message_id": str(n)})
                pipeline.hset(f"dramatiq:{QUEUE}.msgs", str(n), message.encode())
                pipeline.rpush(f"dramatiq:{QUEUE}", str(n))
            pipeline.execute()
        one.actor(lambda: None)
        logger.disable("")
        with one.working():
            eventually(lambda: kept(client) == 0, seconds=60)
        logger.enable("")
        assert some(client, JOBS) == {(QUEUE, UNKNOWN, FAILED): (600,)}
        # Of the one actor there is a 0 for each outcome.
        assert client.hlen(f"{OWN}1.jobs") == 1 + 4

    def test_what_goes_wrong_here_is_nothing_to_jobs(self, one: Any, client: redis.Redis) -> None:
        client.set(f"{OWN}1.jobs", "somebody else's")

        def classify(_: Any) -> str:
            raise RuntimeError("asked too much")

        one.broker.metrics._classify = classify
        good, bad = one.actor(lambda: None), one.actor(lambda: 1 / 0)
        with one.working():
            one.send(good)
            one.send(bad)
            eventually(lambda: kept(client) == 0)
            one.broker.metrics._of = None
            one.send(good)
            eventually(lambda: kept(client) == 0)
        assert len(one.failures) == 1
        assert one.broker.tally.take() == {f"succeeded:{QUEUE}": 2, f"failed:{QUEUE}": 1}

    def test_what_ended_last_is_told_when_the_worker_stops(
        self, one: Any, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metrics, "TELL_EVERY", 3_600)
        actor = one.actor(lambda: None)
        for _ in range(2):
            with one.working():
                # What there may be to count is there before any is.
                eventually(lambda: (QUEUE, actor.actor_name, SUCCEEDED) in counted(client)["jobs"])
                for _ in range(5):
                    one.send(actor)
                eventually(lambda: kept(client) == 0)
        assert some(client, JOBS) == {(QUEUE, actor.actor_name, SUCCEEDED): (10,)}

    def test_they_can_be_switched_off(self, side: Callable[..., Side], redis_url: str, client: redis.Redis) -> None:
        off = side(lambda url: ours(url, METRICS="no"), redis_url)
        actor = off.actor(lambda: None)
        with off.working():
            off.send(actor)
            eventually(lambda: kept(client) == 0)
        assert client.keys(f"{OWN}*") == []


class TestTelling:
    @pytest.fixture
    def run(self, client: redis.Redis) -> Scripts:
        return Scripts(client, "dramatiq")

    def test_a_batch_whose_answer_is_lost_counts_once(self, run: Scripts, client: redis.Redis) -> None:
        counts, lost = Counts(), [True, False, True, True, False]

        def unsure(*arguments: Any) -> Any:
            said = run(*arguments)
            if lost and lost.pop(0):
                raise ConnectionClosed("no answer")
            return said

        one: Any = Teller(counts, unsure)  # type: ignore[arg-type]
        told = []
        for _ in range(6):
            counts.add(JOBS, "q", "a", SUCCEEDED)
            counts.observe(DURATION, 0.02, "q", "a")
            told.append(one.tell())
        assert told == [False, False, False, True, True, True]
        assert some(client, JOBS) == {("q", "a", SUCCEEDED): (6,)}
        (values,) = some(client, DURATION).values()
        assert values == (0, 0, 6, *(0,) * 14, 120_000)

    def test_what_redis_never_had_is_told_when_it_is_back(self, run: Scripts, client: redis.Redis) -> None:
        counts, away = Counts(), [True]

        def unless_away(*arguments: Any) -> Any:
            if away:
                raise ConnectionClosed("away")
            return run(*arguments)

        one: Any = Teller(counts, unless_away)  # type: ignore[arg-type]
        for _ in range(1_000):
            counts.add(JOBS, "q", "a", SUCCEEDED)
            assert not one.tell()
        # However long that takes: series, not messages.
        assert len(counts._series) + len(one._batch) == 2
        away.clear()
        assert one.tell()
        assert some(client, JOBS) == {("q", "a", SUCCEEDED): (1_000,)}

    def test_processes_add_up_and_one_that_begins_anew_begins_where_it_was(
        self, run: Scripts, client: redis.Redis
    ) -> None:
        for _ in range(3):
            counts = Counts()
            teller = Teller(counts, run)
            for _ in range(2):
                counts.add(JOBS, "q", "a", FAILED, n=2)
                counts.observe(LATENESS, 7_200.0)
                assert teller.tell()
        assert some(client, JOBS) == {("q", "a", FAILED): (12,)}
        assert some(client, LATENESS) == {(): (*(0,) * 9, 6, 0, 6 * 7_200_000_000)}

    def test_a_family_grows_to_its_bound_and_then_among_the_others(self, run: Scripts, client: redis.Redis) -> None:
        counts = JobMetrics()
        teller = Teller(counts, run)
        for batch in range(10):
            for n in range(300):
                counts.add(JOBS, "q", f"actor{batch}.{n}", SUCCEEDED)
                counts.observe(WAIT, 0.5, "q", f"actor{batch}.{n}")
            assert teller.tell()
        assert client.hlen(f"{OWN}1.jobs") == JOBS.at_most + 1
        assert client.hlen(f"{OWN}1.job_wait_seconds") == WAIT.at_most + 1
        assert sum(n for (n,) in some(client, JOBS).values()) == 3_000
        assert some(client, JOBS)[OTHER, OTHER, SUCCEEDED] == (1_000,)
        assert count_of(client, WAIT, OTHER, OTHER) == 2_500
        # Those that are there are counted on.
        counts.add(JOBS, "q", "actor0.0", SUCCEEDED)
        assert teller.tell()
        assert some(client, JOBS)["q", "actor0.0", SUCCEEDED] == (2,)

    def test_nor_do_those_of_one_batch_grow_on(self, run: Scripts) -> None:
        counts = Counts()
        for n in range(3 * JOBS.at_most):
            counts.add(JOBS, "q", f"actor{n}", SUCCEEDED)
        assert len(counts._series) == 2 * JOBS.at_most + 1

    def test_what_nobody_tells_any_more_makes_room(self, run: Scripts, client: redis.Redis) -> None:
        counts = Counts()
        teller = Teller(counts, run)
        key = f"{OWN}1.quarantines"
        today = int(answer(client.time())[0]) // 86_400
        old: Any = {json.dumps([f"q{n}"]): f"{today - (31 if n % 2 else 29)} 1" for n in range(QUARANTINES.at_most)}
        client.hset(key, mapping=old)
        counts.add(QUARANTINES, "new")
        assert teller.tell()
        assert client.hlen(key) == QUARANTINES.at_most // 2 + 1
        assert some(client, QUARANTINES)["new",] == (1,)

    def test_what_is_none_of_ours_is_left_out(self, run: Scripts, client: redis.Redis) -> None:
        counts = Counts()
        counts.add(QUARANTINES, "q", n=3)
        assert Teller(counts, run).tell()
        for field, value in (("x", "1 1"), ('["a", "b"]', "1 1"), ("[1]", "1 1"), ('["c"]', "1 1 1"), ('["d"]', "x")):
            client.hset(f"{OWN}1.quarantines", field, value)
        assert some(client, QUARANTINES) == {("q",): (3,)}
        # What cannot be added to is begun anew.
        counts.add(QUARANTINES, "c")
        counts.add(QUARANTINES, "d")
        assert Teller(counts, run).tell()
        assert some(client, QUARANTINES) == {("q",): (3,), ("c",): (1,), ("d",): (1,)}

    def test_messages_of_a_lost_worker(self, run: Scripts, client: redis.Redis) -> None:
        counts = JobMetrics()
        options: dict[str, Any] = {"lease": 200, "grace": 1, "interval": 3600}
        silent = Heartbeat(run, "silent", **options)
        silent.cover("q")
        for n in range(3):
            client.hset("dramatiq:q.msgs", str(n), "{}")
            client.sadd("dramatiq:__acks__.silent.q", str(n))
        client.hset("dramatiq:__dramaturg__.started.silent", "q:0", 1)
        living = Heartbeat(run, "living", **options, on_given_back=counts.redelivered)
        living.cover("q")
        # Whoever takes a name is not at once given up himself.
        eventually(lambda: (living.beat(), client.llen("dramatiq:q"))[1])  # type: ignore[func-returns-value]
        assert Teller(counts, run).tell()
        assert some(client, REDELIVERIES) == {("q", "running"): (1,), ("q", "waiting"): (2,)}
        living.stop()
        silent.stop()


#: In milliseconds since 1970.
BEGAN = 1_800_000_000_000


def delivery(message: Message[Any], began: float) -> Delivery:
    made = Delivery(message, "x", b"")
    made.began, made.took = (began, 0.0), 0.25
    return made


@pytest.mark.parametrize(
    ("timestamp", "due", "waited"),
    [
        (BEGAN - 5_000, None, 5.0),
        (BEGAN - 5_000, BEGAN - 1_000, 1.0),
        # Clocks that are ahead, or years behind.
        (BEGAN + 5_000, None, 0.0),
        (10**400, None, 0.0),
        (-(10**400), None, WAIT_AT_MOST),
        # Anybody may have written it.
        (BEGAN - 5_000, "soon", 5.0),
        (BEGAN - 5_000, float("nan"), 5.0),
        (BEGAN - 5_000, float("inf"), 0.0),
        (BEGAN - 5_000, -(10**400), WAIT_AT_MOST),
    ],
)
def test_how_long_a_message_waited(timestamp: int, due: Any, waited: float) -> None:
    counts, options = JobMetrics(), {} if due is None else {DUE: due}
    counts.actors = {"a"}
    message = Message[None]("q", "a", (), {}, options, message_timestamp=timestamp)
    counts.ended(delivery(message, BEGAN / 1000), SUCCEEDED, "q")
    taken = counts.take()
    assert taken[WAIT, ("q", "a")][-1] == waited * 1e6
    assert taken[DURATION, ("q", "a")][-1] == 250_000
    assert taken[JOBS, ("q", "a", SUCCEEDED)] == [1]


def test_threads_count_at_once() -> None:
    counts = Counts()

    def work() -> None:
        for _ in range(2_000):
            counts.add(JOBS, "q", "a", SUCCEEDED)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    found = 0
    while any(thread.is_alive() for thread in threads):
        found += sum(values[0] for values in counts.take().values())
    assert found + sum(values[0] for values in counts.take().values()) == 8_000


def test_no_family_has_a_label_of_a_tenant_or_a_message() -> None:
    assert {label for family in FAMILIES for label in family.labels} == {
        "queue", "actor", "outcome", "error_type", "state",
    }  # fmt: skip
