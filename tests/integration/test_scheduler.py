"""Schedulers on a real server: each tick is sent once, whoever dies where; and what is told of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import dramatiq
import pytest
import redis
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from freezegun import freeze_time

from middleware.lossless_broker import LosslessBroker
from middleware.lua_scripts import Scripts
from middleware.unique import Unique, outcome
from tests.integration.nothing_lost import QUEUE, TENANT, ours
from tests.servers import running_redis
from tests.waiting import eventually
from worker.cli.schedule import _lines
from worker.live import counted, scheduler_state
from worker.scheduler import Schedule
from worker.scheduler.cron import Cron
from worker.scheduler.jobs import Job
from worker.scheduler.process import LOOK_EVERY, Scheduler
from worker.scheduler.state import KEEP, LEASE, State, read

OWN = "dramatiq:__dramaturg__."
#: Not due by itself while a test runs: its ticks are made by saying that the last was long ago.
RARELY = "0 0 1 1 *"


class Deck:
    """A Redis, a job, and schedulers that keep it."""

    def __init__(self, redis_url: str) -> None:
        self.side = ours(redis_url)
        assert isinstance(self.side.broker, LosslessBroker)
        self.broker = self.side.broker
        self.client = self.side.client

    def job(self, expression: str = RARELY, *, on: bool = True, **said: Any) -> Job:
        """Declare an actor, and give the job of its schedule."""
        schedule = Schedule(expression, tenant_id=TENANT, **said)
        actor = self.side.actor(lambda *_, **__: None, schedule=schedule)
        return Job(actor.actor_name, schedule, schedule.cron(), on=on)

    def scheduler(self, *jobs: Job, run: Callable[..., Any] | None = None, name: str = "one/1") -> Scheduler:
        """A scheduler that has looked once."""
        made = Scheduler(self.broker, jobs, State(run or self.broker.run, name), {"name": name}, lambda _: True)  # type: ignore[arg-type]
        made.turn()
        return made

    def now(self) -> datetime:
        """The server's time."""
        return read(self.client).now

    def hourly(self) -> str:
        """An expression that ticks every hour, half an hour from now: whenever a test runs, nothing is due soon."""
        return f"{(self.now().minute + 30) % 60} * * * *"

    def handled(self, job: Job) -> datetime:
        """When the job's last tick was, as Redis has it."""
        return read(self.client).handled[job.name, job.rule]

    def set_handled(self, job: Job, moment: datetime) -> None:
        """Say that its last tick was then."""
        milliseconds = int(moment.timestamp() * 1000)
        self.client.hset(f"{OWN}schedule", f"tick\n{job.rule}\n{job.name}", str(milliseconds))

    def make_due(self, job: Job) -> datetime:
        """Let a tick of the job go by unsent, and return it."""
        last = job.cron.after(self.now() - timedelta(days=800))
        assert last is not None
        last = job.cron.latest(last, self.now())
        self.set_handled(job, last - timedelta(milliseconds=1))
        return last

    def sent(self) -> list[dict[str, Any]]:
        """The messages of the queue, in order."""
        ids = self.client.lrange(f"dramatiq:{QUEUE}", 0, -1)
        return [json.loads(self.client.hget(f"dramatiq:{QUEUE}.msgs", one) or b"") for one in ids]


@pytest.fixture
def deck(redis_url: str) -> Iterator[Deck]:
    deck = Deck(redis_url)
    yield deck
    deck.side.close()


def scheduled(messages: list[dict[str, Any]]) -> list[datetime]:
    return [datetime.fromisoformat(message["options"]["scheduled_for"]) for message in messages]


