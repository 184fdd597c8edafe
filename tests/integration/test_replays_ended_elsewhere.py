"""A replay ends, and its rows are closed rightly, whoever else does something to them while it is under way."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy.exc import ProgrammingError

from db import failed_jobs
from db.failed import Filter, abandon, reopen, resolve
from db.failures import Failure, ending_from_json
from db.replays import edits, runs
from db.replays.edits import Arguments, Edit
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from middleware.lua_scripts import Scripts
from tests.integration.replaying import A, B, Deployment
from tests.waiting import eventually
from worker.replay.replayer import Replayer
from worker.replay.sending import send, withdraw

BY_HAND = {
    "resolved": lambda row: resolve(operator_transaction, Filter(ids=(row,)), by="ann", note="by hand"),
    "abandoned": lambda row: abandon(operator_transaction, Filter(ids=(row,)), by="ann", reason="by hand"),
    "pending": lambda row: reopen(operator_transaction, Filter(ids=(row,)), by="ann"),
}


def claimed_and_sent(deployment: Deployment, row_id: UUID, monkeypatch: pytest.MonkeyPatch) -> UUID:
    """Send a job again while nobody consumes, and return its replay."""
    monkeypatch.setattr("worker.replay.making.consumed_queues", lambda *_: {"attribution"})
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    deployment.runner(stop=lambda: bool(deployment.items())).run_to_end(replay_id)
    assert [item["state"] for item in deployment.items()] == ["sent"]
    return replay_id


@pytest.mark.parametrize("status", sorted(BY_HAND))
@pytest.mark.parametrize("then", ["succeeds", "fails"])
def test_a_row_that_a_person_takes_out_of_a_replay_ends_its_item(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, status: str, then: str
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    BY_HAND[status](row_id)
    (item,) = deployment.items()
    assert (item["state"], item["why"]) == ("released", f"the job became {status} meanwhile")
    done = deployment.runner("another").run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"released": 1})
    # Its message runs all the same.
    if then == "succeeds":
        deployment.fails.clear()
    with deployment.working():
        eventually(lambda: deployment.broker.do_qsize("attribution") == 0)  # type: ignore[attr-defined]
    assert len(deployment.ran) == 2
    statuses = sorted(row["status"] for row in deployment.rows())
    match status, then:
        case "resolved", "fails":
            # What is resolved stays so, and a failure has its row.
            assert statuses == ["pending", "resolved"]
        case "abandoned", "succeeds":
            assert statuses == ["abandoned"]
        case _, "fails":
            assert statuses == ["pending"]
        case _:
            assert statuses == ["resolved"]
    deployment.assert_counts_are_right()


def test_a_row_that_is_purged_ends_its_item(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    deployment.sql("DELETE FROM worker_failed_jobs")
    done = deployment.runner("another").run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"released": 1})
    with deployment.working():
        eventually(lambda: deployment.rows())
    # It failed, so there is a row again.
    assert [row["status"] for row in deployment.rows()] == ["pending"]
    deployment.assert_counts_are_right()


def test_the_end_of_an_execution_that_nobody_waits_for_leaves_the_next_one_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    claimed_and_sent(deployment, row_id, monkeypatch)
    (first,) = deployment.items()
    BY_HAND["pending"](row_id)
    second = deployment.replay(Filter(ids=(row_id,)))
    deployment.runner("second", stop=lambda: len(deployment.items()) == 2).run_to_end(second)
    of_first = Failure(
        delivery_id=str(first["id"]),
        task_id=deployment.rows()[0]["task_id"],
        task_name="test.replayed",
        queue="attribution",
        worker="w",
        task_args=["one"],
        task_kwargs={},
        tenant_id=A,
        error_type="unknown",
        exception_class="ValueError",
        error_message="late",
        traceback=None,
        retry_count=0,
        last_retry_at=None,
        correlation_id=A,
        failed_at=deployment.rows()[0]["failed_at"],
        replayed_row=row_id,
        replay_item=first["id"],
    )
    failed_jobs.record(of_first)
    assert deployment.status(row_id) == "in_progress"
    assert [item["state"] for item in deployment.items()] == ["released", "sent"]
    # It is ended, too: it does not run again.
    with tenant_context(A):
        assert failed_jobs.is_recorded(str(first["id"]))
    # Nor is it in Redis any more, as if a worker had ended it.
    deployment.broker.client.hdel("dramatiq:attribution.msgs", str(first["id"]))  # type: ignore[attr-defined]
    deployment.fails.clear()
    with deployment.working():
        done = deployment.runner("third").run_to_end(second)
    assert done is not None
    assert done.items == {"succeeded": 1}
    assert [row["status"] for row in deployment.rows()] == ["resolved"]
    deployment.assert_counts_are_right()


@pytest.mark.parametrize("then", ["succeeds", "fails"])
def test_a_row_that_is_handed_to_another_tenant_while_it_is_under_way(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    deployment.sql("UPDATE worker_failed_jobs SET tenant_id = %s", B)
    if then == "succeeds":
        deployment.fails.clear()
    with deployment.working():
        done = deployment.runner("another").run_to_end(replay_id)
    assert done is not None
    assert done.state == "finished"
    assert deployment.status(row_id) == ("resolved" if then == "succeeds" else "pending")
    # What ran for one tenant left nothing with the other.
    others = [row for row in deployment.rows() if row["id"] != row_id]
    assert [(row["tenant_id"], row["status"]) for row in others] == ([] if then == "succeeds" else [(A, "pending")])
    deployment.assert_counts_are_right()


def test_a_row_that_is_handed_to_another_tenant_before_it_is_sent_is_let_go(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), deployment.working():
        patch.setattr("worker.replay.runner.send", die)
        deployment.runner("first").run_to_end(replay_id)
    deployment.sql("UPDATE worker_failed_jobs SET tenant_id = %s", B)
    with deployment.working():
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert done.items == {"released": 1}
    assert deployment.status(row_id) == "pending"
    assert len(deployment.ran) == 1
    deployment.assert_counts_are_right()


def die(*_: Any) -> None:
    raise KeyboardInterrupt


def test_what_was_withdrawn_by_a_process_that_died_over_it_is_let_go(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), deployment.working():
        patch.setattr("worker.replay.runner.send", die)
        deployment.runner("first").run_to_end(replay_id)
    (item,) = deployment.items()
    run = Scripts(deployment.broker.client, deployment.settings.redis_namespace)  # type: ignore[attr-defined]
    assert withdraw(run, [item["id"]]) == {item["id"]}
    with deployment.working():
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"released": 1})
    assert deployment.status(row_id) == "pending"
    assert len(deployment.ran) == 1


def test_what_a_cancelled_replay_had_claimed_goes_back(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), deployment.working():
        patch.setattr("worker.replay.runner.send", die)
        deployment.runner("first").run_to_end(replay_id)
    with operator_transaction() as s:
        runs.cancel(s, replay_id, by="ann")
    runner = deployment.runner("second")
    Replayer(operator_transaction, lambda *_: runner).look(runner)
    assert deployment.status(row_id) == "pending"
    assert deployment.stands(replay_id).items == {"released": 1}
    deployment.assert_counts_are_right()


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_what_a_replay_that_waits_for_a_person_had_claimed_goes_back_and_is_sent_when_it_goes_on(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    rows = deployment.fail("one", "two", "three", "four")
    names = {row["id"]: row["task_args"][0] for row in deployment.rows()}
    deployment.sql("UPDATE worker_failed_job_originals SET original = 'none' WHERE failed_job_id = %s", rows[0])
    deployment.fails.clear()
    deployment.ran.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(3,))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), deployment.working():
        patch.setattr("worker.replay.runner.send", die)
        deployment.runner("first").run_to_end(replay_id)
    assert [deployment.status(row) for row in rows] == ["pending", "in_progress", "in_progress", "pending"]
    # One was sent, and its process died before it could say so.
    (sent,) = deployment.rows(f"SELECT id FROM worker_replay_items WHERE failed_job_id = '{rows[1]}'")
    deployment.broker.client.set(f"dramatiq:__dramaturg__.replay.{sent['id']}", "sent")  # type: ignore[attr-defined]
    with operator_transaction() as s:
        runs.pause(s, replay_id, by="ann") if state == "paused" else runs.stop(s, replay_id, runner="first", why="many")
    runner = deployment.runner("housekeeping", stop=lambda: True)
    # Its process has the replay to itself, until it is known to be gone.
    deployment.sql("UPDATE worker_replays SET runner = 'first', runner_until = now() + interval '10 seconds'")
    Replayer(operator_transaction, lambda *_: runner).look(runner)
    assert deployment.status(rows[2]) == "in_progress"
    deployment.sql("UPDATE worker_replays SET runner_until = now()")
    Replayer(operator_transaction, lambda *_: runner).look(runner)
    assert [deployment.status(row) for row in rows] == ["pending", "in_progress", "pending", "pending"]
    assert deployment.stands(replay_id).items == {"refused": 1, "sent": 1}
    event = deployment.rows("SELECT * FROM worker_failed_job_events WHERE event = 'released'")[-1]
    assert (event["failed_job_id"], event["reason"]) == (rows[2], f"its replay is {state}, and what ran it is gone")
    deployment.assert_counts_are_right()
    # The one that was sent ends.
    deployment.sql("UPDATE worker_replay_items SET state = 'succeeded' WHERE state = 'sent'")
    deployment.sql("UPDATE worker_failed_jobs SET status = 'resolved' WHERE id = %s", rows[1])
    with operator_transaction() as s:
        runs.resume(s, replay_id, by="ann")
    with deployment.working():
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"refused": 1, "succeeded": 3})
    assert sorted(what for what, *_ in deployment.ran) == sorted([names[rows[2]], names[rows[3]]])
    deployment.assert_counts_are_right()


@pytest.mark.parametrize("then", ["succeeds", "fails"])
def test_a_row_of_a_cancelled_replay_that_is_handed_to_another_tenant_is_closed(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    with operator_transaction() as s:
        runs.cancel(s, replay_id, by="ann")
    deployment.sql("UPDATE worker_failed_jobs SET tenant_id = %s", B)
    runner = deployment.runner("housekeeping", stop=lambda: True)
    Replayer(operator_transaction, lambda *_: runner).look(runner)
    # What was sent goes on.
    assert deployment.status(row_id) == "in_progress"
    if then == "succeeds":
        deployment.fails.clear()
    with deployment.working():
        eventually(lambda: [item["state"] for item in deployment.items()] != ["sent"])
    Replayer(operator_transaction, lambda *_: runner).look(runner)
    assert deployment.status(row_id) == ("resolved" if then == "succeeds" else "pending")
    deployment.assert_counts_are_right()


def test_a_success_whose_row_somebody_holds_waits_in_the_spool_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    spool = f"{deployment.settings.redis_namespace}:__dramaturg__.spool"
    client = deployment.broker.client  # type: ignore[attr-defined]
    with psycopg.connect(deployment.database.admin_url) as person, deployment.working():

        def hold_and_send(*given: Any) -> set[UUID]:
            person.execute("SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE", [row_id])
            return send(*given)

        # Claimed, and not sent.
        with monkeypatch.context() as patch:
            patch.setattr("worker.replay.runner.send", hold_and_send)
            deployment.runner(stop=lambda: bool(deployment.items())).run_to_end(replay_id)
        eventually(lambda: client.hlen(spool) == 1)
        (data,) = client.hvals(spool)
        # What has no part in it is written meanwhile.
        deployment.fails |= {"other"}
        deployment.actor.send_with_options(args=("other",), tenant_id=str(A))
        eventually(lambda: len(deployment.rows()) == 2)
        assert client.hlen(spool) == 1
        person.rollback()
        eventually(lambda: deployment.status(row_id) == "resolved")
        eventually(lambda: client.hlen(spool) == 0)
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert done.items == {"succeeded": 1}
    # A version that knows no successes leaves it where it is.
    with pytest.raises((KeyError, TypeError)):
        Failure.from_json(data)
    assert ending_from_json(data) is not None
    said = json.loads(data)
    assert (said["task_name"], said["error_type"]) == ("test.replayed", "(succeeded)")
    deployment.assert_counts_are_right()


def test_a_success_that_was_written_before_its_worker_was_lost_is_not_run_again(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        deployment.runner().run_to_end(replay_id)
    (item,) = deployment.items()
    with tenant_context(A):
        assert failed_jobs.is_recorded(str(item["id"]))


def test_a_replay_that_is_retried_is_ended_by_its_last_execution_alone(deployment: Deployment) -> None:
    tries: list[int] = []

    def twice(what: str) -> None:
        tries.append(1)
        if len(tries) in (1, 2, 3):
            raise ValueError("not yet")

    actor = deployment.declare(twice, "test.twice", max_retries=1)
    with deployment.working():
        actor.send_with_options(args=("x",), tenant_id=str(A))
        eventually(lambda: deployment.rows())
        assert len(tries) == 2
        (row,) = deployment.rows()
        replay_id = deployment.replay(Filter(ids=(row["id"],)))
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    # It failed, moved to the delay queue and from there, and only then succeeded.
    assert len(tries) == 4
    assert (done.state, done.items) == ("finished", {"succeeded": 1})
    assert deployment.status(row["id"]) == "resolved"
    deployment.assert_counts_are_right()


def test_an_edited_replay_that_fails_leaves_what_was_kept(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails |= {"edited"}
    before = deployment.rows("SELECT original FROM worker_failed_job_originals")
    edit = Edit(Arguments(["one"], {}), Arguments(["edited"], {}))
    with operator_transaction() as s:
        edit_id = str(edits.keep(s, row_id, edit, None))
    replay_id = deployment.replay(Filter(ids=(row_id,)), edit={"id": edit_id})
    with deployment.working():
        deployment.runner().run_to_end(replay_id)
    (row,) = deployment.rows()
    assert (row["status"], row["task_args"], row["error_message"]) == ("pending", ["one"], "no edited")
    assert deployment.rows("SELECT original FROM worker_failed_job_originals") == before
    (item,) = deployment.items()
    assert (item["state"], item["edit"]) == ("failed", {"id": edit_id})


def test_what_was_forgotten_meanwhile_stays_so(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    deployment.sql("DELETE FROM worker_failed_job_originals")
    deployment.sql("UPDATE worker_failed_jobs SET task_args = NULL, task_kwargs = NULL")
    with deployment.working():
        deployment.runner("second").run_to_end(replay_id)
    (row,) = deployment.rows()
    assert (row["status"], row["retry_count"], row["task_args"], row["task_kwargs"]) == ("pending", 1, None, None)
    assert deployment.rows("SELECT original FROM worker_failed_job_originals") == []


def test_postgres_tells_a_tenants_session_nothing_of_an_operators_replay(deployment: Deployment) -> None:
    # Nobody's session is not an operator's, who sends the jobs of all.
    with pytest.raises(ProgrammingError, match="row-level security"), tenant_context(None), transaction() as s:
        runs.create(s, Filter(actor=("test.replayed",)), runs.ReplaySettings(), by="nobody")
    operators = deployment.replay(Filter(actor=("test.replayed",)))
    for tenant in (None, A):
        with tenant_context(tenant), transaction() as s:
            assert runs.get(s, operators) is None
