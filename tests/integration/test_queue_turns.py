"""Tenants take turns."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import redis
from dramatiq import Message

from middleware.lua_scripts import texts
from tests.integration.nothing_lost import QUEUE, Side, kept, ours, put
from tests.integration.turns import OWN, A, B, C, Hand, lanes, name_of, places, send, zrange
from tests.waiting import eventually
from worker.queue_admin import (
    EVERYBODY,
    NOBODY,
    by_tenant,
    count_messages,
    forget_shares,
    list_queues,
    merge,
    pause,
    purge,
    remove_messages,
    resume,
    share,
    unshare,
)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def hand(client: redis.Redis) -> Hand:
    return Hand(client)


def _job(name: str, kwargs: dict[str, str], options: dict[str, str], redis_id: str) -> bytes:
    return Message(QUEUE, "test.job", (name,), kwargs, {**options, "redis_message_id": redis_id}).encode()


class TestTurns:
    def test_many_at_once(self, client: redis.Redis, hand: Hand) -> None:
        for n in range(1_200):
            send(client, UUID(int=n + 1), *range(2 * n, 2 * n + 2))
        taken = hand.take(2_399) + hand.take(1)
        assert taken == [*range(0, 2_400, 2), *range(1, 2_400, 2)]

    def test_each_tenant_has_one_after_the_other(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(10))
        send(client, B, "b1", "b2")
        send(client, None, "nobody's")
        send(client, C, "c1")
        assert hand.take(3) == [0, "b1", "nobody's"]
        assert hand.take(4) == ["c1", 1, "b2", 2]
        assert hand.take(100) == list(range(3, 10))
        # Nothing is left of it.
        assert {key for key in client.keys(f"{OWN}*") if b"turns" in key or b"lane" in key} == set()

    def test_whoever_comes_late_waits_for_one_turn_of_the_others(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(100))
        hand.take(50)
        send(client, B, "b")
        assert "b" in hand.take(2)

    def test_what_other_producers_send_joins_in(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(5), stock=True)
        send(client, B, "b", stock=True)
        # As Python's UUID reads them, too; and what is none is nobody's.
        send(client, f"urn:uuid:{{{str(C).upper()}}}", "c1", stock=True)
        send(client, C, "c2")
        # It is the options that say it.
        put(client, "twice", _job("twice", {"tenant_id": str(A)}, {"tenant_id": str(C)}, "twice"))
        send(client, "no tenant", "n1", stock=True)
        send(client, None, "n2", stock=True)
        assert hand.take(5) == [0, "b", "c1", "n1", 1]
        assert set(lanes(client)) == {b"-", A.hex.encode(), B.hex.encode(), C.hex.encode()}
        assert hand.take(4) == ["c2", "n2", 2, "twice"]
        put(client, "broken", '{"tenant_id": ')
        put(client, "broken, too", '{"tenant_id": ')
        assert b"broken" in hand.ask(1)

    def test_what_is_few_is_not_sorted(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, 1, 2)
        send(client, B, 3)
        assert hand.take(3) == [1, 2, 3]
        assert lanes(client) == []

    def test_who_empties_his_lane_gains_nothing(self, client: redis.Redis, hand: Hand) -> None:
        for tenant, name in ((A, "a"), (B, "b"), (C, "c")):
            send(client, tenant, *(f"{name}{n}" for n in range(20)))
        send(client, None, "drip0")
        taken = []
        for n in range(1, 6):
            taken += hand.take(4)
            send(client, None, f"drip{n}")
        # Each time it sends the next just after it had its turn.
        assert Counter(name[0] for name in taken) == {"a": 5, "b": 5, "c": 5, "d": 5}

    @pytest.mark.parametrize("stock", [False, True])
    def test_the_last_of_many_is_found_in_steps_that_are_short(
        self, client: redis.Redis, hand: Hand, stock: bool
    ) -> None:
        send(client, A, *range(1_700 if stock else 8_100), stock=stock)
        send(client, B, "b", stock=stock)
        left, steps = 1, 0
        client.slowlog_reset()
        while left:
            left, steps = hand.run("sort", QUEUE), steps + 1
        assert steps == 3
        assert hand.take(2) == [0, "b"]

    def test_a_paused_queue_is_left_as_it_is(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(1_000))
        pause(client, QUEUE, by="ann")
        assert (hand.ask(2), hand.run("sort", QUEUE), client.llen(f"dramatiq:{QUEUE}")) == ([-1], 0, 1_000)

    def test_a_flood_while_a_process_is_busy_is_sorted_meanwhile(
        self, side: Callable[..., Side], redis_url: str, client: redis.Redis
    ) -> None:
        one = side(ours, redis_url)
        go_on, ran = threading.Event(), list[str]()

        def run(name: str) -> None:
            ran.append(name)
            go_on.wait(60)

        job = one.actor(run, actor_name="test.job", tenant_scoped=False)
        with one.working(threads=1):
            # It runs the one and has fetched the other.
            for name in ("first", "second"):
                job.send_with_options(args=(name,), tenant_id=str(A))
            eventually(lambda: one.client.scard(f"dramatiq:__acks__.{one.broker.broker_id}.{QUEUE}") == 2)  # type: ignore[attr-defined]
            send(client, A, *(f"a{n}" for n in range(1_000)))
            send(client, B, "b")
            # What a fetch sorts at once is left to it.
            eventually(lambda: client.llen(f"dramatiq:{QUEUE}") < 270)
            go_on.set()
            eventually(lambda: "b" in ran)
            assert ran.index("b") < 10
            purge(client, QUEUE, by="ann")
            eventually(lambda: kept(client) == 0)


class TestGivenBack:
    def test_it_is_first_again_for_its_tenant_in_its_order(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(10))
        send(client, B, *(f"b{n}" for n in range(10)))
        taken = hand.take(6)
        assert taken == [0, "b0", 1, "b1", 2, "b2"]
        hand.give_back(*taken)
        assert hand.take(8) == [0, "b0", 1, "b1", 2, "b2", 3, "b3"]

    @pytest.mark.parametrize("how", ["it leaves", "it dies"])
    def test_also_by_who_leaves_or_dies(self, client: redis.Redis, hand: Hand, how: str) -> None:
        gone = Hand(client)
        send(client, A, *range(10))
        send(client, B, *(f"b{n}" for n in range(10)))
        taken = gone.take(4)
        # What it took when it was woken came later, and is not first.
        send(client, A, "woken")
        client.lmove(f"dramatiq:{QUEUE}", f"{OWN}taking.{gone.id}.{QUEUE}", "LEFT", "RIGHT")
        gone.die(hand) if how == "it dies" else gone.beats.leave()
        again = hand.take(5)
        assert set(taken) < set(again)
        assert hand.take(100)[-1] == "woken"
        assert client.exists(f"{OWN}returned.{QUEUE}") == 0

    def test_more_than_a_step_sorts(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(2_000))
        taken = hand.take(1_500)
        hand.give_back(*taken)
        assert hand.take(1_600) == list(range(1_600))


class TestShares:
    def share(self, client: redis.Redis, whose: UUID | str, **given: Any) -> None:
        share(client, QUEUE, whose, by="ann", **given)

    def test_weights(self, client: redis.Redis, hand: Hand) -> None:
        self.share(client, A, weight=3)
        self.share(client, EVERYBODY, weight=0.5)
        for tenant, name in ((A, "a"), (B, "b"), (C, "c")):
            send(client, tenant, *(f"{name}{n}" for n in range(50)))
        assert Counter(name[0] for name in hand.take(40)) == {"a": 30, "b": 5, "c": 5}

    def test_a_limit_holds_back_its_tenant_alone_until_one_of_its_jobs_ends(
        self, client: redis.Redis, hand: Hand
    ) -> None:
        self.share(client, A, limit=2)
        send(client, A, *range(5))
        send(client, B, "b1", "b2", "b3")
        other = Hand(client)
        assert hand.take(3) == [0, "b1", 1]
        assert other.take(3) == ["b2", "b3"]
        assert other.take(3) == []
        hand.end("b1", 1)
        # Whoever waits is woken by a mention of nothing.
        assert client.llen(f"dramatiq:{QUEUE}") == 1
        assert list_queues(client)[0].waiting == 3
        assert other.take(3) == [2]
        hand.give_back(0)
        assert other.take(3) == [0]
        other.end(0, 2, "b2")
        assert other.take(5) == [3, 4]

    def test_what_ran_before_it_was_set_counts_and_one_that_is_gone_does_not(
        self, client: redis.Redis, hand: Hand
    ) -> None:
        send(client, A, *range(9))
        gone = Hand(client)
        assert (gone.take(3), hand.take(1)) == ([0, 1, 2], [3])
        self.share(client, EVERYBODY, limit=2)
        assert hand.take(9) == []
        gone.die(hand)
        back = hand.take(9)
        assert len(back) == 1
        self.share(client, A, limit=0)
        assert {*back, *hand.take(2)} == {0, 1, 2}
        unshare(client, QUEUE, A, by="ann")
        assert hand.take(9) == []
        unshare(client, QUEUE, EVERYBODY, by="ann")
        assert hand.take(9) == [4, 5, 6, 7, 8]
        assert client.exists(f"{OWN}running.{QUEUE}", f"{OWN}parked.{QUEUE}") == 0

    def test_a_suspect_counts_too(self, client: redis.Redis, hand: Hand) -> None:
        self.share(client, A, limit=1)
        send(client, A, "suspect", "a")
        send(client, B, "other suspect")
        for _ in range(2):
            client.lmove(f"dramatiq:{QUEUE}", f"{OWN}suspects.{QUEUE}", "LEFT", "RIGHT")
            client.lmove(f"dramatiq:{QUEUE}", f"dramatiq:{QUEUE}", "LEFT", "RIGHT")
        assert hand.take(5) == ["a"]
        take = ("take_suspect", QUEUE, hand.id, hand.beats.epoch, 1, 1)
        assert json.loads(hand.run(*take)[1])["args"] == ["other suspect"]
        assert hand.run(*take) == []
        hand.end("a")
        found = hand.run(*take)
        assert json.loads(found[1])["args"] == ["suspect"]
        send(client, A, "next")
        assert hand.take(5) == []
        hand.holds["suspect"] = found[0]
        hand.end("suspect")
        assert hand.take(5) == ["next"]

    def test_what_an_old_release_ended_is_counted_anew(self, client: redis.Redis, hand: Hand) -> None:
        self.share(client, A, limit=1)
        send(client, A, 1, 2)
        assert (hand.take(2), hand.take(2)) == ([1], [])
        redis_id = hand.holds[1]
        client.srem(f"dramatiq:__acks__.{hand.id}.{QUEUE}", redis_id)
        client.hdel(f"dramatiq:{QUEUE}.msgs", redis_id.decode())
        client.delete(f"{OWN}recounted.{QUEUE}")
        hand.beats.beat()
        assert hand.take(2) == [2]

    def test_it_is_heeded_and_costs_no_time(
        self, side: Callable[..., Side], redis_url: str, client: redis.Redis
    ) -> None:
        share(client, QUEUE, A, limit=1, by="ann")
        running, most, ran = Counter[str](), Counter[str](), Counter[str]()
        lock = threading.Lock()

        def run(tenant: str) -> None:
            with lock:
                running[tenant] += 1
                most[tenant] = max(most[tenant], running[tenant])
            time.sleep(0.002)
            with lock:
                running[tenant] -= 1
                ran[tenant] += 1

        one, two = side(ours, redis_url), side(ours, redis_url)
        for each in (one, two):
            job = each.actor(run, actor_name="test.job")
        for n in range(120):
            tenant = A if n % 3 else B
            job.send_with_options(args=(str(tenant),), tenant_id=str(tenant))
        # Nobody looks again by itself before the test is over.
        with one.working(threads=4) as first, two.working(threads=4):
            first.worker_timeout = 60_000
            eventually(lambda: kept(client) == 0)
        assert (ran, most[str(A)]) == ({str(A): 80, str(B): 40}, 1)

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({}, "weight or limit: one of them"),
            ({"weight": 0}, "weight: 0 is not from 0.01 to 1,000"),
            ({"weight": float("nan")}, "weight: nan"),
            ({"limit": -1}, "limit: -1 is not from 0, which is none, to 1,000,000"),
        ],
    )
    def test_bad_input_is_named(self, client: redis.Redis, given: dict[str, Any], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            self.share(client, A, **given)
        with pytest.raises(ValueError, match="is not a queue name"):
            share(client, "no queue", A, weight=2, by="ann")
        assert client.keys("*") == []

    def test_who_did_it_is_told_before(self, client: redis.Redis) -> None:
        told: list[tuple[str, dict[str, Any], Any]] = []

        def audit(event: str, **said: Any) -> None:
            told.append((event, said, client.hgetall(f"{OWN}weights.{QUEUE}")))

        share(client, QUEUE, A, weight=2, by="ann", reason="pays", audit=audit)
        found = share(client, QUEUE, A, limit=5, by="bob", audit=audit)
        assert (found.weight, found.limit, found.by, found.reason) == (2, 5, "bob", "")
        assert unshare(client, QUEUE, A, by="eve", audit=audit) == found
        assert unshare(client, QUEUE, A, by="eve", audit=audit) is None
        share(client, QUEUE, A, limit=1, by="ann")
        forget_shares(client, A)
        assert client.keys("*") == []
        about = {"queue": QUEUE, "whose": str(A)}
        assert [
            (event, said["changed_by"], said["reason"], said["tenant_id"], said["before"], said["after"], weights)
            for event, said, weights in told
        ] == [
            ("queue_shared", "ann", "pays", A, about | {"weight": None, "limit": None},
             about | {"weight": 2, "limit": None}, {}),
            ("queue_shared", "bob", None, A, about | {"weight": 2, "limit": None},
             about | {"weight": 2, "limit": 5}, {A.hex.encode(): b"2"}),
            ("queue_shared", "eve", None, A, about | {"weight": 2, "limit": 5},
             about | {"weight": None, "limit": None}, {A.hex.encode(): b"2"}),
        ]  # fmt: skip


class TestWhatIsSaidOfIt:
    def fill(self, client: redis.Redis, hand: Hand) -> None:
        """Three tenants in lanes, one of which has sent more since."""
        old = int(time.time() * 1000) - 500_000
        send(client, None, "n")
        send(client, A, *range(10))
        options = {"redis_message_id": "old", "tenant_id": str(B)}
        put(client, "old", Message(QUEUE, "test.job", ("old",), {}, options, message_timestamp=old).encode())
        send(client, B, "b")
        assert hand.take(2) == ["n", 0]
        send(client, A, "late", stock=True)

    def test_what_waits_counts_wherever_it_is(self, client: redis.Redis, hand: Hand) -> None:
        self.fill(client, hand)
        state = list_queues(client)[0]
        assert (state.waiting, state.running) == (12, 2)
        assert state.oldest == pytest.approx(500, abs=60)
        (found,) = [one for one in count_messages(client, tenant_id=A) if one.queue == QUEUE]
        assert (found.waiting, found.running) == (10, 1)

    def test_by_tenant(self, client: redis.Redis, hand: Hand) -> None:
        share(client, QUEUE, B, weight=2, by="ann")
        share(client, QUEUE, EVERYBODY, limit=9, by="ann")
        share(client, QUEUE, NOBODY, limit=0, by="ann")
        self.fill(client, hand)
        found = by_tenant(client, QUEUE)
        assert [(one.tenant_id, one.waiting, one.running, one.weight, one.limit) for one in found.tenants] == [
            (A, 10, 1, 1, 9),
            (B, 2, 0, 2, 9),
            (None, 0, 1, 1, None),
        ]
        assert found.tenants[1].oldest == pytest.approx(500, abs=60)
        assert (found.count, found.unsorted, set(found.shares)) == (3, 0, {B, EVERYBODY, NOBODY})
        assert [one.tenant_id for one in by_tenant(client, QUEUE, most=1).tenants] == [A]
        of_many = by_tenant(client, QUEUE, most=1_000)
        assert [one.tenant_id for one in of_many.tenants] == [one.tenant_id for one in found.tenants]
        unshare(client, QUEUE, EVERYBODY, by="ann")
        hand.take(100)
        send(client, A, *range(100, 3_100), stock=True)
        found = by_tenant(client, QUEUE)
        assert found.unsorted + found.tenants[0].waiting == 3_000

    @pytest.mark.parametrize("steps", [3, 2_000])
    def test_removing_a_tenants(
        self, client: redis.Redis, hand: Hand, steps: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("worker.queue_admin.removal.AT_ONCE", steps)
        self.fill(client, hand)
        (removed,) = remove_messages(client, by="ann", tenant_id=A)
        assert (removed.waiting, removed.running) == (10, 1)
        assert hand.take(9) == ["old", "b"]
        hand.end("old", "b", "n", 0)
        self.fill(client, hand)
        assert purge(client, QUEUE, by="ann").waiting == 12
        hand.end("n", 0)
        assert kept(client) == 0
        assert hand.take(5) == []
        assert lanes(client) == []

    def test_flushing_and_taking_back(self, side: Callable[..., Side], redis_url: str, client: redis.Redis) -> None:
        one: Any = side(ours, redis_url)
        hand = Hand(client)
        self.fill(client, hand)
        for redis_id in (b"old", next(iter(places(client, [hand]) - Counter({b"old": 1})))):
            hand.run("take_back", QUEUE, redis_id)
        assert kept(client) in {12, 13}
        assert hand.run("take_back", QUEUE, "old") == 0
        one.broker.flush(QUEUE)
        hand.holds.clear()
        assert (kept(client), lanes(client), hand.take(5)) == (0, [], [])


class TestLeavingIt:
    def test_without_it_what_is_in_lanes_comes_first(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(6))
        send(client, B, "b")
        hand.take(1)
        send(client, A, "later", "latest")
        share(client, QUEUE, A, limit=1, by="ann")
        hand.take(1)
        unfair = Hand(client, fair=False)
        assert unfair.take(4) == [1, 2, 3, 4]
        assert unfair.take(9) == [5, "later", "latest"]
        assert lanes(client) == []
        send(client, A, *range(10, 20))
        assert unfair.take(2) == [10, 11]
        assert lanes(client) == []

    def test_merging_puts_all_of_it_where_everybody_looks(self, client: redis.Redis, hand: Hand) -> None:
        send(client, A, *range(2_500))
        send(client, B, "b1", "b2", "b3")
        send(client, C, "c1")
        hand.take(4)
        share(client, QUEUE, C, limit=1, by="ann")
        send(client, C, "c2")
        hand.take(1)
        send(client, A, "last")
        moved = merge(client, QUEUE)
        assert lanes(client) == []
        # As a worker sees it that knows no lanes.
        ids: Any = client.lrange(f"dramatiq:{QUEUE}", 0, -1)
        found = [json.loads(client.hget(f"dramatiq:{QUEUE}.msgs", one.decode()) or b"")["args"][0] for one in ids]
        assert (moved, len(found)) == (2_500, 2_501)
        assert found[-1] == "last"
        assert [name for name in found if isinstance(name, int)] == list(range(2, 2_500))
        assert {"b3", "c2"} < set(found[-4:]) | set(found[:4])
        assert merge(client, QUEUE) == 0

    def test_the_last_process_of_a_queue_does_so_when_it_ends(self, redis_url: str, client: redis.Redis) -> None:
        one, two = ours(redis_url), ours(redis_url)
        for each in (one, two):
            each.broker.consume(QUEUE, prefetch=1, timeout=20)
        send(client, A, *range(2_000))
        send(client, B, "b")
        broker: Any = two.broker
        broker.fetch("fetch", QUEUE, 2)
        one.close()
        assert len(lanes(client)) == 2
        # Of the release that comes next, which says nothing of lanes.
        Hand(client)
        two.close()
        assert lanes(client) == []
        assert client.llen(f"dramatiq:{QUEUE}") == 2_001

    def test_what_it_gives_back_then_is_first(self, redis_url: str, client: redis.Redis) -> None:
        """As in each deploy: what was interrupted must not wait behind all that its tenant has waiting."""
        one = ours(redis_url)
        one.broker.consume(QUEUE, prefetch=1, timeout=20)
        send(client, A, *(f"a{n}" for n in range(1_500)))
        send(client, B, *(f"b{n}" for n in range(5)))
        broker: Any = one.broker
        broker.fetch("fetch", QUEUE, 4)
        send(client, A, "a1500")
        one.close()
        assert lanes(client) == []
        ids: Any = client.lrange(f"dramatiq:{QUEUE}", 0, -1)
        order = [name_of(client, redis_id) for redis_id in ids]
        for letter, count in (("a", 1_501), ("b", 5)):
            of_tenant = [name for name in order if name[0] == letter]
            assert set(of_tenant[:2]) == {f"{letter}0", f"{letter}1"}
            assert of_tenant[2:] == [f"{letter}{n}" for n in range(2, count)]

    def test_who_takes_no_turns_is_counted_by_those_who_do(self, client: redis.Redis) -> None:
        """As he is when what he took ends: else others pass the limit as often as he ends something."""
        fair, unfair = Hand(client), Hand(client, fair=False)
        share(client, QUEUE, EVERYBODY, limit=2, by="ana")
        send(client, A, *range(20))
        # From a lane, and from the queue's own list.
        assert fair.take(5) == [0, 1]
        unfair.end(*unfair.take(2))
        assert fair.take(5) == []
        purge(client, QUEUE, by="ana")
        send(client, A, "a", "b", "c")
        unfair.end(*unfair.take(1))
        assert fair.take(5) == []
        fair.end(0, 1)
        assert fair.take(5) == ["b", "c"]


class TestNothingIsLost:
    SCRIPTS = (
        *("fetch", "sort", "requeue", "finish", "finish_many", "goodbye", "beat", "merge_lanes", "share"),
        "take_suspect",
    )

    def prepare(self, client: redis.Redis) -> tuple[Hand, Hand]:
        """Something everywhere."""
        client.flushall()
        one, two = Hand(client), Hand(client)
        send(client, A, *range(8), stock=True)
        send(client, A, *range(8, 40))
        send(client, B, *(f"b{n}" for n in range(4)))
        share(client, QUEUE, B, limit=1, by="ann")
        one.take(5)
        two.take(5)
        assert zrange(client, f"{OWN}parked.{QUEUE}") == [B.hex.encode()]
        two.give_back(*list(two.holds)[:2])
        send(client, A, *range(1_000, 1_020), stock=True)
        send(client, C, "c")
        client.lmove(f"dramatiq:{QUEUE}", f"{OWN}taking.{one.id}.{QUEUE}", "LEFT", "RIGHT")
        client.lmove(f"dramatiq:{QUEUE}", f"{OWN}suspects.{QUEUE}", "RIGHT", "RIGHT")
        client.delete(f"{OWN}recounted.{QUEUE}")
        return one, two

    def arguments(self, script: str, one: Hand, two: Hand) -> list[Any]:
        match script:
            case "fetch" | "take_suspect":
                return [QUEUE, one.id, one.beats.epoch, 6, 1]
            case "requeue":
                return [QUEUE, two.id, *two.holds.values()]
            case "finish":
                return [QUEUE, two.id, next(iter(two.holds.values())), "", 10, "", two.beats.epoch, 0]
            case "finish_many":
                return [QUEUE, two.id, two.beats.epoch, *two.holds.values()]
            case "goodbye":
                return [two.id]
            case "beat":
                return [one.id, 60_000, 0, "{}", "", 0, 0, QUEUE]
            case "merge_lanes":
                return [QUEUE, 50]
            case "share":
                return [QUEUE, B.hex, "", "", ""]
            case _:
                return [QUEUE]

    @pytest.mark.parametrize("script", SCRIPTS)
    def test_whatever_call_of_a_script_fails(self, client: redis.Redis, script: str) -> None:
        """An error of one call, such as a right that is missing, leaves the ones before it done."""
        head, body = texts()[script].split("\n", 1)
        body = body.replace("redis.call(", "call(")
        stop = """
        local calls, stop = 0, tonumber(table.remove(ARGV))
        local function call(...)
          calls = calls + 1
          if calls == stop then
            error("stopped")
          end
          return redis.call(...)
        end
        """
        broken = client.register_script(f"{head}\n{stop}\n{body}")
        for at in [*range(1, 60), *range(60, 3_000, 97)]:
            one, two = self.prepare(client)
            if script == "beat":
                client.zadd(f"{OWN}alive", {two.id: 1})
            before = places(client, [one, two])
            assert set(before.values()) == {1}
            ending = {"finish": 1, "finish_many": len(two.holds)}.get(script, 0)
            ended = set(list(two.holds.values())[:ending])
            try:
                broken(keys=["dramatiq"], args=[*self.arguments(script, one, two), at])
                done = True
            except redis.ResponseError:
                done = False
            after = places(client, [one, two])
            nowhere = {redis_id for redis_id, count in after.items() if not count}
            assert nowhere <= ended, at
            assert before.keys() - after.keys() <= ended, at
            if at < 60 or done:
                # And all of it is found. What has no limit any more is not held back by a count that is wrong.
                unshare(client, QUEUE, B, by="ann")
                three = Hand(client)
                two.die(three)
                one.die(three)
                found = {1}
                while found:
                    _, *found = three.ask(1_000)  # type: ignore[assignment]
                client.lmove(f"{OWN}suspects.{QUEUE}", f"dramatiq:{QUEUE}", "LEFT", "RIGHT")
                three.ask(10)
                held: Any = client.smembers(f"dramatiq:__acks__.{three.id}.{QUEUE}")
                assert held >= after.keys() - ended, at
            if done:
                break
        else:
            assert script in {"fetch", "sort"}

    @pytest.mark.parametrize("seed", range(6))
    def test_through_whatever_happens(self, client: redis.Redis, seed: int) -> None:
        """Each message is in one place at every moment, no limit is passed, and all of them end."""
        rng = random.Random(seed)  # noqa: S311 - to be repeated
        tenants, names = [A, B, C, None], iter(range(10**6))
        hands = [Hand(client, fair=seed % 3 != 2) for _ in range(3)]
        limits: dict[UUID | str, int] = {}

        def act() -> None:
            hand = rng.choice(hands)
            held = rng.sample(list(hand.holds), rng.randint(0, len(hand.holds)))
            match rng.choice(("send", "send", "take", "take", "end", "back", "die", "leave", "limit", "wake", "other")):
                case "send":
                    count, tenant = rng.choice((1, 1, 30)), rng.choice(tenants)
                    send(client, tenant, *(next(names) for _ in range(count)), stock=rng.random() < 0.3)
                case "take":
                    hand.take(rng.randint(1, 10))
                case "end":
                    hand.end(*held)
                case "back":
                    hand.give_back(*held)
                case "die" | "leave" as how:
                    hand.die(rng.choice([one for one in hands if one is not hand])) if how == "die" else (
                        hand.beats.leave()
                    )
                    hands[hands.index(hand)] = Hand(client, fair=seed % 3 != 2)
                case "limit":
                    whose = rng.choice((A, B, EVERYBODY))
                    if whose in limits and rng.random() < 0.5:
                        unshare(client, QUEUE, whose, by="ann", audit=lambda *_, **__: None)
                        del limits[whose]
                    else:
                        limits[whose] = rng.randint(0, 4)
                        share(client, QUEUE, whose, limit=limits[whose], by="ann", audit=lambda *_, **__: None)
                case "wake":
                    # A wait that the process woke from.
                    taking = f"{OWN}taking.{hand.id}.{QUEUE}"
                    client.lmove(f"dramatiq:{QUEUE}", taking, "LEFT", "RIGHT")
                case _:
                    {0: lambda: merge(client, QUEUE), 1: lambda: hand.run("put_back", QUEUE, hand.id)}.get(
                        rng.randint(0, 5), hand.beats.beat
                    )()

        def running() -> Counter[UUID | None]:
            found = Counter[UUID | None]()
            for hand in hands:
                for redis_id in hand.holds.values():
                    data: Any = client.hget(f"dramatiq:{QUEUE}.msgs", redis_id.decode())
                    tenant = json.loads(data)["options"].get("tenant_id")
                    found[tenant and UUID(tenant)] += 1
            return found

        for _ in range(150):
            before = running()
            act()
            assert set(places(client, hands).values()) <= {1}
            after = running()
            if seed % 3 != 2:
                for tenant in after:
                    limit = limits.get(tenant or NOBODY, limits.get(EVERYBODY, 0))
                    assert after[tenant] <= before[tenant] or not limit or after[tenant] <= limit
                if limits:
                    counts: Any = client.hgetall(f"{OWN}running.{QUEUE}")
                    assert {name: int(count) for name, count in counts.items()} == {
                        (tenant.hex if tenant else NOBODY).encode(): count for tenant, count in after.items() if count
                    }
        for _ in range(3_000):
            if not kept(client):
                break
            for hand in hands:
                hand.take(5)
                hand.end(*list(hand.holds))
        assert kept(client) == 0
        for hand in hands:
            hand.take(5)
        left = {key for key in client.keys("*") if b"lane" in key or b"turns" in key or b"parked" in key}
        assert left == set()


def test_who_has_nothing_to_do_hears_of_what_another_has_sorted(client: redis.Redis) -> None:
    one, two = Hand(client), Hand(client)
    send(client, A, *range(10))
    assert one.take(3) == [0, 1, 2]
    # As two does, which found nothing before they came.
    inbox, taking = f"dramatiq:{QUEUE}", f"{OWN}taking.{two.id}.{QUEUE}"
    assert client.blmove(inbox, taking, 1, "LEFT", "RIGHT") is not None
    assert two.take(4) == [3, 4, 5, 6]
    assert client.blmove(inbox, taking, 1, "LEFT", "RIGHT") is not None
    assert two.take(4) == [7, 8, 9]
    # And nobody is woken for nothing.
    assert client.exists(inbox, taking) == 0


def test_a_resumed_queue_goes_on_in_turns(client: redis.Redis, hand: Hand) -> None:
    send(client, A, *range(5))
    send(client, B, "b")
    hand.take(1)
    pause(client, QUEUE, by="ann")
    assert hand.ask(3) == [-1]
    resume(client, QUEUE, by="ann")
    assert hand.take(3) == ["b", 1, 2]