def test_a_unique_job_waits_for_nobody_twice(deck: Deck) -> None:
    schedule = Schedule(RARELY, tenant_id=TENANT)
    actor = deck.side.actor(lambda: None, schedule=schedule, unique=Unique(second="ignore"))
    job = Job(actor.actor_name, schedule, schedule.cron(), on=True)
    scheduler = deck.scheduler(job)
    deck.make_due(job)
    scheduler.turn()
    (first,) = deck.sent()
    # While it waits neither the next tick nor anybody else sends another.
    tick = deck.make_due(job)
    scheduler.turn()
    assert outcome(deck.side.send(actor)).because_of == first["message_id"]
    assert deck.sent() == [first]
    assert deck.handled(job) == tick
    with deck.side.working():
        eventually(lambda: deck.sent() == [])
        eventually(lambda: list(deck.client.scan_iter(f"{OWN}unique.*")) == [])
    deck.make_due(job)
    scheduler.turn()
    assert len(deck.sent()) == 1


def test_how_ticks_went_is_counted(deck: Deck) -> None:
    jobs = [
        deck.job(deck.hourly(), missed="skip"),
        deck.job(deck.hourly()),
        deck.job("* * * * * *"),
        deck.job(on=False),
    ]
    for job in jobs[:2]:
        deck.set_handled(job, deck.now() - timedelta(days=10))
    scheduler = deck.scheduler(*jobs)
    names = [job.name for job in jobs]

    def counts() -> dict[tuple[int, str], int]:
        return {(names.index(a), outcome): n for (a, outcome), (n,) in counted(deck.client)["scheduled"].items()}

    eventually(lambda: scheduler.turn() and counts()[2, "on_time"], seconds=30)
    found = counts()
    # What there may be is there from the beginning, so that Prometheus sees the first of it, too.
    assert found.pop((2, "on_time")) >= 1
    assert {key: n for key, n in found.items() if n} == {(0, "let_be"): 1, (1, "missed"): 1}
    assert set(found) == {(n, o) for n in range(3) for o in ("on_time", "missed", "let_be")} - {(2, "on_time")}
    (late,) = counted(deck.client)["schedule_lateness_seconds"].values()
    assert sum(late[:-1]) == sum(found.values()) + counts()[2, "on_time"]


class TestOneTick:
    def test_what_is_new_waits_for_its_time(self, deck: Deck) -> None:
        job = deck.job()
        before = deck.now()
        scheduler = deck.scheduler(job)
        assert 0 < scheduler.turn() <= LOOK_EVERY
        assert deck.sent() == []
        assert before - timedelta(seconds=1) < deck.handled(job) <= deck.now()

    def test_it_is_sent_as_any_message_is(self, deck: Deck) -> None:
        job = deck.job(args=["x"], kwargs={"n": 1})
        scheduler = deck.scheduler(job)
        tick = deck.make_due(job)
        with freeze_time("1999-12-31"):
            # The host's clock decides nothing.
            assert scheduler.turn() == 0
        (message,) = deck.sent()
        assert (message["actor_name"], message["args"], message["kwargs"]) == (job.name, ["x"], {"n": 1})
        options = message["options"]
        assert (options["tenant_id"], options["correlation_id"]) == (str(TENANT), message["message_id"])
        assert UUID(message["message_id"])
        assert scheduled([message]) == [tick]
        assert deck.handled(job) == tick
        last = read(deck.client).sent[job.name]
        assert (last.tick, last.message_id, last.by) == (tick, message["message_id"], "one/1")
        assert deck.now() - last.at < timedelta(minutes=1)

    def test_one_that_runs_often_runs_when_it_is_time(self, deck: Deck) -> None:
        job = deck.job("* * * * * *")
        scheduler = deck.scheduler(job)
        end = time.monotonic() + 30
        while len(deck.sent()) < 3:
            assert time.monotonic() < end
            time.sleep(min(scheduler.turn(), 1.0))
        found = scheduled(deck.sent())
        assert found == sorted(set(found))

    @pytest.mark.parametrize(("missed", "count"), [("once", 1), ("skip", 0)])
    def test_of_those_that_nobody_was_there_for_one_is_sent_or_none(self, deck: Deck, missed: str, count: int) -> None:
        job = deck.job(deck.hourly(), missed=missed)
        deck.set_handled(job, deck.now() - timedelta(days=10))
        # One that has just started as well as one that was there before Redis went away.
        scheduler = deck.scheduler(job)
        scheduler.turn()
        assert len(deck.sent()) == count
        assert deck.now() - deck.handled(job) < timedelta(hours=1)
        assert (job.name in read(deck.client).sent) == bool(count)

    def test_two_jobs_do_not_wait_for_one_that_cannot_be_sent(self, deck: Deck) -> None:
        first, wrong, last = (deck.job() for _ in range(3))
        del deck.broker.actors[wrong.name]
        scheduler = deck.scheduler(first, wrong, last)
        for job in (first, wrong, last):
            deck.make_due(job)
        scheduler.turn()
        assert [message["actor_name"] for message in deck.sent()] == [first.name, last.name]
        # Nor is it asked for without a pause.
        assert scheduler.turn() == LOOK_EVERY


