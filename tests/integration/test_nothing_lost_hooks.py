"""Cases 3, 5, 16, 18, 19 and 23 of the failure modes: something raises where Dramatiq takes silence for success."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from dramatiq import Message, Middleware
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import MiddlewareError, SkipMessage

from db.tenancy import current_tenant
from middleware import tenant_context
from middleware.errors import UndeclaredQueue
from middleware.tenant_context import TenantContext
from tests.integration.nothing_lost import QUEUE, TENANT, Side, in_acks, kept, ours, stock
from tests.waiting import eventually

Make = Callable[[Callable[[str], Side], str], Side]
stock_and_ours = pytest.mark.parametrize("kind", [stock, ours])


def drained(one: Side) -> None:
    with one.working():
        eventually(lambda: kept(one.client) == 0)
    assert in_acks(one.client) == 0


class TestSkips:
    @stock_and_ours
    def test_a_skip_that_nobody_failed(self, side: Make, redis_url: str, kind: Callable[[str], Side]) -> None:
        class Closed(Middleware):
            def before_process_message(self, broker: Any, message: Any) -> None:
                raise SkipMessage("closed on Sundays")

        one = side(kind, redis_url)
        one.broker.add_middleware(Closed())
        sent = one.send(one.actor(lambda: None))
        drained(one)
        assert one.client.zcard(f"dramatiq:{QUEUE}.XQ") == 0
        # Stock Dramatiq has no trace of it left.
        expected = [] if kind is stock else [(sent.message_id, "closed on Sundays")]
        assert [(f.task_id, f.error_message) for f in one.failures] == expected


class TestRetries:
    def no_json(self, one: Side) -> str:
        def job(items: list[object]) -> None:
            items.append(object())
            raise RuntimeError("the actor's own")

        return one.send(one.actor(job, max_retries=3, min_backoff=1), []).message_id

    def raising_retry_when(self, one: Side) -> str:
        def job() -> None:
            raise RuntimeError("the actor's own")

        def retry_when(retries: int, error: BaseException) -> bool:
            raise KeyError("not thought of")

        return one.send(one.actor(job, retry_when=retry_when)).message_id

    def exiting_retry_when(self, one: Side) -> str:
        def job() -> None:
            raise RuntimeError("the actor's own")

        def retry_when(retries: int, error: BaseException) -> bool:
            raise SystemExit(3)

        return one.send(one.actor(job, retry_when=retry_when)).message_id

    @pytest.mark.parametrize("how", ["no_json", "raising_retry_when"])
    def test_stock_loses_it(self, side: Make, redis_url: str, how: str) -> None:
        one = side(stock, redis_url)
        getattr(self, how)(one)
        drained(one)
        assert one.client.zcard(f"dramatiq:{QUEUE}.XQ") == 0

    @pytest.mark.parametrize("how", ["no_json", "raising_retry_when", "exiting_retry_when"])
    def test_ours_makes_it_a_failure(self, side: Make, redis_url: str, how: str) -> None:
        one = side(ours, redis_url)
        message_id = getattr(self, how)(one)
        drained(one)
        (failure,) = one.failures
        assert failure.task_id == message_id
        assert (failure.exception_class, failure.error_message) == ("RuntimeError", "the actor's own")
        assert failure.retry_count == 0
        assert "It was not retried" in (failure.traceback or "")


class TestFollowUps:
    def stock_message(self, one: Side, **options: Any) -> None:
        """Send as a stock producer does, which checks nothing."""
        ran = one.actor(lambda: None)
        producer = RedisBroker(client=one.client)
        producer.declare_queue(QUEUE)
        producer.enqueue(ran.message_with_options(tenant_id=str(TENANT), **options))

    @stock_and_ours
    def test_an_unknown_callback(self, side: Make, redis_url: str, kind: Callable[[str], Side]) -> None:
        one = side(kind, redis_url)
        self.stock_message(one, on_success="nobody")
        drained(one)
        if kind is stock:
            assert one.client.zcard(f"dramatiq:{QUEUE}.XQ") == 0
            return
        (failure,) = one.failures
        assert failure.exception_class == "middleware.errors.FollowUpNotSent"
        assert "on_success of message" in failure.error_message
        assert "could not be enqueued: ActorNotFound: nobody" in failure.error_message

    def test_a_result_that_cannot_be_sent(self, side: Make, redis_url: str) -> None:
        one = side(ours, redis_url)
        ran: list[str] = []
        child = one.actor(lambda *_: ran.append("child"))
        announced = one.actor(lambda *_: ran.append("announced"))
        target = child.message_with_options(tenant_id=str(TENANT)).asdict()
        one.send(one.actor(object), pipe_target=target, on_success=announced.actor_name)
        drained(one)
        (failure,) = one.failures
        assert "pipe_target of message" in failure.error_message
        # It is a failure, and so nothing follows from its success.
        assert ran == []

    def test_on_failure_of_a_retried_job_does_not_end_it(self, side: Make, redis_url: str) -> None:
        one = side(ours, redis_url)
        errors: list[Exception] = [ValueError("once")]

        def job() -> None:
            if errors:
                raise errors.pop()

        one.send(one.actor(job, max_retries=1, min_backoff=1, max_backoff=1, on_failure="nobody"))
        drained(one)
        assert (errors, one.failures) == ([], [])


class RaisesBefore(Middleware):
    def before_ack(self, broker: Any, message: Any) -> None:
        raise MiddlewareError("a user's mistake")

    before_nack = before_ack


class TestHooks:
    def through(self, one: Side) -> None:
        # First in the list, so that what it raises keeps others from being called.
        one.broker.middleware.insert(0, RaisesBefore())

        def job(fails: bool) -> None:
            if fails:
                raise ValueError("x")

        actor = one.actor(job)
        one.send(actor, False)
        one.send(actor, True)

    def test_stock_strands_what_has_run(self, side: Make, redis_url: str) -> None:
        one = side(stock, redis_url)
        self.through(one)
        with one.working() as worker:
            eventually(lambda: in_acks(one.client) == 2)
            worker.join()
        assert (in_acks(one.client), kept(one.client)) == (2, 2)

    def test_ours_ends_it_and_keeps_the_row(self, side: Make, redis_url: str) -> None:
        one = side(ours, redis_url)
        self.through(one)
        drained(one)
        assert [f.error_message for f in one.failures] == ["x"]


class NaiveTenant(Middleware):
    """Binds a tenant as middleware for stock Dramatiq does."""

    def __init__(self) -> None:
        self.bound: UUID | None = None

    def before_process_message(self, broker: Any, message: Any) -> None:
        self.bound = UUID(message.options["tenant"])

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self.bound = None


class RaisesBeforeProcessing(Middleware):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.args == ("meets it",):
            raise self._error


class TestTheTenantOfWhatRuns:
    """18: an actor never runs without its tenant, nor with another's, and the row is its tenant's."""

    OTHER = UUID(int=0xB)

    def test_stock_runs_it_without(self, side: Make, redis_url: str) -> None:
        one = side(stock, redis_url)
        naive = NaiveTenant()
        one.broker.add_middleware(naive)
        ran: list[UUID | None] = []
        job = one.actor(lambda: ran.append(naive.bound))
        job.send_with_options(tenant=str(TENANT))
        # It lacks the option: the hook raises, and the actor runs.
        job.send()
        drained(one)
        assert sorted(ran, key=str) == [TENANT, None]

    def through(self, one: Side) -> list[tuple[str, UUID | None]]:
        """Run a job of another tenant, and then on the same thread one whose hooks meet trouble."""
        ran: list[tuple[str, UUID | None]] = []
        job = one.actor(lambda what: ran.append((what, current_tenant())))
        job.send_with_options(args=("before it",), tenant_id=str(self.OTHER))
        one.send(job, "meets it")
        with one.working(threads=1):
            eventually(lambda: kept(one.client) == 0)
        assert in_acks(one.client) == 0
        assert ("before it", self.OTHER) in ran
        return [r for r in ran if r[0] == "meets it"]

    @pytest.mark.parametrize("place", [TenantContext, None], ids=["before ours", "after ours"])
    def test_a_hook_that_raises_what_dramatiq_swallows(self, side: Make, redis_url: str, place: Any) -> None:
        one = side(ours, redis_url)
        one.broker.add_middleware(RaisesBeforeProcessing(KeyError("not thought of")), before=place)
        assert self.through(one) == [("meets it", TENANT)]
        assert one.failures == []

    @pytest.mark.parametrize("place", [TenantContext, None], ids=["before ours", "after ours"])
    @pytest.mark.parametrize("error", [MiddlewareError("no"), SkipMessage("no")])
    def test_a_hook_that_stops_it(self, side: Make, redis_url: str, place: Any, error: Exception) -> None:
        one = side(ours, redis_url)
        one.broker.add_middleware(RaisesBeforeProcessing(error), before=place)
        assert self.through(one) == []
        assert [(f.error_message, f.tenant_id) for f in one.failures] == [("no", TENANT)]

    @pytest.mark.parametrize("name", ["_arrived", "correlation_of"])
    def test_ours_failing(self, side: Make, redis_url: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        one = side(ours, redis_url)
        original = getattr(tenant_context, name)
        met: list[bool] = []

        def fails_once(*arguments: Any) -> Any:
            # As the job begins, and not as it is sent.
            if threading.current_thread().__class__.__name__ == "WorkerThread" and current_tenant() is None and not met:
                met.append(True)
                raise RuntimeError("not thought of")
            return original(*arguments)

        monkeypatch.setattr(tenant_context, name, fails_once)
        ran: list[UUID | None] = []
        one.send(one.actor(lambda: ran.append(current_tenant())))
        drained(one)
        assert (met, ran) == ([True], [])
        (failure,) = one.failures
        assert (failure.error_type, failure.tenant_id) == ("tenant_error", TENANT)
        assert "the tenant of the message could not be read: RuntimeError('not thought of')" in failure.error_message


class TestUndeclaredQueues:
    """5: nobody consumes a queue that nobody declared."""

    def send(self, one: Side) -> None:
        message: Message[Any] = Message("nowhere", "test.job", (), {}, {"tenant_id": str(TENANT)})
        one.broker.enqueue(message)

    def test_stock_takes_the_message(self, side: Make, redis_url: str) -> None:
        one = side(stock, redis_url)
        self.send(one)
        assert "nowhere" not in one.broker.get_declared_queues()
        assert one.client.llen("dramatiq:nowhere") == 1

    def test_ours_refuses_it(self, side: Make, redis_url: str) -> None:
        one = side(ours, redis_url)
        with pytest.raises(UndeclaredQueue, match="queue 'nowhere', which is not declared; known: attribution, "):
            self.send(one)
        assert one.client.exists("dramatiq:nowhere") == 0


class BindsNaively(Middleware):
    """Clears what it bound in after_process_message, as one would write it at first."""

    def __init__(self) -> None:
        self.local = threading.local()

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.options.get("tenant") is not None:
            self.local.tenant = message.options["tenant"]

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self.local.tenant = None


class SkipsSome(Middleware):
    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.options.get("skip"):
            raise SkipMessage("not now")


class TestTenantAfterASkip:
    """23."""

    def test_stock_calls_no_hook_that_would_clear_it(self, side: Make, redis_url: str) -> None:
        one = side(stock, redis_url)
        naive = BindsNaively()
        one.broker.add_middleware(naive)
        one.broker.add_middleware(SkipsSome())
        seen: list[object] = []
        job = one.actor(lambda: seen.append(getattr(naive.local, "tenant", None)))
        job.send_with_options(tenant="b", skip=True)
        job.send()
        with one.working(threads=1):
            eventually(lambda: kept(one.client) == 0)
        # The second, which has no tenant, ran as the first's.
        assert seen == ["b"]

    def test_ours_binds_each_anew(self, side: Make, redis_url: str) -> None:
        one = side(ours, redis_url)
        one.broker.add_middleware(SkipsSome())
        seen: list[object] = []
        job = one.actor(lambda: seen.append(current_tenant()), tenant_scoped=False)
        one.send(job, skip=True)
        job.send()
        with one.working(threads=1):
            eventually(lambda: kept(one.client) == 0)
        assert seen == [None]
        assert [failure.tenant_id for failure in one.failures] == [TENANT]
