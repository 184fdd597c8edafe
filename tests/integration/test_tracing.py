"""A trace joins who sends, jobs, their children and their SQL."""

from __future__ import annotations

import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, Tracer, format_trace_id, set_span_in_context
from sqlalchemy import text

from db.failed import Filter
from db.failures import Failure
from db.session import operator_transaction, transaction
from middleware.errors import TenantNotGiven
from middleware.tracing import Tracing, current_trace_id
from middleware.unique import Unique
from tests.integration.nothing_lost import QUEUE, TENANT, Side, kept, ours, put
from tests.integration.replaying import A, deployed
from tests.integration.test_scheduler import Deck
from tests.servers import Database
from tests.waiting import eventually
from worker.logs.line import job_fields
from worker.probe import Probe

Make = Callable[[Callable[[str], Side], str], Side]
SEND, PROCESS = f"send {QUEUE}", f"process {QUEUE}"


@dataclass
class Traced:
    """A broker whose spans stay in memory."""

    side: Side
    tracer: Tracer
    exporter: InMemorySpanExporter

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def of(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def tree(self) -> list[Any]:
        """Return every span as its name and its children, in the order in which they began."""

        def below(parent: int | None) -> list[Any]:
            return [
                (span.name.split()[0], below(span.context.span_id))
                for span in self.spans
                if (span.parent.span_id if span.parent else None) == parent
            ]

        return below(None)

    def traces(self) -> set[int]:
        return {span.context.trace_id for span in self.spans}

    def drained(self, spans: int) -> None:
        """Wait until nothing is left to do, and there are as many spans of executions."""
        eventually(lambda: kept(self.side.client) == 0 and len(self.of(PROCESS)) == spans)


def tracing(broker: dramatiq.Broker) -> Tracing:
    return next(m for m in broker.middleware if isinstance(m, Tracing))


def in_memory(**options: Any) -> tuple[TracerProvider, InMemorySpanExporter]:
    provider, exporter = TracerProvider(shutdown_on_exit=False, **options), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


@pytest.fixture
def traced(side: Make, redis_url: str) -> Traced:
    provider, exporter = in_memory()
    one = side(lambda url: ours(url, MIN_BACKOFF="1", MAX_BACKOFF="1"), redis_url)
    tracing(one.broker).start(provider)
    return Traced(one, provider.get_tracer("tests"), exporter)


def test_a_trace_joins_sender_tries_child_and_sql(traced: Traced, database: Database) -> None:
    tries: list[str | None] = []
    lines: list[str] = []

    async def child() -> None:
        async with transaction() as session:
            await session.execute(text("SELECT 2, 'written in, ''so'' secret'"))
        tries.append(current_trace_id())

    def parent(password: str) -> None:
        tries.append(current_trace_id())
        lines.append((job_fields() or {})["trace_id"])
        with transaction() as session:
            session.execute(text("SELECT CAST(:password AS text)"), {"password": password})
        if len(tries) == 1:
            raise ValueError(f"wrong password={password}")
        traced.side.send(child_actor)

    child_actor, parent_actor = traced.side.actor(child), traced.side.actor(parent, max_retries=2)
    with traced.tracer.start_as_current_span("request") as request, traced.side.working():
        sent = traced.side.send(parent_actor, "hunter2")
        traced.drained(3)
    with traced.side.working(), operator_transaction() as session:
        # In nobody's trace.
        session.execute(text("SELECT 3"))
    assert traced.tree() == [
        (
            "request",
            [
                (
                    "send",
                    [
                        ("process", [("SELECT", [])]),
                        ("process", [("SELECT", []), ("send", [("process", [("SELECT", [])])])]),
                    ],
                )
            ],
        )
    ]
    assert tries == [format_trace_id(request.get_span_context().trace_id)] * 3
    assert lines == tries[:2]
    send, (first, second, of_child) = traced.of(SEND)[0], traced.of(PROCESS)
    assert (send.kind, first.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(send.attributes or {}) == {
        "messaging.system": "dramatiq",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": QUEUE,
        "messaging.message.id": sent.message_id,
        "messaging.message.conversation_id": sent.options["correlation_id"],
        "dramaturg.actor": parent_actor.actor_name,
        "dramaturg.correlation_id": sent.options["correlation_id"],
        "dramaturg.tenant_id": str(TENANT),
    }
    told = [
        (span.attributes["dramaturg.attempt"], span.attributes["dramaturg.outcome"], span.status.status_code)
        for span in (first, second, of_child)
        if span.attributes is not None
    ]
    assert told == [
        (1, "retried", StatusCode.ERROR),
        (2, "succeeded", StatusCode.UNSET),
        (1, "succeeded", StatusCode.UNSET),
    ]
    assert [event.name for event in first.events] == ["exception"]
    assert "in parent" in str((first.events[0].attributes or {})["exception.stacktrace"])
    statements = [span.attributes["db.query.text"] for span in traced.of(f"SELECT {database.name}") if span.attributes]
    assert statements[0] == "SELECT CAST(%(password)s AS text)"
    assert statements[2] == "SELECT ?, ?"
    assert not any(secret in span.to_json() for secret in ("hunter2", "so'' secret") for span in traced.spans)


def test_what_follows_from_a_job_stays_in_its_trace(traced: Traced) -> None:
    ran: list[str] = []

    def declare(name: str, **options: Any) -> dramatiq.Actor[..., Any]:
        return traced.side.actor(lambda *_: ran.append(name), actor_name=name, **options)

    after, last, all_done = declare("after"), declare("last"), declare("all_done")
    first = declare("first")
    tenant: dict[str, Any] = {"tenant_id": str(TENANT)}
    with traced.side.working():
        with traced.tracer.start_as_current_span("callback"):
            traced.side.send(first, on_success=after.actor_name)
        with traced.tracer.start_as_current_span("pipeline"):
            both = [first.message_with_options(**tenant), last.message_with_options(**tenant)]
            dramatiq.pipeline(both, broker=traced.side.broker).run()
        with traced.tracer.start_as_current_span("group"):
            group = dramatiq.group([first.message_with_options(**tenant)], broker=traced.side.broker)
            group.add_completion_callback(all_done.message_with_options(**tenant))
            group.run()
        with traced.tracer.start_as_current_span("delayed"):
            traced.side.send(first, delay=20)
        traced.drained(7)
    chain: Any = ("send", [("process", [])])
    followed = ("send", [("process", [chain])])
    assert traced.tree() == [
        ("callback", [followed]),
        ("pipeline", [followed]),
        ("group", [followed]),
        ("delayed", [chain]),
    ]
    assert sorted(ran) == ["after", "all_done", *["first"] * 4, "last"]


def test_what_arrives_without_a_trace_begins_one_and_leaves_it_to_its_retries_only(traced: Traced) -> None:
    found: list[tuple[int, str | None]] = []
    between: set[str | None] = set()

    class Watching(dramatiq.Middleware):
        def before_ack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            between.add(current_trace_id())

    traced.side.broker.add_middleware(Watching())

    def run(n: int) -> None:
        again = (n, current_trace_id()) in found
        found.append((n, current_trace_id()))
        # Somebody forgets to detach it.
        context.attach(set_span_in_context(traced.tracer.start_span("left behind")))
        if not again:
            raise ValueError(n)

    actor = traced.side.actor(run, max_retries=1)
    wrong = ["00-1-2-3", 12, {"a": "b"}, "x" * 100_000, "ff-" + "0" * 52, None]
    for n, traceparent in enumerate(wrong):
        redis_id = str(uuid4())
        options = {"tenant_id": str(TENANT), "redis_message_id": redis_id, "traceparent": traceparent}
        # The last is delayed.
        late = {"eta": 1} if n == len(wrong) - 1 else {}
        queue = f"{QUEUE}.DQ" if late else QUEUE
        raw = message(actor, n, {**options, **late, "tracestate": "vendor=stale"}, queue)
        put(traced.side.client, redis_id, raw, queue)
    with traced.side.working(threads=1):
        traced.drained(2 * len(wrong))
    assert traced.of(SEND) == []
    assert not any(span.context.trace_state for span in traced.spans)
    # What is between two jobs on their thread belongs to neither.
    assert between == {None}
    by_job = {n: [trace_id for of, trace_id in found if of == n] for n in range(len(wrong))}
    assert all(len(traces) == 2 and len(set(traces)) == 1 for traces in by_job.values())
    assert len({trace_id for _, trace_id in found}) == len(wrong)
    assert traced.side.failures == []


def message(actor: dramatiq.Actor[..., Any], argument: object, options: dict[str, Any], queue: str) -> bytes:
    return dramatiq.Message(queue, actor.actor_name, (argument,), {}, options).encode()


def test_a_final_failure_is_recorded_within_its_trace_also_where_nothing_ran(traced: Traced) -> None:
    # As its log lines, and the event that Sentry gets.
    seen: dict[str, str | None] = {}

    class Watching(dramatiq.Middleware):
        def before_nack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            seen[message.actor_name] = current_trace_id()

        def after_nack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            left.append(current_trace_id())

    left: list[str | None] = []
    traced.side.broker.add_middleware(Watching())
    traced.side.broker.middleware.insert(0, Watching())

    def run() -> None:
        raise ValueError("no")

    failing, gone = traced.side.actor(run, actor_name="failing"), traced.side.actor(run, actor_name="gone")
    with traced.tracer.start_as_current_span("request") as request:
        for actor in (failing, gone):
            traced.side.send(actor)
    del traced.side.broker.actors["gone"]
    with traced.side.working():
        traced.drained(2)
    trace_id = format_trace_id(request.get_span_context().trace_id)
    assert seen == {"failing": trace_id, "gone": trace_id}
    # The first in the list is the last to be told.
    assert sorted(map(str, left)) == sorted(["None", trace_id] * 2)
    assert traced.traces() == {request.get_span_context().trace_id}
    told = {
        span.attributes["dramaturg.actor"]: (span.attributes["dramaturg.outcome"], span.attributes["error.type"])
        for span in traced.of(PROCESS)
        if span.attributes is not None
    }
    assert told == {"failing": ("failed", "ValueError"), "gone": ("failed", "dramatiq.errors.ActorNotFound")}
    # So it is to be found from a row: by this, and by the correlation id.
    assert {original(failure)["options"]["traceparent"][3:35] for failure in traced.side.failures} == {trace_id}


def original(failure: Failure) -> Any:
    assert failure.original is not None
    return json.loads(failure.original)


def test_a_replay_keeps_the_trace_and_a_probe_has_none(database: Database, redis_url: str) -> None:
    provider, exporter = in_memory()
    with deployed(database, redis_url) as deployment:
        tracing(deployment.broker).start(provider)
        (row,) = deployment.fail("this")
        deployment.fails.clear()
        with deployment.working():
            client: Any = deployment.broker.client  # type: ignore[attr-defined]
            assert Probe(client, QUEUE, 20).run().state == "answered"
            replay = deployment.replay(Filter(ids=(row,)))
            deployment.runner().run_to_end(replay)
            eventually(lambda: deployment.status(row) == "resolved")
    executions = [span for span in exporter.get_finished_spans() if span.name == PROCESS]
    assert [span.attributes["dramaturg.outcome"] for span in executions if span.attributes] == ["failed", "succeeded"]
    assert len({span.context.trace_id for span in executions}) == 1
    assert (executions[1].attributes or {})["dramaturg.tenant_id"] == str(A)


def test_many_in_one_round_trip_are_sent_in_one_trace_and_what_is_refused_in_none(traced: Traced) -> None:
    actor = traced.side.actor(lambda: None)
    newest = traced.side.actor(lambda: None, unique=Unique(second="replace"))
    broker: Any = traced.side.broker
    with traced.tracer.start_as_current_span("request"):
        traced.side.send(newest)
        # What send() returned is like any message.
        assert pickle.loads(pickle.dumps(traced.side.send(newest))).options["traceparent"]  # noqa: S301
        broker.enqueue_many([actor.message_with_options(tenant_id=str(TENANT)) for _ in range(3)])
        with pytest.raises(TenantNotGiven):
            actor.send()
    assert traced.tree() == [("request", [("send", [])] * 5)]


def test_each_tick_of_a_schedule_begins_a_trace(redis_url: str) -> None:
    provider, exporter = in_memory()
    deck = Deck(redis_url)
    try:
        tracing(deck.broker).start(provider)
        job = deck.job()
        scheduler = deck.scheduler(job)
        for _ in range(2):
            deck.make_due(job)
            scheduler.turn()
        sent = [message["options"]["traceparent"][3:35] for message in deck.sent()]
    finally:
        deck.side.close()
    assert sent == [format_trace_id(span.context.trace_id) for span in exporter.get_finished_spans()]
    assert len(set(sent)) == 2


def test_what_is_not_sampled_costs_its_job_nothing_more(side: Make, redis_url: str, database: Database) -> None:
    provider, exporter = in_memory(sampler=ALWAYS_OFF)
    one = side(ours, redis_url)
    tracing(one.broker).start(provider)
    traces: list[str | None] = []
    done = threading.Event()

    def run() -> None:
        with transaction() as session:
            session.execute(text("SELECT 1"))
        traces.append(current_trace_id())
        done.set()

    with one.working():
        sent = one.send(one.actor(run))
        assert done.wait(15)
        eventually(lambda: kept(one.client) == 0)
    # The flag for "sampled" is not set.
    assert int(sent.options["traceparent"][-2:], 16) & 1 == 0
    assert traces == [sent.options["traceparent"][3:35]]
    assert exporter.get_finished_spans() == ()


@pytest.fixture
def broken(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> Traced:
    def raises(*_: Any, **__: Any) -> None:
        raise RuntimeError("the tracer is broken")

    spans: Any = tracing(traced.side.broker)._spans
    monkeypatch.setattr(spans.tracer, "start_span", raises)
    return traced


def test_a_tracer_that_raises_costs_no_job(broken: Traced) -> None:
    ran: list[int] = []
    actor = broken.side.actor(ran.append)
    broken.side.send(actor, 1)
    with broken.side.working():
        eventually(lambda: ran == [1] and kept(broken.side.client) == 0)
    assert broken.side.failures == []