class TestExactlyOnce:
    def test_ten_at_once(self, deck: Deck) -> None:
        jobs = [deck.job(), deck.job()]
        schedulers = [deck.scheduler(*jobs, name=f"{n}/1") for n in range(10)]
        for turn in range(1, 11):
            for job in jobs:
                deck.make_due(job)
            barrier = threading.Barrier(len(schedulers))

            def go(scheduler: Scheduler, barrier: threading.Barrier = barrier) -> None:
                barrier.wait()
                scheduler.turn()

            threads = [threading.Thread(target=go, args=[scheduler]) for scheduler in schedulers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(deck.sent()) == 2 * turn

    @pytest.mark.parametrize(
        ("point", "by_the_first"),
        [("before look", 0), ("after look", 0), ("enqueue", 0), ("before send", 0), ("after send", 1)],
    )
    @pytest.mark.parametrize("finished", [False, True])
    def test_whoever_dies_where(self, deck: Deck, point: str, by_the_first: int, finished: bool) -> None:
        job = deck.job()
        dying, other = Dying(deck.broker.run), deck.scheduler(job, name="two/2")
        first = deck.scheduler(job, run=dying)
        # One has looked before anything happens, and finds out only when it sends.
        slow = deck.scheduler(job, run=(waiting := Waiting(deck.broker.run)), name="three/3")
        deck.make_due(job)
        looked = threading.Thread(target=slow.turn)
        waiting.hold = True
        looked.start()
        assert waiting.reached.wait(30)
        dying.at = point
        deck.broker.add_middleware(killer := Killer(dying))
        with pytest.raises(Killed):
            first.turn()
        deck.broker.middleware.remove(killer)
        sent = deck.sent()
        assert len(sent) == by_the_first
        if finished and sent:
            # It ran to its end before anybody else looked.
            deck.client.delete(f"dramatiq:{QUEUE}", f"dramatiq:{QUEUE}.msgs")
        waiting.go.set()
        looked.join()
        for scheduler in (other, slow, other):
            scheduler.turn()
        assert len(deck.sent()) == (0 if finished and sent else 1)

    def test_a_lost_answer(self, deck: Deck) -> None:
        job = deck.job()
        losing = Dying(deck.broker.run, ConnectionClosed("Redis: gone"))
        scheduler = deck.scheduler(job, run=losing)
        deck.make_due(job)
        for point in ("after look", "before send", "after send"):
            losing.at = point
            with pytest.raises(ConnectionClosed):
                scheduler.turn()
        losing.at = None
        scheduler.turn()
        assert len(deck.sent()) == 1

    def test_saying_it_again_is_known(self, deck: Deck) -> None:
        job = deck.job()
        deck.scheduler(job)
        tick, state = deck.make_due(job), State(deck.broker.run, "x")
        handled = deck.handled(job)
        said = {"message_id": "m", "by": "x"}
        entry = (QUEUE, "1", b"{}")
        # As redis-py does after a lost answer.
        assert [state.take(job, handled, tick, entry, said) for _ in range(2)] == [True, True]
        assert not state.take(job, handled, tick, (QUEUE, "2", b"{}"), said)
        assert deck.client.lrange(f"dramatiq:{QUEUE}", 0, -1) == [b"1"]

    def test_a_redis_without_memory_takes_all_of_it_or_nothing(self) -> None:
        with running_redis(**{"maxmemory-policy": "noeviction"}) as url:
            deck = Deck(url)
            job = deck.job()
            scheduler = deck.scheduler(job)
            deck.make_due(job)
            handled = deck.handled(job)
            deck.client.config_set("maxmemory", "1")
            with pytest.raises(ConnectionClosed, match="maxmemory"):
                scheduler.turn()
            assert deck.handled(job) == handled
            deck.client.config_set("maxmemory", "0")
            scheduler.turn()
            assert len(deck.sent()) == 1
            deck.side.close()


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """Scripts that end their process at one point."""

    def __init__(self, run: Scripts, error: BaseException | None = None) -> None:
        self._run = run
        self._error = error or Killed()
        self.at: str | None = None

    def reach(self, point: str) -> None:
        if self.at == point:
            raise self._error

    def __call__(self, name: str, *arguments: Any) -> Any:
        kind = name.removeprefix("schedule_")
        self.reach(f"before {kind}")
        found = self._run(name, *arguments)
        self.reach(f"after {kind}")
        return found


class Waiting(Dying):
    """Scripts that wait between look and send."""

    def __init__(self, run: Scripts) -> None:
        super().__init__(run)
        self.hold = False
        self.reached, self.go = threading.Event(), threading.Event()

    def reach(self, point: str) -> None:
        if self.hold and point == "before send":
            self.reached.set()
            assert self.go.wait(60)
            self.hold = False


class Killer(Middleware):
    """Ends a process while it enqueues."""

    def __init__(self, dying: Dying) -> None:
        self._dying = dying

    def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: Any) -> None:
        self._dying.reach("enqueue")


