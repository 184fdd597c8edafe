"""What stock Dramatiq really keeps of its dead messages, taken over into ``worker_failed_jobs``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dramatiq
import psycopg
import pytest
import redis
from loguru import logger

from db import failed_jobs
from db.alone import alone
from db.failed import Filter, history
from db.failures import Failure
from db.session import operator_transaction
from middleware.lossless_broker import LosslessBroker
from middleware.redaction import REDACTED
from tests.integration.command_line import CommandLine
from tests.integration.nothing_lost import QUEUE, Side, kept, stock
from tests.integration.replaying import A, B, Deployment
from tests.waiting import eventually
from worker import adoption, maintenance
from worker.adoption import NO_EXCEPTION, Adopted, NotAdopted, adopt, count_dead

XQ = f"dramatiq:{QUEUE}.XQ"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def bury(
    client: redis.Redis, redis_id: str, data: bytes | str, died: float = 1_735_732_800_000, queue: str = QUEUE
) -> None:
    """Put anything where stock Dramatiq puts what is dead."""
    name = f"dramatiq:{queue}.XQ"
    client.hset(f"{name}.msgs", redis_id, data)
    client.zadd(name, {redis_id: died})


def a_message(redis_id: str, queue: str = QUEUE, **options: Any) -> bytes:
    options = {"redis_message_id": redis_id, **options}
    return dramatiq.Message(queue, "test.replayed", (redis_id,), {}, options, f"m-{redis_id}", 1).encode()


def test_it_is_adopted_and_replayed_with_success(
    deployment: Deployment, side: Callable[..., Side], redis_url: str, client: redis.Redis
) -> None:
    theirs = side(stock, redis_url)

    def fails(what: str, password: str = "") -> None:
        raise ValueError(f"no {what} at https://ann:secret@example.com")

    retried = theirs.actor(fails, actor_name="test.replayed", max_retries=1, min_backoff=1, max_backoff=1)
    sent = retried.send_with_options(args=("twice",), kwargs={"password": "hunter2"}, tenant_id=str(A))
    with theirs.working():
        eventually(lambda: client.zcard(XQ) == 1, seconds=30)
        # Without a tenant, and without another try.
        retried.send_with_options(args=("once",), max_retries=0)
        eventually(lambda: client.zcard(XQ) == 2, seconds=30)
    assert kept(client) == 0
    died: Any = client.zrange(XQ, 0, -1, withscores=True)
    raw: Any = client.hget(f"{XQ}.msgs", died[0][0])
    assert count_dead(client) == {QUEUE: 2}

    done = adopt(deployment.broker, client)
    assert (done.queues, done.left, done.stopped) == ({QUEUE: 2}, 0, False)
    assert list(client.scan_iter("*.XQ*")) == []
    twice, once = deployment.rows()
    expected = {
        "task_id": sent.message_id,
        "task_name": "test.replayed",
        "queue": QUEUE,
        "worker": None,
        "task_args": ["twice"],
        "task_kwargs": {"password": REDACTED},
        "tenant_id": A,
        "error_type": "validation_error",
        "exception_class": "ValueError",
        "retry_count": 1,
        "status": "pending",
    }
    assert {name: twice[name] for name in expected} == expected
    assert twice["error_message"].startswith("no twice at https://")
    assert "in fails\n" in twice["traceback"]
    assert "secret" not in str(twice)
    assert "hunter2" not in str(twice)
    assert round(twice["failed_at"].timestamp() * 1000) == died[0][1]
    assert twice["remediation_notes"].startswith(f"adopted from {QUEUE}.XQ, where stock Dramatiq had put it at 2")
    assert twice["remediation_notes"].endswith("that of the try before the last, of which none was kept")
    assert (once["error_type"], once["exception_class"], once["retry_count"]) == ("unknown", "(none)", 0)
    assert (once["error_message"], once["traceback"], once["tenant_id"]) == (NO_EXCEPTION, None, None)
    with operator_transaction() as session:
        (told,) = history(session, twice["id"])
    assert (told.event, told.reason) == ("captured", twice["remediation_notes"])
    (original, _) = deployment.rows("SELECT original FROM worker_failed_job_originals ORDER BY length(original) DESC")
    assert original["original"] == raw
    deployment.assert_counts_are_right()

    replay_id = deployment.replay(Filter(ids=(twice["id"],)))
    with deployment.working():
        deployment.runner().run_to_end(replay_id)
    assert deployment.stands(replay_id).state == "finished"
    assert deployment.ran == [("twice", A, sent.message_id)]
    assert deployment.status(twice["id"]) == "resolved"


def test_whatever_it_is_becomes_a_row(deployment: Deployment, client: redis.Redis) -> None:
    bury(client, "no json", b"\xff{", 1)
    bury(client, "delayed", a_message("delayed", f"{QUEUE}.DQ", eta=5, tenant_id=str(B)), 2)
    bury(client, "nobody's", a_message("nobody's", tenant_id="nobody"), 3)
    bury(client, "strange option", a_message("strange option", tenant_id=str(A), throws="x"), 4)
    traceback = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\nnowhere.Gone: two\nlines\n'
    bury(client, "unknown class", a_message("unknown class", traceback=f"Before\n{traceback}", retries=7), 5)
    bury(client, "in the future", a_message("in the future"), 9e15)
    client.zadd(XQ, {"without data": 6})
    # One batch after the other.
    done = adopt(deployment.broker, client, batch=2)
    assert done.queues == {QUEUE: 6}
    assert list(client.scan_iter("*.XQ*")) == []
    found = {row["task_args"][0] if row["task_args"] else None: row for row in deployment.rows()}
    assert len(found) == 6
    assert (found[None]["error_type"], found[None]["task_name"]) == ("undecodable", "(undecodable)")
    assert (found["delayed"]["queue"], found["delayed"]["tenant_id"]) == (QUEUE, B)
    assert found["nobody's"]["tenant_id"] is None
    assert (found["strange option"]["error_type"], found["strange option"]["tenant_id"]) == ("undecodable", A)
    gone = found["unknown class"]
    assert (gone["error_type"], gone["exception_class"]) == ("application_error", "nowhere.Gone")
    assert (gone["error_message"], gone["retry_count"]) == ("two\nlines", 7)
    assert all(row["failed_at"] <= deployment.rows("SELECT now() AS now")[0]["now"] for row in found.values())
    kept_bytes = deployment.rows("SELECT original FROM worker_failed_job_originals")
    assert b"\xff{" in [bytes(row["original"]) for row in kept_bytes]
    deployment.assert_counts_are_right()


def test_who_dies_before_it_leaves_redis_has_recorded_it_once(deployment: Deployment, client: redis.Redis) -> None:
    for n in range(5):
        bury(client, str(n), a_message(str(n), tenant_id=str(A if n % 2 else B)))

    def dies(failures: Sequence[Failure]) -> None:
        failed_jobs.record_all(failures)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adopt(deployment.broker, client, record=dies, batch=3)
    assert (len(deployment.rows()), client.zcard(XQ)) == (3, 5)
    # Somebody is quick.
    resolved = deployment.rows()[0]["id"]
    deployment.sql("UPDATE worker_failed_jobs SET status = 'resolved' WHERE id = %s", resolved)
    assert adopt(deployment.broker, client, batch=3).queues == {QUEUE: 5}
    assert (len(deployment.rows()), client.exists(XQ, f"{XQ}.msgs")) == (5, 0)
    assert deployment.status(resolved) == "resolved"


def test_what_cannot_be_recorded_keeps_no_other(deployment: Deployment, client: redis.Redis) -> None:
    for n in range(6):
        bury(client, str(n), a_message(str(n)), n)

    def refuses(failures: Sequence[Failure]) -> None:
        if any(failure.task_args == ["1"] for failure in failures):
            raise LookupError("not this one")
        failed_jobs.record_all(failures)

    done = adopt(deployment.broker, client, record=refuses, batch=2)
    assert (done.queues, done.left, done.problem) == ({QUEUE: 5}, 1, "LookupError")
    assert client.zrange(XQ, 0, -1) == [b"1"]
    assert len(deployment.rows()) == 5
    told = adopt(deployment.broker, client, should_stop=lambda: True)
    assert (told.stopped, told.queues.total(), client.zcard(XQ)) == (True, 0, 1)


class TestActor:
    @pytest.fixture(autouse=True)
    def on(self, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
        assert isinstance(deployment.broker, LosslessBroker)
        monkeypatch.setattr(dramatiq, "get_broker", lambda: deployment.broker)

    @pytest.fixture
    def said(self) -> Iterator[list[str]]:
        lines: list[str] = []
        sink = logger.add(lambda line: lines.append(str(line)), format="{message}")
        yield lines
        logger.remove(sink)

    def test_one_at_a_time(self, deployment: Deployment, client: redis.Redis, said: list[str]) -> None:
        bury(client, "a", a_message("a"))
        with alone(adoption.ALONE) as first:
            assert first
            maintenance.adopt_dead_letters.fn()
        assert deployment.rows() == []
        assert any("another process adopts dead messages" in line for line in said)
        maintenance.adopt_dead_letters.fn()
        assert len(deployment.rows()) == 1

    def test_leaves_what_may_be_anothers_and_says_how_to_take_it(
        self, deployment: Deployment, client: redis.Redis, said: list[str]
    ) -> None:
        bury(client, "a", a_message("a"))
        for n in range(3):
            bury(client, str(n), a_message(str(n), "billing"), queue="billing")
        maintenance.adopt_dead_letters.fn()
        assert len(deployment.rows()) == 1
        assert client.zcard("dramatiq:billing.XQ") == 3
        (line,) = [line.strip() for line in said if "not declared" in line]
        assert line.startswith("3 dead messages left, of queues that are not declared here (3 of billing): ")
        assert "`worker queues adopt QUEUE`" in line
        assert adopt(deployment.broker, client, ["billing"]).queues == {"billing": 3}
        assert {row["queue"] for row in deployment.rows()} == {QUEUE, "billing"}
        # And then there is nothing to tell.
        said.clear()
        maintenance.adopt_dead_letters.fn()
        assert not any("not declared" in line for line in said)

    def test_says_what_is_left(
        self, deployment: Deployment, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bury(client, "a", a_message("a"))

        def refuses(*_: Any) -> None:
            raise LookupError("a secret")

        monkeypatch.setattr(failed_jobs, "_write", refuses)
        with pytest.raises(NotAdopted, match=r"^1 dead message could not be recorded: LookupError$"):
            maintenance.adopt_dead_letters.fn()
        assert client.zcard(XQ) == 1

    def test_what_is_left_does_not_keep_it_going(self, monkeypatch: pytest.MonkeyPatch) -> None:
        done = Adopted(left=3, problem="LookupError", stopped=True)
        sent: list[Any] = []
        monkeypatch.setattr(adoption, "adopt", lambda *_, **__: done)
        monkeypatch.setattr(maintenance.adopt_dead_letters, "send_with_options", lambda **said: sent.append(said))
        with pytest.raises(NotAdopted, match=r"^3 dead messages could not be recorded: LookupError$"):
            maintenance.adopt_dead_letters.fn()
        assert sent == []
        done.queues["attribution"] = 1
        maintenance.adopt_dead_letters.fn(batch=7)
        assert [said["kwargs"] for said in sent] == [{"batch": 7}]


def test_the_command(worker: CommandLine, deployment: Deployment, client: redis.Redis, redis_url: str) -> None:
    bury(client, "a", a_message("a", tenant_id=str(A)))
    bury(client, "b", a_message("b"))
    on: dict[str, Any] = {"REDIS_URL": redis_url}
    assert worker("queues", "adopt", "--dry-run", **on).stdout == "Would adopt: 2 dead messages, 2 of attribution.\n"
    assert deployment.rows() == []
    with psycopg.connect(deployment.database.operator_url) as somebody:
        somebody.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('dramaturg alone ' || %s, 0))", [adoption.ALONE]
        )
        assert "is adopting them at this moment" in worker("queues", "adopt", status=3, **on).stderr
    bury(client, "c", a_message("c", "billing"), queue="billing")
    adopted = {"queues": {"attribution": 2}, "left": 0, "not_declared": {"billing": 1}, "dry_run": False}
    assert worker.json("queues", "adopt", **on) == adopted
    assert worker("queues", "adopt", **on).stdout.startswith(
        "Adopted: 0 dead messages.\n1 dead message left, of queues that are not declared here (1 of billing): "
    )
    assert client.zcard("dramatiq:billing.XQ") == 1
    assert worker("queues", "adopt", "billing", **on).stdout == "Adopted: 1 dead message, 1 of billing.\n"
    assert worker("queues", "adopt", **on).stdout == "Adopted: 0 dead messages.\n"
    assert sorted(json.dumps(row["task_args"]) for row in deployment.rows()) == ['["a"]', '["b"]', '["c"]']
    assert {row["tenant_id"] for row in deployment.rows()} == {A, None}
