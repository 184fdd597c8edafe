"""Removing what waits: each message is removed and counted, or runs; and others' are left as they were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
import redis
from dramatiq import Message
from dramatiq.common import current_millis

from db.failures import Failure
from middleware.lua_scripts import Scripts
from middleware.spool import Spool
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, ours, put
from tests.waiting import eventually
from worker.queue_admin import Found, count_messages, pause, purge, removal, remove_messages

OTHER = UUID("6f1c7a52-6c0e-4a43-9d2b-1f0f8f1f7b11")


@pytest.fixture
def one(side: Callable[[Callable[[str], Side], str], Side], redis_url: str) -> Side:
    return side(ours, redis_url)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=[2_000, 3])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """In how large steps it goes."""
    monkeypatch.setattr(removal, "AT_ONCE", request.param)
    return int(request.param)


def message(
    tenant: object = TENANT, actor: str = "test.job", queue: str = QUEUE, args: Sequence[Any] = (), **options: Any
) -> Message[Any]:
    redis_id = str(uuid4())
    given = {} if tenant is None else {"tenant_id": str(tenant)}
    return Message(queue, actor, tuple(args), {}, {"redis_message_id": redis_id, **given, **options})


def add(client: redis.Redis, *messages: Message[Any]) -> list[bytes]:
    """Put messages on their queues, and return their ids."""
    for one in messages:
        put(client, one.options["redis_message_id"], one.encode(), one.queue_name)
    return [one.options["redis_message_id"].encode() for one in messages]


def queued(client: redis.Redis, queue: str = QUEUE) -> list[bytes]:
    found: Any = client.lrange(f"dramatiq:{queue}", 0, -1)
    return list(found)


def ids(client: redis.Redis, queue: str = QUEUE) -> set[bytes]:
    found: Any = client.hkeys(f"dramatiq:{queue}.msgs")
    return set(found)


def suspect(client: redis.Redis, added: Message[Any]) -> bytes:
    (redis_id,) = add(client, added)
    client.rpop(f"dramatiq:{QUEUE}")
    client.rpush(f"dramatiq:__dramaturg__.suspects.{QUEUE}", redis_id)
    client.hset("dramatiq:__dramaturg__.crashes", f"{QUEUE}:{redis_id.decode()}", "[]")
    client.sadd("dramatiq:__dramaturg__.begun_before", f"{QUEUE}:{redis_id.decode()}")
    return redis_id


def delayed(client: redis.Redis, added: Message[Any], *, sorted_: bool) -> bytes:
    (redis_id,) = add(client, added)
    if sorted_:
        client.rpop(f"dramatiq:{added.queue_name}")
        client.zadd(f"dramatiq:__dramaturg__.due.{added.queue_name}", {redis_id: current_millis() + 10**7})
    return redis_id


def failure(tenant: UUID | None, actor: str = "test.job") -> Failure:
    return Failure(
        delivery_id="d", task_id="t", task_name=actor, queue=QUEUE, worker=None, task_args=None, task_kwargs=None,
        tenant_id=tenant, error_type="unknown", exception_class="E", error_message="", traceback=None, retry_count=0,
        last_retry_at=None, correlation_id=OTHER, failed_at=datetime.now(UTC),
    )  # fmt: skip


def spool(client: redis.Redis, *failures: Failure) -> None:
    import json

    for n, one in enumerate(failures):
        client.hset("dramatiq:__dramaturg__.spool", f"{QUEUE}:{n}", json.dumps(one.as_json()))
    client.set("dramatiq:__dramaturg__.spool.since", 1)


class TestPurge:
    def test_it_removes_what_waits_and_is_delayed_and_says_how_much(self, client: redis.Redis, steps: int) -> None:
        add(client, *(message(args=[n]) for n in range(10)))
        for n in range(8):
            delayed(client, message(queue=f"{QUEUE}.DQ", eta=current_millis() + 10**7), sorted_=n > 3)
        suspect(client, message())
        # Mentions of what is done already.
        client.rpush(f"dramatiq:{QUEUE}", "done", "done")
        others = add(client, message(queue="llm"))
        spool(client, failure(TENANT))
        found = Found(QUEUE, waiting=10, delayed=8, suspects=1)
        assert count_messages(client, queues=[QUEUE]) == [found]
        assert purge(client, QUEUE, by="ann") == found
        left: Any = client.keys("*")
        assert {key for key in left if b"spool" not in key} == {b"dramatiq:llm", b"dramatiq:llm.msgs"}
        assert queued(client, "llm") == others
        assert client.hlen("dramatiq:__dramaturg__.spool") == 1
        assert purge(client, QUEUE, by="ann") == Found(QUEUE)

    def test_a_tenants_or_an_actors_only_and_the_others_keep_their_order(self, client: redis.Redis, steps: int) -> None:
        sent = [
            message(tenant=(TENANT, OTHER)[n % 2], actor=("test.a", "test.b")[n // 2 % 2], args=[n]) for n in range(20)
        ]
        redis_ids = add(client, *sent)
        mine = [n for n in range(20) if n % 2 == 1 and n // 2 % 2 == 0]
        assert purge(client, QUEUE, by="ann", tenant_id=OTHER, actor="test.a").waiting == len(mine)
        left = [redis_ids[n] for n in range(20) if n not in mine]
        assert (queued(client), ids(client)) == (left, set(left))
        assert purge(client, QUEUE, by="ann", actor="test.a").waiting == 5
        assert purge(client, QUEUE, by="ann", tenant_id=TENANT).waiting == 5
        left = [redis_ids[n] for n in range(20) if n % 2 == 1 and n // 2 % 2 == 1]
        assert (queued(client), ids(client)) == (left, set(left))

    def test_a_step_ends_with_what_large_messages_hold(self, client: redis.Redis) -> None:
        redis_ids = add(client, *(message((TENANT, OTHER)[n % 2], args=["x" * 600_000]) for n in range(8)))
        step = Scripts(client, "dramatiq")("sift", QUEUE, "list", "", 0, 2_000, 0, OTHER.hex, "", "")
        # Two were looked at, of which one is meant; then on after two.
        assert step == [1, b"2", 2, 8]
        assert purge(client, QUEUE, by="ann", tenant_id=OTHER).waiting == 4
        assert queued(client) == redis_ids[::2]

    def test_a_paused_queue_is_purged_and_stays_paused(self, client: redis.Redis) -> None:
        add(client, message())
        pause(client, QUEUE, by="ann")
        assert purge(client, QUEUE, by="ann").waiting == 1
        assert client.hexists("dramatiq:__dramaturg__.paused", QUEUE)


class TestWhoseItIs:
    @pytest.mark.parametrize(
        "written",
        [str(OTHER), str(OTHER).upper(), OTHER.hex, f"{{{OTHER}}}", f"urn:uuid:{OTHER}"],
    )
    def test_in_every_form_that_workers_read(self, client: redis.Redis, written: str) -> None:
        add(client, message(written))
        assert purge(client, QUEUE, by="ann", tenant_id=OTHER).waiting == 1

    def test_not_one_that_only_names_it(self, client: redis.Redis) -> None:
        add(client, message(TENANT, args=[str(OTHER), {"tenant_id": str(OTHER)}]), message(None, args=[str(OTHER)]))
        put(client, "none", f'["{OTHER}"]')
        put(client, "broken", f'{{"options": {{"tenant_id": "{OTHER}"')
        put(client, "null", f'{{"options": null, "tenant_id": "{OTHER}"}}')
        assert purge(client, QUEUE, by="ann", tenant_id=OTHER) == Found(QUEUE)
        assert len(queued(client)) == 5

    @pytest.mark.parametrize("text", ["\ud800", "\\ud800", "\U0001f600\udc00", '"\\', "é\x00"])
    def test_whatever_its_arguments_hold(self, client: redis.Redis, text: str) -> None:
        add(client, message(OTHER, args=[text]), message(OTHER, actor="test.é", args=[text]))
        assert purge(client, QUEUE, by="ann", tenant_id=OTHER, actor="test.é").waiting == 1
        assert purge(client, QUEUE, by="ann", tenant_id=OTHER, actor="test.job").waiting == 1


class TestRemovingATenants:
    def test_from_everywhere(self, client: redis.Redis, steps: int) -> None:
        left = {QUEUE: set[bytes](), f"{QUEUE}.DQ": set[bytes](), "strange": set[bytes]()}
        for tenant in (OTHER, TENANT, OTHER, None):
            eta = current_millis() + 10**7
            added: list[tuple[str, bytes]] = [
                (QUEUE, add(client, message(tenant))[0]),
                (QUEUE, suspect(client, message(tenant))),
                (f"{QUEUE}.DQ", delayed(client, message(tenant, queue=f"{QUEUE}.DQ", eta=eta), sorted_=False)),
                (f"{QUEUE}.DQ", delayed(client, message(tenant, queue=f"{QUEUE}.DQ", eta=eta), sorted_=True)),
                # Which nobody has declared.
                ("strange", add(client, message(tenant, queue="strange"))[0]),
            ]
            for queue, redis_id in added if tenant != OTHER else []:
                left[queue].add(redis_id)
        spool(client, failure(OTHER), failure(TENANT), failure(None), failure(OTHER))
        client.hset("dramatiq:__dramaturg__.spool", "unreadable", "{")
        (running,) = add(client, message(OTHER))
        client.rpop(f"dramatiq:{QUEUE}")
        client.sadd(f"dramatiq:__acks__.{uuid4()}.{QUEUE}", running)
        left[QUEUE].add(running)
        expected = [
            Found(QUEUE, waiting=2, delayed=4, suspects=2, spooled=2, running=1),
            Found("strange", waiting=2),
        ]
        counted = [one for one in count_messages(client, tenant_id=OTHER) if one.removable]
        assert counted == expected
        assert remove_messages(client, by="ann", tenant_id=OTHER) == expected
        assert {queue: ids(client, queue) for queue in left} == left
        assert len(queued(client)) == client.llen(f"dramatiq:__dramaturg__.suspects.{QUEUE}") == 2
        assert client.llen(f"dramatiq:{QUEUE}.DQ") == client.zcard(f"dramatiq:__dramaturg__.due.{QUEUE}.DQ") == 2
        assert client.hlen("dramatiq:__dramaturg__.crashes") == client.scard("dramatiq:__dramaturg__.begun_before") == 2
        assert set(client.hkeys("dramatiq:__dramaturg__.spool")) == {
            f"{QUEUE}:1".encode(), f"{QUEUE}:2".encode(), b"unreadable",
        }  # fmt: skip
        assert client.exists("dramatiq:__dramaturg__.spool.drainer") == 0
        assert [one.running for one in remove_messages(client, by="ann", tenant_id=OTHER)] == [1]

    def test_what_was_on_its_way_from_the_delay_queue_is_found_in_the_queue(
        self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(client, message(OTHER))
        once = removal._Sieve._pass

        def go_through(sieve: Any, queues: Any, *, remove: bool) -> Any:
            found = once(sieve, queues, remove=remove)
            if remove and found.total() and kept(client) == 0:
                # A worker had it, to move it.
                add(client, message(OTHER))
            return found

        monkeypatch.setattr(removal._Sieve, "_pass", go_through)
        (found,) = remove_messages(client, by="ann", tenant_id=OTHER)
        # As often as it is looked, and not for ever.
        assert found == Found(QUEUE, waiting=3)
        assert kept(client) == 1

    def test_an_empty_spool_is_as_if_it_had_never_been(self, client: redis.Redis) -> None:
        spool(client, failure(OTHER), failure(OTHER))
        (found,) = remove_messages(client, by="ann", tenant_id=OTHER, actor="test.job")
        assert found == Found(QUEUE, spooled=2)
        assert client.keys("*") == []

    def test_what_a_worker_drains_is_recorded_or_removed(
        self, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool(client, failure(OTHER))
        drainer = Spool(Scripts(client, "dramatiq"), "a worker")
        (name,) = drainer.take(1)
        # It has read it, and will write it.
        monkeypatch.setattr(removal, "WAIT_FOR_SPOOL", 0.3)
        with pytest.raises(TimeoutError, match=r"a worker drains the spool for more than 0\.3 seconds"):
            remove_messages(client, by="ann", tenant_id=OTHER)
        assert client.hlen("dramatiq:__dramaturg__.spool") == 1
        monkeypatch.setattr(removal, "WAIT_FOR_SPOOL", 30)
        found: list[Found] = []
        removing = threading.Thread(target=lambda: found.extend(remove_messages(client, by="ann", tenant_id=OTHER)))
        removing.start()
        drainer.remove([name])
        drainer.leave()
        removing.join(30)
        assert found == []

    def test_all_of_everybody_is_nothing_to_ask_for(self, client: redis.Redis) -> None:
        with pytest.raises(ValueError, match="tenant_id or actor: one of them must be given"):
            remove_messages(client, by="ann")
        with pytest.raises(ValueError, match="actor: must not be empty"):
            remove_messages(client, by="ann", actor="")
        with pytest.raises(ValueError, match="actor: must not be empty"):
            count_messages(client, actor="")


class TestWhatComesBeforeIt:
    def test_first_the_caller_then_the_audit_then_the_removal(self, client: redis.Redis) -> None:
        add(client, message(OTHER), message(TENANT))
        said: list[tuple[str, Any, int]] = []
        purge(
            client,
            QUEUE,
            by="ann",
            reason="gone",
            tenant_id=OTHER,
            before_removal=lambda found: said.append(("caller", list(found), kept(client))),
            audit=lambda event, **what: said.append((event, what, kept(client))),
        )
        counts = {"queue": QUEUE, "waiting": 1, "delayed": 0, "suspects": 0, "spooled": 0, "running": 0}
        what = {
            "changed_by": "ann",
            "reason": "gone",
            "tenant_id": OTHER,
            "before": {"actor": None, "queues": [counts]},
            "after": {},
        }
        assert said == [("caller", [Found(QUEUE, waiting=1)], 2), ("messages_purged", what, 2)]
        assert kept(client) == 1

    @pytest.mark.parametrize("which", ["before_removal", "audit"])
    def test_either_prevents_it(self, client: redis.Redis, which: str) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("no")

        add(client, message(OTHER))
        given: dict[str, Any] = {which: refuse}
        with pytest.raises(RuntimeError, match="no"):
            purge(client, QUEUE, by="ann", **given)
        with pytest.raises(RuntimeError, match="no"):
            remove_messages(client, by="ann", tenant_id=OTHER, **given)
        assert kept(client) == 1

    def test_nobody_is_told_of_nothing(self, client: redis.Redis) -> None:
        add(client, message(TENANT))
        said: list[Any] = []
        purge(
            client, QUEUE, by="ann", tenant_id=OTHER, before_removal=said.append, audit=lambda *_, **__: said.append(1)
        )
        assert said == []


@pytest.mark.parametrize("whose", [None, OTHER], ids=["all", "a tenant's"])
def test_while_messages_are_sent_and_worked_on_each_is_removed_or_runs(
    one: Side, client: redis.Redis, steps: int, whose: UUID | None
) -> None:
    ran: list[int] = []
    job = one.actor(ran.append, actor_name="test.job")
    sent = threading.Event()

    def send() -> None:
        for n in range(600):
            options: dict[str, Any] = {"tenant_id": str((TENANT, OTHER)[n % 2])}
            if n % 5 == 0:
                options["delay"] = n % 3 * 40
            job.send_with_options(args=(n,), **options)
        sent.set()

    sending = threading.Thread(target=send)
    removed = 0
    with one.working(threads=2):
        sending.start()
        eventually(lambda: len(ran) > 10)
        while True:
            last = sent.is_set()
            removed += purge(client, QUEUE, by="ann", tenant_id=whose, audit=lambda *_, **__: None).removable
            if last:
                break
        sending.join()
        eventually(lambda: kept(client) == 0)
    assert removed > 0
    assert len(ran) == len(set(ran)) == 600 - removed
    if whose is not None:
        assert {n for n in range(600) if n % 2 == 0} <= set(ran)
    assert (in_acks(client), queued(client), one.failures) == (0, [], [])


def test_what_runs_is_left_and_finishes(one: Side, client: redis.Redis) -> None:
    ran: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def run(n: int) -> None:
        begun.set()
        assert go_on.wait(30)
        ran.append(n)

    job: dramatiq.Actor[..., Any] = one.actor(run, actor_name="test.job")
    for n in range(10):
        one.send(job, n)
    with one.working(threads=1):
        assert begun.wait(15)
        eventually(lambda: in_acks(client) == 2)
        assert purge(client, QUEUE, by="ann") == Found(QUEUE, waiting=8, running=2)
        go_on.set()
        eventually(lambda: kept(client) == 0)
    assert ran == [0, 1]