class TestClock:
    def test_one_that_is_set_back_a_little_sends_nothing_twice(self, deck: Deck) -> None:
        job = deck.job("* * * * * *")
        ahead = (deck.now() + timedelta(hours=2, minutes=50)).replace(microsecond=0)
        deck.set_handled(job, ahead)
        deck.scheduler(job).turn()
        assert (deck.sent(), deck.handled(job)) == ([], ahead)

    def test_one_that_had_been_wrong_stops_nothing(self, deck: Deck) -> None:
        job = deck.job("* * * * * *")
        deck.set_handled(job, deck.now() + timedelta(days=300))
        deck.scheduler(job)
        assert deck.handled(job) <= deck.now()


class TestChanges:
    def test_what_was_off_or_at_another_time_was_not_missed(self, deck: Deck) -> None:
        job = deck.job(deck.hourly())
        others = [
            Job(job.name, job.schedule, Cron("7 7 7 7 *")),
            Job(job.name, job.schedule, job.cron, on=False),
        ]
        for other in others:
            deck.set_handled(job, deck.now() - timedelta(days=10))
            deck.scheduler(other)
            deck.scheduler(job).turn()
            assert deck.sent() == []
            assert deck.now() - deck.handled(job) < timedelta(hours=1)

    def test_two_releases_at_a_time_do_not_keep_each_other_from_it(self, deck: Deck) -> None:
        job = deck.job()
        other = Job(job.name, job.schedule, Cron("0 12 1 1 *"))
        off = Job(job.name, job.schedule, job.cron, on=False)
        schedulers = [deck.scheduler(one, name=f"{n}/1") for n, one in enumerate((job, other, off))]
        ticks = [deck.make_due(job), deck.make_due(other)]
        for scheduler in reversed(schedulers):
            scheduler.turn()
        assert sorted(scheduled(deck.sent())) == sorted(ticks)

    def test_what_nobody_looks_after_is_forgotten(self, deck: Deck) -> None:
        job, kept = deck.job(), deck.job()
        deck.scheduler(job, kept)
        long_ago = deck.now() - timedelta(milliseconds=KEEP + 1000)
        deck.client.hset(f"{OWN}schedule", f"seen\n{job.rule}\n{job.name}", str(int(long_ago.timestamp() * 1000)))
        deck.client.zadd(f"{OWN}schedulers", {"gone": long_ago.timestamp() * 1000})
        deck.client.hset(f"{OWN}schedulers.facts", "gone", "{}")
        deck.scheduler(kept)
        assert [name for name, _ in read(deck.client).handled] == [kept.name]
        assert not deck.client.hexists(f"{OWN}schedulers.facts", "gone")


