"""Failed jobs are sent again, once each, and their rows are closed by how that ends: on real Postgres and Redis."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from db.failed import Filter
from db.failed.expiry import expire
from db.failed.offboarding import offboard
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.replaying import A, B, Deployment
from tests.waiting import eventually


def test_a_replay_that_succeeds_closes_its_row(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    (before,) = deployment.rows()
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items, done.matched) == ("finished", {"succeeded": 1}, 1)
    (row,) = deployment.rows()
    assert row["status"] == "resolved"
    assert row["resolved_at"] is not None
    # The same message, for the same tenant.
    assert deployment.ran == [("one", A, before["task_id"])] * 2
    events = deployment.rows(
        "SELECT event, changed_by, reason FROM worker_failed_job_events WHERE failed_job_id IS NOT NULL ORDER BY id"
    )
    assert [event["event"] for event in events] == ["captured", "claimed", "replayed"]
    assert events[1]["changed_by"] == "ann"
    assert events[1]["reason"] == f"replay {replay_id}"
    # Of a million, Redis does not remember each for a month.
    client = deployment.broker.client  # type: ignore[attr-defined]
    (mark,) = client.keys(f"{deployment.settings.redis_namespace}:__dramaturg__.replay.*")
    assert 0 < client.ttl(mark) <= 24 * 3600


def test_a_replay_that_fails_returns_its_row(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"failed": 1})
    (row,) = deployment.rows()
    assert (row["id"], row["status"], row["retry_count"]) == (row_id, "pending", 1)
    assert row["last_retry_at"] is not None


def test_what_failed_after_the_filter_says_is_not_sent(deployment: Deployment) -> None:
    (before,) = deployment.fail("before")
    (after,) = deployment.fail("after")
    deployment.fails.clear()
    until = next(row["failed_at"] for row in deployment.rows() if row["id"] == after)
    replay_id = deployment.replay(Filter(actor=("test.replayed",), until=until))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items, done.matched) == ("finished", {"succeeded": 1}, 1)
    assert [deployment.status(row_id) for row_id in (before, after)] == ["resolved", "pending"]


def test_many_go_up_the_ramp_and_each_once(deployment: Deployment) -> None:
    rows = deployment.fail(*(str(n) for n in range(60)))
    deployment.fails.clear()
    deployment.ran.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items, done.matched) == ("finished", {"succeeded": 60}, 60)
    assert sorted(what for what, *_ in deployment.ran) == sorted(str(n) for n in range(60))
    assert {row["status"] for row in deployment.rows()} == {"resolved"}
    assert len(rows) == 60
    # Those that are claimed together are so at one moment.
    together = list(Counter(item["claimed_at"] for item in deployment.items()).values())
    assert together[0] == 1
    assert max(together) > 1


def test_it_stops_by_itself_when_too_many_fail_again(deployment: Deployment) -> None:
    deployment.fail(*(str(n) for n in range(30)))
    deployment.ran.clear()
    replay_id = deployment.replay(Filter(actor=("test.replayed",)), ramp=(1,))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert done.state == "stopped"
    assert done.why == "5 of the last 5 failed again"
    assert len(deployment.ran) == 5
    assert {row["status"] for row in deployment.rows()} == {"pending"}


def test_what_does_not_fit_todays_code_stays_as_it_is(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    with psycopg.connect(deployment.database.admin_url, autocommit=True) as connection:
        connection.execute("DELETE FROM tenants WHERE id = %s", [A])
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        done = deployment.runner().run_to_end(replay_id)
    assert done is not None
    assert (done.state, done.items) == ("finished", {"refused": 1})
    (row,) = deployment.rows()
    assert row["status"] == "pending"
    (item,) = deployment.rows("SELECT * FROM worker_replay_items")
    assert item["why"] == f"there is no tenant {A} any more"


def test_a_runner_that_dies_before_it_sends_is_followed_by_one_that_does(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr("worker.replay.runner.send", die)
        with deployment.working():
            deployment.runner("first").run_to_end(replay_id)
    assert deployment.rows()[0]["status"] == "in_progress"
    with deployment.working():
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert done.items == {"succeeded": 1}
    assert [what for what, *_ in deployment.ran] == ["one", "one"]


def test_a_runner_that_dies_after_it_sent_is_followed_by_one_that_sends_none(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    deployment.fails.clear()
    replay_id = deployment.replay(Filter(ids=(row_id,)))
    with deployment.working():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

            def die(*_: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr("db.replays.claims.sent", die)
            deployment.runner("first").run_to_end(replay_id)
        eventually(lambda: deployment.rows()[0]["status"] == "resolved")
        done = deployment.runner("second").run_to_end(replay_id)
    assert done is not None
    assert done.items == {"succeeded": 1}
    assert [what for what, *_ in deployment.ran] == ["one", "one"]


def test_what_replays_say_of_a_tenant_goes_with_it(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    (others,) = deployment.fail("two", tenant=B)
    for each in (row_id, others):
        with deployment.working():
            deployment.runner().run_to_end(deployment.replay(Filter(ids=(each,))))
    done = offboard(operator_transaction, A, by="ann", reason=None)
    assert (done.complete, done.replay_items) == (True, 1)
    assert [item["tenant_id"] for item in deployment.items()] == [B]


def test_replays_are_kept_as_long_as_history(deployment: Deployment) -> None:
    (row_id,) = deployment.fail("one")
    with deployment.working():
        deployment.runner().run_to_end(deployment.replay(Filter(ids=(row_id,))))
    under_way = deployment.replay(Filter(ids=(row_id,)))
    now = datetime.now(UTC)
    assert expire(operator_transaction, now=now + timedelta(days=399), by="ann").replays == 0
    assert expire(operator_transaction, now=now + timedelta(days=401), by="ann").replays == 1
    assert [row["id"] for row in deployment.rows("SELECT id FROM worker_replays")] == [under_way]
    assert deployment.items() == []


def test_an_original_for_another_actor_than_its_row_says_is_not_sent(deployment: Deployment) -> None:
    """Whoever is bound to a tenant may replace originals of its own."""
    (row_id,) = deployment.fail("one")
    deployment.ran.clear()
    deployment.declare(deployment.run, "test.other")
    deployment.sql(
        "UPDATE worker_failed_job_originals SET original ="
        " convert_to(replace(convert_from(original, 'UTF8'), 'test.replayed', 'test.other'), 'UTF8')"
    )
    with deployment.working():
        deployment.runner().run_to_end(deployment.replay(Filter(ids=(row_id,))))
    (item,) = deployment.items()
    assert (item["state"], item["why"]) == (
        "refused",
        "its original is for 'test.other', its row for 'test.replayed': say --as which",
    )
    assert deployment.ran == []


def test_work_across_tenants_is_sent_for_a_tenants_row_only_where_somebody_says_so(deployment: Deployment) -> None:
    done: list[str] = []
    deployment.declare(done.append, "test.for_all", tenant_scoped=False)
    (row_id,) = deployment.fail("one")
    deployment.sql("DELETE FROM worker_failed_job_originals")
    deployment.sql("UPDATE worker_failed_jobs SET task_name = 'test.for_all', task_kwargs = '{}'")
    with deployment.working():
        deployment.runner().run_to_end(deployment.replay(Filter(ids=(row_id,))))
        (item,) = deployment.items()
        assert item["state"] == "refused"
        assert "across tenants" in item["why"]
        deployment.runner().run_to_end(deployment.replay(Filter(ids=(row_id,)), actor="test.for_all"))
    assert done == ["one"]


def test_whoever_is_bound_to_a_tenant_sends_no_work_across_tenants(deployment: Deployment) -> None:
    done: list[str] = []
    deployment.declare(done.append, "test.for_all", tenant_scoped=False)
    (row_id,) = deployment.fail("one")
    with tenant_context(A), transaction() as s:
        replay_id = runs.create(s, Filter(ids=(row_id,)), ReplaySettings(actor="test.for_all"), by="tenant")
    with deployment.working():
        deployment.runner().run_to_end(replay_id)
    assert [item["state"] for item in deployment.items()] == ["refused"]
    assert done == []
