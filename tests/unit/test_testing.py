"""The fixtures that users write their tests with, used as the README shows it."""

from __future__ import annotations

from uuid import UUID, uuid4

import dramatiq
import pytest
from dramatiq import Worker

from db.tenancy import current_tenant
from middleware.errors import UnknownFollowUp
from worker.attribution import recompute_window
from worker.broker import broker
from worker.testing import TestBroker


def test_a_failing_job_is_one_failure_with_its_arguments(
    stub_broker: TestBroker, stub_worker: Worker, tenant: UUID
) -> None:
    recompute_window.send(window_start="2025-01-01T00:00:00Z", window_end="2025-01-31T23:59:59Z", fail=True)
    stub_broker.join(recompute_window.queue_name)
    stub_worker.join()
    (failure,) = stub_broker.failed_jobs
    assert failure.task_name == "worker.attribution.recompute_window"
    assert failure.queue == "attribution"
    assert failure.tenant_id == tenant
    assert failure.error_type == "validation_error"
    assert failure.exception_class == "ValueError"
    assert failure.error_message == "attribution recompute failure requested"
    assert failure.task_kwargs == {
        "window_start": "2025-01-01T00:00:00Z",
        "window_end": "2025-01-31T23:59:59Z",
        "fail": True,
    }
    assert failure.retry_count == 0


def test_actors_go_back_to_their_broker(stub_broker: TestBroker) -> None:
    assert recompute_window.broker is stub_broker


def test_after_the_test_before() -> None:
    assert recompute_window.broker is broker
    assert current_tenant() is None


def test_the_tenant_is_bound(tenant: UUID) -> None:
    assert current_tenant() == tenant


def test_retries_do_not_wait_and_a_module_may_be_new(
    stub_broker: TestBroker, stub_worker: Worker, tenant: UUID
) -> None:
    from worker.routing import actor

    @actor(queue_name="llm", actor_name=f"test.{uuid4().hex}", max_retries=3)
    def flaky() -> None:
        raise RuntimeError("again")

    flaky.send()
    stub_broker.join("llm", timeout=20_000)
    stub_worker.join()
    assert [f.retry_count for f in stub_broker.failed_jobs] == [3]


def test_which_then_belongs_to_the_process() -> None:
    assert any(name.startswith("test.") for name in broker.actors)


def test_a_registered_queue_is_there_too(stub_broker: TestBroker) -> None:
    from worker.routing import register

    register(f"myapp_{uuid4().hex}", "of-a-users-own")
    stub_broker.declare_queue("of-a-users-own")
    assert "of-a-users-own" in stub_broker.queues


class TestGroups:
    def test_callbacks_come_once_when_all_children_are_done(
        self, stub_broker: TestBroker, stub_worker: Worker, tenant: UUID
    ) -> None:
        seen: list[tuple[str, UUID | None]] = []

        def job(name: str) -> None:
            seen.append((name, current_tenant()))

        declare = dramatiq.actor(queue_name="llm", actor_name=f"test.{uuid4().hex}")
        actor = declare(job)
        piped = actor.message("first") | actor.message_with_options(args=("second",), pipe_ignore=True)
        group = dramatiq.group([piped, *(actor.message("child") for _ in range(3))])
        group.add_completion_callback(actor.message("callback"))
        group.run()
        stub_broker.join("llm", timeout=20_000)
        stub_worker.join()
        assert sorted(name for name, _ in seen) == ["callback", "child", "child", "child", "first", "second"]
        assert seen[-1] == ("callback", tenant)
        assert {bound for _, bound in seen} == {tenant}
        assert stub_broker.failed_jobs == []

    def test_a_child_that_fails_keeps_them_from_coming(
        self, stub_broker: TestBroker, stub_worker: Worker, tenant: UUID
    ) -> None:
        called: list[int] = []
        child = dramatiq.actor(queue_name="llm", actor_name=f"test.{uuid4().hex}", max_retries=0)(lambda n: 1 // n)
        callback = dramatiq.actor(queue_name="llm", actor_name=f"test.{uuid4().hex}")(lambda: called.append(1))
        group = dramatiq.group([child.message(0), child.message(1)])
        group.add_completion_callback(callback.message())
        group.run()
        stub_broker.join("llm", timeout=20_000)
        stub_worker.join()
        assert len(stub_broker.failed_jobs) == 1
        assert called == []

    def test_a_callback_that_nobody_knows_is_refused(self, stub_broker: TestBroker, tenant: UUID) -> None:
        child = dramatiq.actor(queue_name="llm", actor_name=f"test.{uuid4().hex}")(lambda: None)
        group = dramatiq.group([child.message()])
        group.add_completion_callback(child.message().copy(actor_name="nobody"))
        with pytest.raises(UnknownFollowUp, match="option 'group_completion_callbacks' names actor 'nobody'"):
            group.run()


def test_many_are_sent_to_the_broker_of_the_test(stub_broker: TestBroker, stub_worker: Worker, tenant: UUID) -> None:
    from worker.sending import enqueue_many

    enqueue_many(recompute_window.message("2025-01-01", "2025-02-01", fail=True) for _ in range(3))
    stub_broker.join(recompute_window.queue_name)
    stub_worker.join()
    assert len(stub_broker.failed_jobs) == 3