class TestWhatIsTold:
    def test_of_schedulers(self, deck: Deck) -> None:
        assert scheduler_state(deck.client).last_sign is None
        job, off = deck.job(), deck.job(on=False)
        first = deck.scheduler(job, off, name="a/1")
        first.turn()
        state = scheduler_state(deck.client)
        assert (state.living, state.name, state.jobs, state.next_job) == (1, "a/1", 1, job.name)
        assert state.next_tick == job.cron.after(deck.now())
        assert (state.late, state.wrong) == (0, False)
        assert state.since is not None
        assert deck.now() - state.since < timedelta(minutes=1)
        # The one that has lived longest is shown.
        second = deck.scheduler(job, name="b/2")
        assert (scheduler_state(deck.client).living, scheduler_state(deck.client).name) == (2, "a/1")
        first.leave(State(deck.broker.run, "a/1"))
        assert (scheduler_state(deck.client).living, scheduler_state(deck.client).name) == (1, "b/2")
        second.turn()
        silent = deck.now().timestamp() * 1000 - LEASE * 1000 - 1
        deck.client.zadd(f"{OWN}schedulers", {"a/1": silent - 1000, "b/2": silent})
        state = scheduler_state(deck.client)
        assert (state.lives, state.name, state.wrong) == (False, "b/2", True)

    def test_of_one_that_is_late(self, deck: Deck) -> None:
        job = deck.job(deck.hourly())
        scheduler = deck.scheduler(job)
        del deck.broker.actors[job.name]
        late = deck.now() - timedelta(hours=2)
        deck.set_handled(job, late)
        scheduler.turn()
        scheduler.turn()
        state = scheduler_state(deck.client)
        assert state.lives
        assert 3_600 <= state.late <= 7_201
        assert state.wrong

    def test_in_words(self, deck: Deck) -> None:
        def told() -> str:
            return "\n".join(line.plain for line in _lines(scheduler_state(deck.client), deck.now(), anything_on=True))

        assert told() == "No scheduler was ever there: worker scheduler starts one."
        for n in range(3):
            deck.scheduler(name=f"{n}/1").turn()
        assert "/1 lives since 20" in told()
        assert told().endswith("; 2 others beside it.")
        old = (deck.now() - timedelta(hours=3)).timestamp() * 1000
        for n in range(3):
            deck.client.zadd(f"{OWN}schedulers", {f"{n}/1": old + n})
        assert told().startswith("No scheduler lives: 2/1 was last heard of 3 h ago, at 20")

    @pytest.mark.parametrize("facts", [b"[", b"[]", b'{"next": "x", "since": [], "jobs": "y", "name": 5}', b"\xff"])
    def test_of_one_that_says_nonsense(self, client: redis.Redis, facts: bytes) -> None:
        client.zadd(f"{OWN}schedulers", {"a": 1})
        client.hset(f"{OWN}schedulers.facts", "a", facts)
        for field, value in ((b"tick", b"x"), (b"tick\n\xff\n\xff", b"5"), (b"sent\n\na", b"1 {"), (b"sent\n\nb", b"")):
            client.hset(f"{OWN}schedule", field, value)
        state = scheduler_state(client)
        assert (state.living, state.jobs, state.late) == (0, 0, 0)
        assert read(client).sent == {}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
