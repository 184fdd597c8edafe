"""A failed job whose replay is removed from Redis before it ran waits as before, and the history says who did that."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis

from db.failed import Filter, reopen
from db.failures import Failure
from db.session import operator_transaction
from middleware.replays import option
from tests.integration.command_line import CommandLine
from tests.integration.replaying import A, Deployment
from tests.integration.test_queue_removal import failure
from tests.integration.test_replays_ended_elsewhere import claimed_and_sent
from worker.queue_admin import purge, remove_messages
from worker.replay.replayer import Replayer

QUEUE = "attribution"


def client_of(deployment: Deployment) -> redis.Redis:
    client: redis.Redis = deployment.broker.client  # type: ignore[attr-defined]
    return client


def look(deployment: Deployment) -> None:
    """As a worker of housekeeping does every few seconds."""
    runner = deployment.runner("housekeeping", stop=lambda: True)
    Replayer(operator_transaction, lambda *_: runner).look(runner)


def last_event(deployment: Deployment) -> tuple[str, str, str]:
    event = deployment.rows(
        "SELECT event, changed_by, reason FROM worker_failed_job_events WHERE failed_job_id IS NOT NULL ORDER BY id"
    )[-1]
    return event["event"], event["changed_by"], event["reason"]


@pytest.mark.parametrize("where", ["waiting", "delayed", "spooled"])
def test_a_row_whose_message_is_removed_is_pending_again(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (row_id,) = deployment.fail("one")
    replay_id = claimed_and_sent(deployment, row_id, monkeypatch)
    client = client_of(deployment)
    (item,) = deployment.items()
    if where == "delayed":
        # A retry that waits for its time.
        client.rename(f"dramatiq:{QUEUE}", f"dramatiq:{QUEUE}.DQ")
        client.rename(f"dramatiq:{QUEUE}.msgs", f"dramatiq:{QUEUE}.DQ.msgs")
    elif where == "spooled":
        # It failed again while Postgres was away.
        client.delete(f"dramatiq:{QUEUE}", f"dramatiq:{QUEUE}.msgs")
        again: dict[str, Any] = {
            **failure(A, "test.replayed").as_json(), "replayed_row": str(row_id), "replay_item": str(item["id"]),
        }  # fmt: skip
        assert Failure.from_json(json.dumps(again)).replay_item == item["id"]
        client.hset("dramatiq:__dramaturg__.spool", f"{QUEUE}:1", json.dumps(again))
    (removed,) = remove_messages(client, by="bob", reason="test data", tenant_id=A)
    assert removed.removable == 1
    look(deployment)
    assert deployment.status(row_id) == "pending"
    why = "its message was removed: test data"
    assert last_event(deployment) == ("released", "bob", why)
    (item,) = deployment.items()
    assert (item["state"], item["why"]) == ("released", why)
    # Nothing of it is remembered, and its replay waits for nothing.
    assert client.keys("*removed_replays*") == []
    done = deployment.runner("another").run_to_end(replay_id)
    assert done is None or done.state == "finished"
    assert deployment.stands(replay_id).state == "finished"
    deployment.assert_counts_are_right()


def test_the_command_sets_it_back_at_once_and_says_so(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, worker: CommandLine
) -> None:
    rows = deployment.fail("one", "two")
    claimed_and_sent(deployment, rows[0], monkeypatch)
    url = deployment.settings.redis_url
    said = worker("queues", "purge", QUEUE, "--yes", "--reason", "old", REDIS_URL=url).stdout
    assert "Removed: 1 waiting message, 0 delayed." in said
    assert "Pending again, because it was to retry them: 1 failed job." in said
    assert [deployment.status(row_id) for row_id in rows] == ["pending", "pending"]
    assert last_event(deployment) == ("released", "ada", "its message was removed: old")


def test_a_row_that_is_not_in_progress_for_it_is_left_alone(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row_id,) = deployment.fail("one")
    claimed_and_sent(deployment, row_id, monkeypatch)
    client = client_of(deployment)
    first: Any = client.lindex(f"dramatiq:{QUEUE}", 0)
    reopen(operator_transaction, Filter(ids=(row_id,)), by="ann")
    second = deployment.replay(Filter(ids=(row_id,)))
    deployment.runner("second", stop=lambda: len(deployment.items()) == 2).run_to_end(second)
    # The first one's message alone, and some that say of themselves what is not so.
    client.lpop(f"dramatiq:{QUEUE}", 2)
    client.rpush(f"dramatiq:{QUEUE}", first)
    for replay in (option(row_id, uuid4()), {"item": "none"}, {"item": 7}, "dramaturg_replay"):
        strange = json.dumps({"options": {"dramaturg_replay": replay}})
        redis_id = str(uuid4())
        client.hset(f"dramatiq:{QUEUE}.msgs", redis_id, strange)
        client.rpush(f"dramatiq:{QUEUE}", redis_id)
    assert purge(client, QUEUE, by="bob").waiting == 5
    look(deployment)
    assert deployment.status(row_id) == "in_progress"
    assert [item["state"] for item in deployment.items()] == ["released", "sent"]
    assert client.keys("*removed_replays*") == []


def test_a_success_that_waits_for_postgres_is_no_message_to_remove(deployment: Deployment) -> None:
    client = client_of(deployment)
    success = {
        "kind": "success", "tenant_id": str(A), "task_name": "test.replayed", "replay_item": str(UUID(int=1)),
    }  # fmt: skip
    client.hset("dramatiq:__dramaturg__.spool", f"{QUEUE}:1", json.dumps(success))
    assert remove_messages(client, by="bob", tenant_id=A) == []
    assert client.hlen("dramatiq:__dramaturg__.spool") == 1


def test_what_postgres_could_not_be_told_is_told_later(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    (row_id,) = deployment.fail("one")
    claimed_and_sent(deployment, row_id, monkeypatch)
    assert purge(client_of(deployment), QUEUE, by="bob").waiting == 1
    # Whoever purged has died. Removing what is not there changes nothing of it.
    assert purge(client_of(deployment), QUEUE, by="eve").waiting == 0
    look(deployment)
    assert deployment.status(row_id) == "pending"
    assert last_event(deployment) == ("released", "bob", "its message was removed")
