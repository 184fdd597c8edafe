"""How a message gets its tenant, on the StubBroker with the middleware of production."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

import dramatiq
import pytest
from dramatiq import Actor, Message, Worker

from db.errors import InvalidTenant, TenantRequired
from db.tenancy import Tenancy, current_tenancy, current_tenant, tenant_context
from middleware.errors import TenantNotGiven, TenantNotValid
from worker.testing import TestBroker

A, B = UUID(int=0xA), UUID(int=0xB)


def declare(broker: TestBroker, fn: Any = None, **options: Any) -> Actor[..., Any]:
    async_free = fn or (lambda *args, **kwargs: None)
    name = f"test.{uuid.uuid4().hex}"
    return dramatiq.actor(broker=broker, actor_name=name, queue_name="attribution", **options)(async_free)


def run(broker: TestBroker, worker: Worker) -> None:
    broker.join("attribution", timeout=20_000)
    worker.join()


class TestAtSend:
    def test_from_the_option(self, stub_broker: TestBroker) -> None:
        message = declare(stub_broker).send_with_options(tenant_id=A)
        assert message.options["tenant_id"] == str(A)

    def test_from_the_enclosing_context(self, stub_broker: TestBroker) -> None:
        with tenant_context(A):
            assert declare(stub_broker).send().options["tenant_id"] == str(A)

    def test_from_a_keyword_argument_which_moves(self, stub_broker: TestBroker) -> None:
        def without(x: int) -> None: ...

        message = declare(stub_broker, without).send(1, tenant_id=str(A))
        assert message.options["tenant_id"] == str(A)
        assert message.kwargs == {}

    def test_and_stays_where_the_actor_takes_it(self, stub_broker: TestBroker) -> None:
        def takes(tenant_id: str) -> None: ...

        def takes_all(**kwargs: Any) -> None: ...

        for fn in (takes, takes_all):
            message = declare(stub_broker, fn).send(tenant_id=A)
            assert message.options["tenant_id"] == message.kwargs["tenant_id"] == str(A)

    def test_the_same_tenant_given_twice_is_one(self, stub_broker: TestBroker) -> None:
        with tenant_context(A):
            actor = declare(stub_broker)
            message = actor.send_with_options(kwargs={"tenant_id": str(A)}, tenant_id=A.hex)
        assert message.options["tenant_id"] == str(A)

    @pytest.mark.parametrize(
        ("ambient", "option", "argument"), [(A, B, None), (A, None, B), (None, A, B), (A, A, B), (B, A, A)]
    )
    def test_two_that_differ_are_refused(
        self, stub_broker: TestBroker, ambient: UUID | None, option: UUID | None, argument: UUID | None
    ) -> None:
        actor = declare(stub_broker)
        options: dict[str, Any] = {"tenant_id": option} if option else {}
        kwargs = {"tenant_id": argument} if argument else {}
        with tenant_context(ambient), pytest.raises(TenantNotValid, match=f"(?s)different tenants: .*{B}"):
            actor.send_with_options(kwargs=kwargs, **options)
        assert stub_broker.queues["attribution"].qsize() == 0

    def test_none_is_refused_with_what_to_do(self, stub_broker: TestBroker) -> None:
        actor = declare(stub_broker)
        with pytest.raises(TenantNotGiven, match=f"actor '{actor.actor_name}' is tenant-scoped and no tenant is given"):
            actor.send()
        with tenant_context(None), pytest.raises(TenantRequired):
            actor.send()
        assert stub_broker.queues["attribution"].qsize() == 0

    @pytest.mark.parametrize("value", ["acme", "", 7, "6f1c"])
    def test_what_is_no_uuid_is_refused(self, stub_broker: TestBroker, value: object) -> None:
        with pytest.raises(TenantNotValid, match=f"tenant_id must be a UUID, not {value!r}"):
            declare(stub_broker).send_with_options(tenant_id=value)
        with pytest.raises(InvalidTenant, match="correlation_id must be a UUID"):
            declare(stub_broker).send_with_options(tenant_id=A, correlation_id=value)

    def test_an_actor_without_tenant_needs_none_and_inherits_none(self, stub_broker: TestBroker) -> None:
        actor = declare(stub_broker, tenant_scoped=False)
        assert "tenant_id" not in actor.send().options
        with tenant_context(A):
            assert "tenant_id" not in actor.send().options
            assert actor.send_with_options(tenant_id=A).options["tenant_id"] == str(A)

    def test_an_actor_that_only_the_worker_knows_may_be_sent_to(self, stub_broker: TestBroker) -> None:
        message: Message[None] = Message("attribution", "elsewhere.job", (), {"tenant_id": "kept"}, {})
        with tenant_context(A):
            sent = stub_broker.enqueue(message)
        assert sent.options["tenant_id"] == str(A)
        assert sent.kwargs == {"tenant_id": "kept"}

    def test_the_correlation_id_is_inherited_or_the_message_id(self, stub_broker: TestBroker) -> None:
        actor = declare(stub_broker)
        correlation_id = uuid4()
        with tenant_context(A, correlation_id):
            assert actor.send().options["correlation_id"] == str(correlation_id)
            other = uuid4()
            assert actor.send_with_options(correlation_id=other).options["correlation_id"] == str(other)
        with tenant_context(A):
            message = actor.send()
        assert message.options["correlation_id"] == message.message_id

    def test_uuids_and_times_in_arguments_become_iso_strings(self, stub_broker: TestBroker) -> None:
        moment = datetime(2025, 1, 1, 12, tzinfo=UTC)
        with tenant_context(A):
            message = declare(stub_broker).send(B, [moment, {"d": date(2025, 1, 2)}], when=moment, ids=(A,), n=1.5)
        assert message.args == (str(B), ["2025-01-01T12:00:00+00:00", {"d": "2025-01-02"}])
        assert message.kwargs == {"when": "2025-01-01T12:00:00+00:00", "ids": [str(A)], "n": 1.5}
        json.dumps(message.asdict())

    def test_the_callers_arguments_are_left_alone(self, stub_broker: TestBroker) -> None:
        given = {"tenant_id": A, "when": datetime(2025, 1, 1, tzinfo=UTC)}
        declare(stub_broker, lambda when: None).send_with_options(kwargs=given)
        assert given == {"tenant_id": A, "when": datetime(2025, 1, 1, tzinfo=UTC)}

    def test_a_pipeline_is_addressed_whole(self, stub_broker: TestBroker) -> None:
        first, second, third = (declare(stub_broker) for _ in range(3))
        with tenant_context(A):
            (first.message() | second.message(B) | third.message()).run()
        sent = Message.decode(stub_broker.queues["attribution"].get())
        child = sent.options["pipe_target"]
        grandchild = child["options"]["pipe_target"]
        assert child["args"] == [str(B)]
        for part in (sent.options, child["options"], grandchild["options"]):
            assert part["tenant_id"] == str(A)
            assert part["correlation_id"] == sent.options["correlation_id"]

    def test_so_are_a_groups_callbacks(self, stub_broker: TestBroker) -> None:
        first, last, callback = (declare(stub_broker) for _ in range(3))
        group = dramatiq.group([first.message(), first.message() | last.message()])
        group.add_completion_callback(callback.message(B))
        group.add_completion_callback((callback.message() | last.message()).messages[0])
        with tenant_context(A):
            group.run()
        alone, piped = (Message.decode(stub_broker.queues["attribution"].get()) for _ in range(2))
        for child in (alone.options, piped.options["pipe_target"]["options"]):
            plain, piping = child["group_completion_callbacks"]
            assert plain["args"] == [str(B)]
            for part in (plain, piping, piping["options"]["pipe_target"]):
                assert part["options"]["tenant_id"] == str(A)
                assert part["options"]["correlation_id"] == child["correlation_id"]
        # The same group may be run again, for another tenant.
        with tenant_context(B):
            group.run()

    def test_a_group_with_a_callback_for_another_tenant_or_for_none_is_refused(self, stub_broker: TestBroker) -> None:
        child, callback = declare(stub_broker), declare(stub_broker)
        group = dramatiq.group([child.message()])
        group.add_completion_callback(callback.message_with_options(tenant_id=B))
        with tenant_context(A), pytest.raises(TenantNotValid, match=callback.actor_name):
            group.run()
        group = dramatiq.group([declare(stub_broker, tenant_scoped=False).message()])
        group.add_completion_callback(callback.message())
        with pytest.raises(TenantNotGiven, match=callback.actor_name):
            group.run()
        assert stub_broker.queues["attribution"].qsize() == 0

    def test_a_pipeline_with_a_part_for_another_tenant_is_refused(self, stub_broker: TestBroker) -> None:
        first, second = declare(stub_broker), declare(stub_broker)
        with tenant_context(A), pytest.raises(TenantNotValid, match=second.actor_name):
            (first.message() | second.message_with_options(tenant_id=B)).run()


class TestInTheWorker:
    def test_the_actor_runs_inside_its_tenant(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        seen: list[Tenancy | None] = []
        actor = declare(stub_broker, lambda: seen.append(current_tenancy()))
        correlation_id = uuid4()
        actor.send_with_options(tenant_id=A, correlation_id=correlation_id)
        run(stub_broker, stub_worker)
        assert seen == [Tenancy(A, correlation_id)]

    def test_an_actor_without_tenant_is_bound_to_none(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        seen: list[Tenancy | None] = []
        actor = declare(stub_broker, lambda: seen.append(current_tenancy()), tenant_scoped=False)
        with tenant_context(A):
            sent = actor.send()
        run(stub_broker, stub_worker)
        assert seen == [Tenancy(None, UUID(sent.message_id))]

    def test_an_async_actor_runs_inside_its_tenant(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        seen: list[UUID | None] = []

        async def job() -> None:
            seen.append(current_tenant())

        declare(stub_broker, job).send_with_options(tenant_id=A)
        run(stub_broker, stub_worker)
        assert seen == [A]

    def test_a_child_inherits_tenant_and_correlation(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        seen: list[Tenancy | None] = []
        child = declare(stub_broker, lambda: seen.append(current_tenancy()))
        parent = declare(stub_broker, lambda: child.send() and None)
        sent = parent.send_with_options(tenant_id=A)
        run(stub_broker, stub_worker)
        assert seen == [Tenancy(A, UUID(sent.message_id))]

    @pytest.mark.parametrize("tenant_id", [None, "acme", 7, {"x": 1}])
    def test_a_message_without_a_valid_tenant_is_not_run(
        self, stub_broker: TestBroker, stub_worker: Worker, tenant_id: object
    ) -> None:
        ran: list[int] = []
        actor = declare(stub_broker, lambda: ran.append(1), max_retries=3)
        message = actor.message()
        if tenant_id is not None:
            message.options["tenant_id"] = tenant_id
        # As a stock producer enqueues it, past our checks.
        stub_broker.queues["attribution"].put(message.encode())
        run(stub_broker, stub_worker)
        assert ran == []
        (failure,) = stub_broker.failed_jobs
        assert failure.error_type == "tenant_error"
        assert failure.tenant_id is None
        assert failure.task_id == message.message_id
        assert ("no tenant_id" if tenant_id is None else f"not {tenant_id!r}") in failure.error_message

    def test_a_retry_keeps_its_tenant_without_being_asked_again(
        self, stub_broker: TestBroker, stub_worker: Worker
    ) -> None:
        seen: list[UUID | None] = []

        def job() -> None:
            seen.append(current_tenant())
            raise RuntimeError("again")

        declare(stub_broker, job, max_retries=2, min_backoff=1, max_backoff=1).send_with_options(tenant_id=A)
        run(stub_broker, stub_worker)
        assert seen == [A, A, A]
        assert [f.tenant_id for f in stub_broker.failed_jobs] == [A]

    def test_a_delayed_message_of_a_stock_producer_without_tenant_becomes_a_row(
        self, stub_broker: TestBroker, stub_worker: Worker
    ) -> None:
        actor = declare(stub_broker)
        message = actor.message().copy(queue_name="attribution.DQ", options={"eta": 1})
        stub_broker.queues["attribution.DQ"].put(message.encode())
        run(stub_broker, stub_worker)
        assert [f.error_type for f in stub_broker.failed_jobs] == ["tenant_error"]

    def test_nothing_is_bound_outside(self, stub_broker: TestBroker, stub_worker: Worker) -> None:
        declare(stub_broker).send_with_options(tenant_id=A)
        run(stub_broker, stub_worker)
        assert current_tenancy() is None


def test_a_context_inside_another_is_undone_in_order() -> None:
    correlation_id = uuid4()
    with tenant_context(A, correlation_id):
        with tenant_context(B):
            assert current_tenancy() == Tenancy(B, correlation_id)
        assert current_tenancy() == Tenancy(A, correlation_id)
    assert current_tenancy() is None
