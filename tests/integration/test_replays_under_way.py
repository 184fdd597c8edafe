"""Which jobs a replay takes, how it goes on, and that nothing which passes makes it leave one out."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis
from dramatiq.errors import ConnectionClosed
from loguru import logger

from db.failed import Filter
from db.failed.originals import as_kept, opened
from db.replays import claims, runs
from db.session import operator_transaction
from tests.integration.replaying import A, B, Deployment
from tests.waiting import eventually
from worker.replay import replayer as replayer_module
from worker.replay.making import consumed_queues
from worker.replay.messages import Content, NotReplayable
from worker.replay.replayer import Replayer
from worker.replay.today import Today


def test_a_row_whose_workers_clock_is_ahead_is_taken(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    deployment.sql("UPDATE worker_failed_jobs SET failed_at = now() + interval '1 hour'")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.matched, done.items) == (1, {"succeeded": 1})


def test_a_row_that_fails_again_is_not_sent_again_by_the_same_replay_whatever_the_clocks_say(
    deployment: Deployment,
) -> None:
    deployment.fail("one", "two")
    deployment.ran.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), threshold=1.0)
    # As if Postgres' clock were ahead of the workers', or a worker's that failed one before had been.
    for column in ("created_at", "until_at"):
        deployment.sql(f"UPDATE worker_replays SET {column} = now() + interval '1 hour'")
    seen: list[int] = []
    with deployment.working():
        done = deployment.runner(stop=lambda: len(deployment.ran) > 10).run_to_end(
            replay_id, lambda replay: seen.append(replay.under_way)
        )
    assert done is not None
    assert (done.state, done.items) == ("finished", {"failed": 2})
    assert sorted(what for what, *_ in deployment.ran) == ["one", "two"]
    deployment.assert_counts_are_right()


def test_one_that_has_stopped_goes_on_from_the_foot_of_its_ramp(deployment: Deployment) -> None:
    deployment.fail(*(str(n) for n in range(40)))
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(1, 3), threshold=0.1)
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
        assert done is not None
        assert done.state == "stopped"
        failed = done.items["failed"]
        # At most: what makes it stop, and what is under way.
        assert failed == 3
        deployment.fails.clear()
        with operator_transaction() as s:
            runs.resume(s, replay_id, by="ann")
        under_way: list[int] = []
        done = deployment.runner().run_to_end(replay_id, lambda replay: under_way.append(replay.under_way))
    assert done is not None
    assert (done.state, done.items) == ("finished", {"failed": failed, "succeeded": 40 - failed})
    assert max(under_way) <= 3
    with operator_transaction() as s:
        pulse = claims.pulse(s, replay_id, window=20, enough=5)
    assert (pulse.under_way, pulse.succeeded, pulse.latest) == (0, 5, [True] * 20)


def test_jobs_whose_workers_are_just_starting_are_not_refused(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.replay.runner.TODAY_LASTS", 0.05)
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    looks = count()
    with monkeypatch.context() as patch:
        # As after Redis was away for longer than a lease.
        patch.setattr("worker.replay.making.consumed_queues", lambda *_: set())
        deployment.runner(stop=lambda: next(looks) > 20).run_to_end(replay_id)
    assert deployment.stands(replay_id).items == {}
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert done.items == {"succeeded": 1}


def test_jobs_whose_queue_stays_without_workers_are_refused_in_the_end(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.replay.runner.WITHOUT_CONSUMER", 0.1)
    (row_id,) = deployment.fail("one")
    monkeypatch.setattr("worker.replay.making.consumed_queues", lambda *_: set())
    done = deployment.runner().run_to_end(deployment.replay(Filter(ids=(row_id,))))
    assert done is not None
    assert (done.state, done.items) == ("finished", {"refused": 1})
    assert deployment.items()[0]["why"] == "no worker consumes its queue, 'attribution'"
    assert deployment.status(row_id) == "pending"


def test_a_row_that_somebody_holds_is_accounted_for(deployment: Deployment) -> None:
    one, two = deployment.fail("one", "two")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(10,))
    with psycopg.connect(deployment.database.admin_url) as person, deployment.working():
        person.execute("SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE", [one])
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.matched, done.items) == (2, {"succeeded": 1, "refused": 1})
    assert {item["failed_job_id"]: item["why"] for item in deployment.items()} == {one: claims.ELSEWHERE, two: None}


def test_many_that_are_refused_do_not_hold_up_the_rest(deployment: Deployment) -> None:
    deployment.fail(*(str(n) for n in range(30)))
    deployment.sql(
        "UPDATE worker_failed_job_originals SET original = 'nothing' WHERE failed_job_id <> ("
        " SELECT id FROM worker_failed_jobs ORDER BY failed_at DESC, id DESC LIMIT 1)"
    )
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(1,))
    with deployment.working():
        # It waits for the one that it sends, and for none that is refused.
        done = deployment.runner(stop=lambda: True).run_to_end(replay_id)
        assert done is not None
        assert done.items["refused"] == 29
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert done.items == {"refused": 29, "succeeded": 1}


def test_large_originals_are_taken_few_at_a_time(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = deployment.fail("one", "two", "three")
    deployment.sql("UPDATE worker_failed_job_originals SET original = decode(repeat('00', 1000), 'hex')")
    replay = deployment.stands(deployment.replay(Filter(actor=("test.replayed",))))
    for most, some in ((0, 1), (999, 1), (2_000, 2), (3_000, 3)):
        monkeypatch.setattr("db.replays.claims.BYTES_AT_ONCE", most)
        with operator_transaction() as s:
            assert len(claims.matching(s, replay, None, 500)) == some
    assert len(rows) == 3


def test_thousands_that_failed_at_the_same_moment_are_each_found_once(deployment: Deployment) -> None:
    deployment.fail(*(str(n) for n in range(12)))
    deployment.sql("UPDATE worker_failed_jobs SET failed_at = now()")
    replay = deployment.stands(deployment.replay(Filter(actor=("test.replayed",))))
    found: list[UUID] = []
    come_to = None
    with operator_transaction() as s:
        while jobs := claims.matching(s, replay, come_to, 5):
            found += [job.id for job in jobs]
            come_to = (jobs[-1].failed_at, jobs[-1].id)
    assert len(found) == len(set(found)) == 12


@pytest.mark.parametrize("where", [Filter(actor=("nobody",)), Filter(status=("resolved",))])
def test_a_replay_of_nothing_finishes(deployment: Deployment, where: Filter) -> None:
    done = deployment.runner().run_to_end(deployment.replay(where))
    assert done is not None
    assert (done.state, done.matched, done.items) == ("finished", 0, {})


def test_two_operators_at_once_send_each_job_once(deployment: Deployment) -> None:
    deployment.fail(*(str(n) for n in range(40)))
    deployment.fails.clear()
    deployment.ran.clear()
    replays = [deployment.replay(Filter(actor=("test.replayed",)), ramp=(7,)) for _ in range(2)]
    with deployment.working():
        threads = [
            threading.Thread(target=deployment.runner(f"runner {n}").run_to_end, args=(replay_id,))
            for n, replay_id in enumerate(replays)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(what for what, *_ in deployment.ran) == sorted(str(n) for n in range(40))
    assert {deployment.stands(replay_id).state for replay_id in replays} == {"finished"}
    assert {row["status"] for row in deployment.rows()} == {"resolved"}
    deployment.assert_counts_are_right()


def test_a_replay_leaves_its_lease_after_a_while(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    assert deployment.runner().run_to_end(replay_id, at_most=0.0) is not None
    left = deployment.stands(replay_id)
    assert (left.state, left.runner) == ("running", None)


class Waits:
    """Stands in for a runner of replays that have no end."""

    def __init__(self) -> None:
        self.ran: list[UUID] = []

    def tidy(self) -> int:
        return 0

    def release_removed(self) -> int:
        return 0

    def run_to_end(self, replay_id: UUID, *, at_most: float) -> None:
        assert at_most < 60
        self.ran.append(replay_id)


def test_no_replay_waits_for_another_that_waits(deployment: Deployment) -> None:
    replays = [deployment.replay(Filter(actor=("a",))) for _ in range(3)]
    runner: Any = Waits()
    replayer = Replayer(operator_transaction, lambda *_: runner)
    assert replayer.look(runner)
    assert runner.ran == replays


def test_where_migrations_are_behind_it_says_so_once(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment.sql("DROP TABLE worker_replay_items, worker_replays")
    monkeypatch.setattr(replayer_module, "EVERY", 0.01)
    said: list[str] = []
    sink = logger.add(lambda message: said.append(message.record["message"]), level="WARNING")
    looked = 0

    @contextmanager
    def begin() -> Iterator[Any]:
        nonlocal looked
        looked += 1
        with operator_transaction() as s:
            yield s

    replayer = Replayer(begin, lambda *_: Waits())  # type: ignore[arg-type]
    thread = threading.Thread(target=replayer._keep, args=(deployment.broker,))
    thread.start()
    try:
        eventually(lambda: looked > 5)
    finally:
        replayer.before_worker_shutdown(deployment.broker, None)  # type: ignore[arg-type]
        thread.join(10)
        logger.remove(sink)
    assert [text for text in said if text.startswith("replays")] == ["replays wait: ProgrammingError, SQLSTATE 42P01"]


def content(**more: Any) -> Content:
    return Content(
        **{
            "actor_name": "test.elsewhere",
            "queue_name": "attribution",
            "args": (),
            "kwargs": {},
            "options": {},
            "message_id": "m",
            "was": "test.elsewhere",
            **more,
        }
    )


def test_what_no_worker_could_read_is_refused_also_where_its_actor_is_elsewhere(deployment: Deployment) -> None:
    today = Today(deployment.broker, lambda ids: ids, knows_all=False)
    assert today.check(content(), A).queue_name == "attribution"
    with pytest.raises(NotReplayable, match="option max_retries must be a whole number"):
        today.check(content(options={"max_retries": "3"}), A)


def test_why_one_is_refused_tells_a_tenant_nothing_that_its_message_holds(deployment: Deployment) -> None:
    today = Today(deployment.broker, lambda ids: ids)
    options = {"pipe_target": {"kwargs": {"password": "hunter2"}}}
    refused = {"args": ("x",), "actor_name": "test.replayed"}
    with pytest.raises(NotReplayable, match="option pipe_target must be a message") as said:
        today.check(content(options=options, **refused), A)
    assert "hunter2" not in str(said.value)


@pytest.mark.parametrize("named", ["\0", str(B), {"password": "hunter2"}])
def test_one_that_names_another_tenant_is_refused_and_holds_up_none(deployment: Deployment, named: Any) -> None:
    strange, good = deployment.fail("strange", "good")
    (kept,) = deployment.rows(f"SELECT original FROM worker_failed_job_originals WHERE failed_job_id = '{strange}'")
    original = json.loads(opened(kept["original"], None))
    original["kwargs"]["tenant_id"] = named
    deployment.sql(
        "UPDATE worker_failed_job_originals SET original = %s WHERE failed_job_id = %s",
        as_kept(json.dumps(original).encode(), None),
        strange,
    )
    deployment.fails.clear()
    with deployment.working():
        deployment.runner().run_to_end(deployment.replay(Filter(ids=(strange, good))))
    assert (deployment.status(strange), deployment.status(good)) == ("pending", "resolved")
    (item,) = deployment.rows("SELECT * FROM worker_replay_items WHERE state = 'refused'")
    assert item["why"] == f"its argument tenant_id is not the row's tenant, {A}"


def test_an_actor_without_a_signature_is_sent_as_it_is(deployment: Deployment) -> None:
    deployment.declare(max, "test.in_c")
    today = Today(deployment.broker, lambda ids: ids)
    assert today.check(content(actor_name="test.in_c", args=(1, 2)), A).args == (1, 2)


def test_arguments_that_are_nested_too_deep_to_look_at_are_refused(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    deployment.sql("DELETE FROM worker_failed_job_originals")
    deep = "[" * 700 + "]" * 700
    deployment.sql("UPDATE worker_failed_jobs SET task_args = CAST(%s AS jsonb), task_kwargs = NULL", deep)
    done = deployment.runner().run_to_end(deployment.replay(Filter(ids=(row_id,))))
    assert done is not None
    assert (done.state, done.items) == ("finished", {"refused": 1})


def test_an_actor_that_is_elsewhere_runs_on_its_own_queue(deployment: Deployment) -> None:
    queues = {"worker.llm": "llm"}
    today = Today(deployment.broker, lambda ids: ids, knows_all=False, queue_of=queues.get)
    assert today.check(content(actor_name="worker.llm.summarise"), A).queue_name == "llm"
    # It has another name than then, and nothing says where it is.
    with pytest.raises(NotReplayable, match=r"no actor 'somewhere\.new'"):
        today.check(content(actor_name="somewhere.new"), A)


def test_tenants_are_asked_for_once(deployment: Deployment) -> None:
    asked: list[Any] = []
    today = Today(deployment.broker, lambda ids: asked.append(set(ids)) or ids)  # type: ignore[func-returns-value]
    today.look_up([A, A, None])
    today.look_up([A])
    today.check(content(actor_name="test.replayed", args=("x",)), A)
    assert asked == [{A}]


def test_redis_away_is_told_as_such() -> None:
    with redis.Redis(port=1) as nobody, pytest.raises(ConnectionClosed):
        consumed_queues(nobody, "dramatiq")
