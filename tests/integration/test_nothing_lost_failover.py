"""A replica takes over: who is connected to the old master is told READONLY, on that connection for ever."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import pytest
import redis
from dramatiq import Worker
from dramatiq.errors import ConnectionFailed

from tests.cut_wire import CutWire
from tests.integration.nothing_lost import QUEUE, Side, in_acks, kept, ours, stock
from tests.servers import running_redis
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]
Server = Callable[[], AbstractContextManager[str]]
#: A replica does not have to wait for others to come.
AT_ONCE = {"repl-diskless-sync-delay": "0"}


class Pair:
    """A master, its replica, and the way that clients take to whoever is the master."""

    def __init__(self, first: redis.Redis, second: redis.Redis, wire: CutWire, second_url: str) -> None:
        self.first = first
        self.second = second
        self.wire = wire
        self._second_url = second_url

    def swap_roles(self) -> None:
        """Make the replica the master, with all that the master has; clients are led to the old one still."""
        self.first.execute_command("FAILOVER", "TO", *self._address(self.second))
        eventually(lambda: self.first.info("replication")["role"] == "slave")
        eventually(lambda: self.second.info("replication")["role"] == "master")

    def lead_to_the_new_master(self) -> None:
        """Let new connections lead there. Those that stand do not move."""
        self.wire.lead_to(self._second_url)

    @staticmethod
    def _address(client: redis.Redis) -> tuple[str, int]:
        options = client.connection_pool.connection_kwargs
        return options["host"], options["port"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with (
        running_redis(**AT_ONCE) as first_url,
        running_redis(**AT_ONCE) as second_url,
        redis.Redis.from_url(first_url) as first,
        redis.Redis.from_url(second_url) as second,
        CutWire(first_url) as wire,
    ):
        pair = Pair(first, second, wire, second_url)
        second.replicaof(*pair._address(first))
        eventually(lambda: second.info("replication")["master_link_status"] == "up")
        yield pair


class Producer:
    """Sends one number after the other, whatever comes back."""

    def __init__(self, one: Side, send: Callable[[int], object]) -> None:
        self._one = one
        self._send = send
        self._stop = threading.Event()
        #: Those that were sent, and those of which Redis did not say so.
        self.accepted: list[int] = []
        self.refused: list[int] = []

    def _produce(self) -> None:
        for n in itertools.count():
            if self._stop.wait(0.005):
                return
            try:
                self._send(n)
            except (ConnectionFailed, redis.RedisError):
                self.refused.append(n)
            else:
                self.accepted.append(n)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._produce)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def sends_go_through_again(producer: Producer) -> bool:
    """Wait for what becomes of sends from here on."""
    accepted, refused = len(producer.accepted), len(producer.refused)
    eventually(lambda: len(producer.accepted) > accepted + 20 or len(producer.refused) > refused + 100)
    return len(producer.accepted) > accepted


def all_threads_live(worker: Worker) -> bool:
    return all(thread.is_alive() for thread in [*worker.workers, *worker.consumers.values()])


class TestFailover:
    def start(self, one: Side, pair: Pair) -> None:
        """Let a job run, and a delayed one wait, while the roles are swapped."""
        self.started, self.go_on = threading.Event(), threading.Event()
        self.ran: list[int] = []

        def job(n: int) -> None:
            if n < 0:
                self.started.set()
                assert self.go_on.wait(30)
            self.ran.append(n)

        self.job = one.actor(job)
        one.send(self.job, -2, delay=1_000)
        one.send(self.job, -1)

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_stock_stays_with_the_old_master(self, side: Make, pair: Pair) -> None:
        one = side(stock, pair.wire.url)
        self.start(one, pair)
        stood_still = False
        one.send(self.job, 0, delay=3_600_000)
        producer = Producer(one, lambda n: one.send(self.job, n))
        # Stopping it raises, too, where it still holds something.
        with suppress(redis.ReadOnlyError), one.working() as worker, producer.running():
            assert self.started.wait(15)
            eventually(lambda: in_acks(pair.first) >= 2)
            pair.swap_roles()
            pair.lead_to_the_new_master()
            self.go_on.set()
            assert not sends_go_through_again(producer)
            # It could not give back the delayed messages it had in memory, and nobody will fetch any more.
            eventually(lambda: not worker.consumers[f"{QUEUE}.DQ"].is_alive())
            stood_still = True
        # It ran, was not acknowledged, and runs again some day; nor does anybody have the delayed one.
        assert stood_still
        assert -1 in self.ran
        assert in_acks(pair.second) >= 2

    def test_ours_goes_to_the_new_one_and_loses_nothing(self, side: Make, pair: Pair) -> None:
        one = side(ours, pair.wire.url)
        self.start(one, pair)
        producer = Producer(one, lambda n: one.send(self.job, n))
        with one.working() as worker:
            with producer.running():
                assert self.started.wait(15)
                eventually(lambda: len(producer.accepted) > 20)
                pair.swap_roles()
                # All of them meet it.
                eventually(lambda: producer.refused)
                self.go_on.set()
                pair.lead_to_the_new_master()
                assert sends_go_through_again(producer)
            eventually(lambda: kept(pair.second) == 0, seconds=30)
            assert all_threads_live(worker)
        assert one.failures == []
        # What send() did not vouch for may have been sent.
        assert {-2, -1, *producer.accepted} <= set(self.ran) <= {-2, -1, *producer.accepted, *producer.refused}
        assert len(self.ran) == len(set(self.ran))
        assert in_acks(pair.second) == 0

    def test_who_waits_on_the_old_master_waits_on_the_new_one(self, side: Make, pair: Pair) -> None:
        one = side(ours, pair.wire.url)
        ran: list[int] = []
        job = one.actor(ran.append)

        def waiting(client: redis.Redis) -> int:
            return int(client.info("clients")["blocked_clients"])

        with one.working() as worker:
            eventually(lambda: waiting(pair.first) >= 1)
            pair.swap_roles()
            pair.lead_to_the_new_master()
            eventually(lambda: waiting(pair.second) >= 1)
            one.send(job, 1)
            eventually(lambda: ran == [1] and kept(pair.second) == 0)
            assert all_threads_live(worker)


@contextmanager
def read_only() -> Iterator[str]:
    # One of its own: without settings it would be that of TEST_REDIS_URL.
    with running_redis(**AT_ONCE) as url, redis.Redis.from_url(url) as client:
        client.replicaof("127.0.0.1", 1)
        yield url


@contextmanager
def without_its_master() -> Iterator[str]:
    with running_redis(**{"replica-serve-stale-data": "no"}) as url, redis.Redis.from_url(url) as client:
        client.replicaof("127.0.0.1", 1)
        yield url


@contextmanager
def of_no_cluster() -> Iterator[str]:
    with running_redis(**{"cluster-enabled": "yes"}) as url:
        yield url


class TestWrongServer:
    @pytest.mark.parametrize(
        ("wrong_server", "words"),
        [
            (read_only, "read only replica"),
            (without_its_master, "MASTER is down"),
            (of_no_cluster, "slot not served"),
        ],
    )
    def test_stock_stays_with_it(self, side: Make, redis_url: str, wrong_server: Server, words: str) -> None:
        with wrong_server() as url, CutWire(url) as wire:
            one = side(stock, wire.url)
            job = one.actor(lambda: None)
            for _ in range(3):
                with pytest.raises(redis.ResponseError, match=words):
                    one.send(job)
                wire.lead_to(redis_url)

    @pytest.mark.parametrize("wrong_server", [read_only, without_its_master, of_no_cluster])
    def test_ours_looks_for_another(self, side: Make, redis_url: str, wrong_server: Server) -> None:
        with wrong_server() as url, CutWire(url) as wire:
            one = side(ours, wire.url)
            job = one.actor(lambda: None)
            with pytest.raises(ConnectionFailed, match="was not enqueued: Redis: "):
                one.send(job)
            wire.lead_to(redis_url)
            one.send(job)
        with redis.Redis.from_url(redis_url) as client:
            assert kept(client) == 1
