"""``explain_window``: on real Postgres, a StubBroker, and a local server that speaks the chat API."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from threading import Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis
from dramatiq import Worker
from dramatiq.rate_limits.backends import StubBackend
from loguru import logger
from psycopg.rows import dict_row

from db.errors import ConfigurationError
from db.failures import Failure
from db.session import transaction
from db.tenancy import tenant_context
from tests.integration.test_recompute import Sale, Touch, given_events, insert
from tests.llm_server import ANSWER, LlmServer, answers, fails, raw, running_llm
from tests.servers import Database
from worker.broker import make_broker, settings
from worker.explain import patience
from worker.explain.budget import Prices, Usage
from worker.explain.call import LanguageModel, Reply
from worker.explain.errors import BudgetExceeded, LimitReached, RequestRefused, UpstreamFailed
from worker.explain.limits import Limits, limits_of
from worker.explain.prompt import Prompt
from worker.explain.window import Asking, Explained, explain
from worker.llm import explain_window
from worker.recompute import Model, Window, parse_window, recompute
from worker.settings import Settings
from worker.testing import TestBroker, stub_broker, stub_worker

__all__ = ["stub_broker", "stub_worker"]

KEY = "key-of-nobody-1234"
DAY = ("2025-01-01", "2025-03-01")
WINDOW = parse_window(*DAY)
JANUARY, FEBRUARY = datetime(2025, 1, 31, 23, 59, tzinfo=UTC), datetime(2025, 2, 1, tzinfo=UTC)
#: Of an answer of the server: 400 tokens for 10 cents a million, 50 for 40.
COST = 400 * 10 + 50 * 40


def recompute_for(tenant: UUID, window: Window = WINDOW) -> None:
    with tenant_context(tenant), transaction() as session:
        recompute(session, tenant, window, Model.LINEAR, "1.0.0")


@pytest.fixture
def tenant(database: Database) -> UUID:
    """A tenant with a recomputed window."""
    tenant = given_events(Touch("t", channel="email"), Sale("s", 12_345))
    recompute_for(tenant)
    return tenant


@pytest.fixture(scope="module")
def server() -> Iterator[LlmServer]:
    with running_llm() as server:
        yield server


@pytest.fixture
def llm(server: LlmServer) -> LlmServer:
    server.forget()
    return server


def rows(database: Database, table: str) -> list[dict[str, Any]]:
    with psycopg.connect(database.admin_url, row_factory=dict_row) as admin:
        return admin.execute(f"SELECT * FROM {table} ORDER BY 1, 2".encode()).fetchall()


def spent(database: Database) -> dict[UUID, int]:
    return {row["tenant_id"]: row["spent_microcents"] for row in rows(database, "worker_llm_spending")}


# --- The actor ------------------------------------------------------------------------------------


@dataclass
class Jobs:
    """Sends and runs the actor."""

    broker: TestBroker
    worker: Worker
    monkeypatch: pytest.MonkeyPatch
    settings: Settings = settings

    def set(self, **settings: object) -> None:
        self.settings = self.settings.model_copy(update=settings)
        self.monkeypatch.setattr("worker.llm.settings", self.settings)

    def run(self, tenant: UUID, *, times: int = 1, **arguments: Any) -> list[Failure]:
        """Run it, and return what failed."""
        given = {"window_start": DAY[0], "window_end": DAY[1], **arguments}
        for _ in range(times):
            explain_window.send_with_options(kwargs=given, tenant_id=tenant)
        self.broker.join(explain_window.queue_name, timeout=30_000)
        self.worker.join()
        failed = list(self.broker.failed_jobs)
        self.broker.failed_jobs.clear()
        return failed


@pytest.fixture
def jobs(stub_broker: TestBroker, stub_worker: Worker, llm: LlmServer, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    jobs = Jobs(stub_broker, stub_worker, monkeypatch)
    # Nobody waits for minutes here.
    monkeypatch.setattr(patience, "FIRST_WAIT", 2)
    monkeypatch.setattr(patience, "LONGEST_WAIT", 4)
    jobs.set(
        llm_base_url=llm.url,
        llm_api_key=KEY,
        llm_price_input=Decimal(10),
        llm_price_output=Decimal(40),
        llm_rate=1000,
        llm_tenant_rate=1000,
    )
    return jobs


def test_an_answer_is_stored_with_what_it_took_and_asked_for_once(
    jobs: Jobs, llm: LlmServer, tenant: UUID, database: Database
) -> None:
    assert jobs.run(tenant) == []
    (answer,) = rows(database, "worker_llm_answers")
    assert {name: answer[name] for name in ("tenant_id", "window_start", "window_end", "model", "model_version")} == {
        "tenant_id": tenant,
        "window_start": WINDOW.start,
        "window_end": WINDOW.end,
        "model": "linear",
        "model_version": "1.0.0",
    }
    assert (answer["answer"], answer["language_model"]) == (ANSWER, "small-2")
    assert (answer["input_tokens"], answer["output_tokens"], answer["cost_microcents"]) == (400, 50, COST)
    assert '{"name": "email", "revenue": "123.45", "allocations": 1}' in llm.asked[0]["messages"][1]["content"]

    assert jobs.run(tenant) == []
    assert len(llm.asked) == 1
    assert jobs.run(tenant, force=True) == []
    assert len(llm.asked) == 2

    with tenant_context(tenant), transaction() as session:
        insert(session, tenant, [Sale("later", 5)])
    # Until they are recomputed, allocations are what they were.
    assert jobs.run(tenant) == []
    assert len(llm.asked) == 2
    recompute_for(tenant)
    llm.then(answers("More."))
    assert jobs.run(tenant) == []
    assert len(llm.asked) == 3
    (newest,) = rows(database, "worker_llm_answers")
    assert (newest["id"], newest["answer"]) == (answer["id"], "More.")
    (month,) = rows(database, "worker_llm_spending")
    assert (month["calls"], month["input_tokens"], month["output_tokens"]) == (3, 1200, 150)
    assert month["spent_microcents"] == 3 * COST
    assert rows(database, "worker_llm_reservations") == []


def test_bad_input_is_a_row_that_names_it(jobs: Jobs, llm: LlmServer, tenant: UUID, database: Database) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"window_start": "yesterday"}, "window_start: 'yesterday' is not"),
        ({"window_end": 5}, "window_end: 5 is not"),
        ({"window_start": DAY[1], "window_end": DAY[0]}, "must be before window_end"),
        ({"model": "magic"}, "model: 'magic' is not one of"),
        ({"model_version": ""}, "model_version: must not be empty"),
        ({"force": "yes"}, "force: must be true or false, not 'yes'"),
        ({"model_version": "2"}, "this window was not recomputed"),
    ]
    for arguments, said in wrong:
        (failure,) = jobs.run(tenant, **arguments)
        assert (failure.error_type, failure.retry_count) == ("validation_error", 0)
        assert said in failure.error_message
    assert llm.asked == []
    assert rows(database, "worker_llm_spending") == []


def test_what_is_not_worth_a_second_try_is_a_row_at_the_first(
    jobs: Jobs, llm: LlmServer, tenant: UUID, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    lines: list[str] = []
    sink = logger.add(lines.append, level="TRACE")
    refusals = {
        "validation_error": [
            fails(400),
            answers(None, refusal="no"),
            answers("He", finish_reason="content_filter"),
        ],
        "configuration_error": [
            fails(401, f"Incorrect API key provided: {KEY}"),
            fails(403, KEY),
            fails(404),
            fails(429, "pay", "insufficient_quota"),
        ],
    }
    calls = 0
    for error_type, behaviours in refusals.items():
        for behaviour in behaviours:
            llm.then(behaviour)
            calls += 1
            (failure,) = jobs.run(tenant)
            assert (failure.error_type, failure.retry_count) == (error_type, 0)
            assert KEY not in repr(failure)
            assert len(llm.asked) == calls
    jobs.set(llm_api_key=None)
    (failure,) = jobs.run(tenant)
    assert (failure.error_type, failure.retry_count) == ("configuration_error", 0)
    assert failure.error_message == "LLM_API_KEY is not set, so no language model can be asked"
    logger.remove(sink)
    assert KEY not in caplog.text + "".join(lines)
    # The two that were answered, though with a refusal, have cost what answers do; the others nothing.
    assert spent(database) == {tenant: 2 * COST}
    assert rows(database, "worker_llm_reservations") == []
    assert rows(database, "worker_llm_answers") == []


def test_what_may_pass_is_tried_again_and_gives_up_after_six_times(
    jobs: Jobs, llm: LlmServer, tenant: UUID, database: Database
) -> None:
    llm.then(fails(500), fails(503), raw(200, b"nonsense"), answers(""))
    assert jobs.run(tenant) == []
    assert len(llm.asked) == 5
    assert [row["answer"] for row in rows(database, "worker_llm_answers")] == [ANSWER]
    llm.always(fails(500))
    (failure,) = jobs.run(tenant, force=True)
    assert (failure.error_type, failure.retry_count) == ("upstream_error", 6)
    assert len(llm.asked) == 12
    # That of the empty answer, too.
    assert spent(database) == {tenant: 2 * COST}
    assert rows(database, "worker_llm_reservations") == []


def test_waiting_its_turn_is_no_failure(
    jobs: Jobs, llm: LlmServer, tenant: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm.then(*[fails(429)] * 10, fails(500), *[fails(429)] * 10, *[fails(500)] * 5)
    assert jobs.run(tenant) == []
    assert len(llm.asked) == 27
    # Of those that wait for our own limit, one may go, and the others wait for a day, or what is one here.
    jobs.set(llm_tenant_rate=28)
    monkeypatch.setattr(patience, "WAITS_AT_MOST", 5)
    failures = jobs.run(tenant, times=3, force=True)
    assert [(f.error_type, f.retry_count) for f in failures] == [("rate_limited", 5)] * 2
    assert {f.error_message for f in failures} == {"LLM_TENANT_RATE: 28 calls within a minute were reached"}
    assert len(llm.asked) == 28


def test_a_budget_that_is_spent_is_a_row_without_a_call(
    jobs: Jobs, llm: LlmServer, tenant: UUID, database: Database
) -> None:
    jobs.set(llm_monthly_budget=1)
    with psycopg.connect(database.admin_url) as admin:
        admin.execute("INSERT INTO worker_llm_budgets VALUES (%s, 0, 'ana')", [tenant])
    (failure,) = jobs.run(tenant)
    assert (failure.error_type, failure.retry_count) == ("budget_exceeded", 0)
    assert "is 0 cents, of which 0 are spent, and this call may cost 0." in failure.error_message
    assert llm.asked == []
    other = given_events(Touch("t"), Sale("s", 1))
    recompute_for(other)
    assert jobs.run(other) == []
    assert spent(database) == {other: COST}


# --- Without the actor ----------------------------------------------------------------------------


class Api:
    """Stands for the API; what it does during a call is the test's."""

    def __init__(self) -> None:
        self.calls = 0
        self.during: Callable[[], object] = lambda: None
        self.reply = Reply("text", None, "stop", "small", Usage(10, 5, 700_000))

    def __call__(self, model: LanguageModel, prompt: Prompt, waits: int) -> Reply:
        self.calls += 1
        self.during()
        return self.reply


@dataclass
class Ask:
    """Explains the window of a tenant; most that a call may cost is about a cent."""

    api: Api
    asking: Asking

    def __call__(
        self, tenant: UUID, call_id: UUID | None = None, at: datetime | None = None, *, force: bool = True
    ) -> Explained:
        with tenant_context(tenant):
            return explain(
                tenant,
                WINDOW,
                Model.LINEAR,
                "1.0.0",
                self.asking,
                call_id=call_id or uuid4(),
                force=force,
                at=at,
                call=self.api,
            )


@pytest.fixture
def ask(database: Database) -> Ask:
    language_model = LanguageModel(
        "https://h", KEY, "small", 10_000, "max_tokens", 60, Prices(Decimal(0), Decimal(100))
    )
    return Ask(Api(), Asking(language_model, Limits(StubBackend(), "x", 1000, 1000), monthly_budget=2))


def own_budget(database: Database, tenant: UUID, cents: int | None) -> None:
    with psycopg.connect(database.operator_url) as operator:
        operator.execute(
            "INSERT INTO worker_llm_budgets (tenant_id, monthly_cents, changed_by) VALUES (%s, %s, 'ana')"
            " ON CONFLICT (tenant_id) DO UPDATE SET monthly_cents = EXCLUDED.monthly_cents",
            [tenant, cents],
        )


def test_a_month_begins_with_all_of_the_budget(ask: Ask, tenant: UUID, database: Database) -> None:
    # 0.7 cents each, and one that may cost 1 must fit.
    for _ in range(2):
        ask(tenant, at=JANUARY)
    with pytest.raises(BudgetExceeded) as caught:
        ask(tenant, at=JANUARY)
    assert str(caught.value) == ("the budget for 2025-01 is 2 cents, of which 1.4 are spent, and this call may cost 1")
    assert ask.api.calls == 2
    ask(tenant, at=FEBRUARY)
    assert [(str(row["month"]), row["spent_microcents"]) for row in rows(database, "worker_llm_spending")] == [
        ("2025-01-01", 1_400_000),
        ("2025-02-01", 700_000),
    ]


def test_a_budget_of_its_own_goes_before_that_of_all(ask: Ask, tenant: UUID, database: Database) -> None:
    own_budget(database, tenant, 0)
    with pytest.raises(BudgetExceeded):
        ask(tenant)
    own_budget(database, tenant, None)
    for _ in range(5):
        ask(tenant)
    own_budget(database, tenant, 4)
    with pytest.raises(BudgetExceeded, match=r"is 4 cents, of which 3\.5 are spent"):
        ask(tenant)
    # And without one for all, there is no limit.
    ask.asking = replace(ask.asking, monthly_budget=None)
    own_budget(database, tenant, 5)
    ask(tenant)
    with pytest.raises(BudgetExceeded, match="is 5 cents"):
        ask(tenant)


def test_a_stored_answer_needs_no_money(ask: Ask, tenant: UUID, database: Database) -> None:
    ask(tenant)
    own_budget(database, tenant, 0)
    assert ask(tenant, force=False) == Explained("text", None)


def test_what_a_call_under_way_may_cost_is_not_there_for_another(ask: Ask, tenant: UUID) -> None:
    """Which waits, instead of being refused for good: the first may cost less."""
    ask.asking = replace(ask.asking, monthly_budget=1)
    refused: list[BaseException] = []
    other = replace(ask, api=Api())

    def meanwhile() -> None:
        with pytest.raises(LimitReached, match=r"^what is left of the budget for 2025-01 is held") as caught:
            other(tenant, at=JANUARY)
        refused.append(caught.value)

    ask.api.during = meanwhile
    ask.api.reply = replace(ask.api.reply, usage=Usage(0, 0, 0))
    ask(tenant, at=JANUARY)
    assert len(refused) == 1
    assert other.api.calls == 0
    other(tenant, at=JANUARY)
    assert other.api.calls == 1


def test_of_many_at_once_only_so_many_call_as_the_budget_has_room_for(ask: Ask, tenant: UUID) -> None:
    ask.asking = replace(ask.asking, monthly_budget=3)
    # Each costs all that it may.
    ask.api.reply = replace(ask.api.reply, usage=Usage(0, 10_000, 1_000_000))
    refused: list[str] = []

    def one() -> None:
        try:
            ask(tenant, at=JANUARY)
        except (BudgetExceeded, LimitReached) as e:
            refused.append(type(e).__name__)

    threads = [Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (ask.api.calls, len(refused)) == (3, 5)


class Killed(BaseException):
    """Ends an execution as the loss of its worker does: nothing of ours runs after it."""


def test_a_reservation_of_a_worker_that_was_killed(ask: Ask, tenant: UUID, database: Database) -> None:
    ask.asking = replace(ask.asking, monthly_budget=1)
    ask.api.reply = replace(ask.api.reply, usage=Usage(0, 0, 0))
    message, begin = uuid4(), datetime(2025, 1, 1, tzinfo=UTC)

    def die() -> None:
        raise Killed

    def is_lost() -> None:
        ask.api.during = die
        with pytest.raises(Killed):
            ask(tenant, message, begin)
        ask.api.during = lambda: None
        assert [row["microcents"] for row in rows(database, "worker_llm_reservations")] == [1_000_000]

    is_lost()
    # Others wait, but not the message itself, when it is delivered again.
    with pytest.raises(LimitReached):
        ask(tenant, at=begin)
    assert ask(tenant, message, begin).called is not None
    assert rows(database, "worker_llm_reservations") == []
    # Twice the time that a call may take and a minute later it counts no more.
    message = uuid4()
    is_lost()
    with pytest.raises(LimitReached):
        ask(tenant, at=begin + timedelta(seconds=179))
    assert ask(tenant, at=begin + timedelta(seconds=180)).called is not None
    assert rows(database, "worker_llm_reservations") == []


def test_an_answer_that_never_came_is_held_for_as_long(ask: Ask, tenant: UUID, database: Database) -> None:
    for may_have_cost in (True, False):

        def fail(may_have_cost: bool = may_have_cost) -> None:
            raise UpstreamFailed("x", may_have_cost=may_have_cost)

        ask.api.during = fail
        with pytest.raises(UpstreamFailed):
            ask(tenant, UUID(int=1))
        assert len(rows(database, "worker_llm_reservations")) == may_have_cost


def test_a_message_that_comes_again_after_its_answer_was_stored_asks_no_more(
    ask: Ask, tenant: UUID, database: Database
) -> None:
    message = uuid4()
    assert ask(tenant, message).called is not None
    assert ask(tenant, message).called is None
    assert ask.api.calls == 1
    assert spent(database) == {tenant: 700_000}


def test_an_answer_that_could_not_be_stored_costs_one_more_call(
    ask: Ask, tenant: UUID, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of the first is counted: neither is committed without the other."""

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    message = uuid4()
    with monkeypatch.context() as patched:
        patched.setattr("worker.explain.window.store_answer", fail)
        with pytest.raises(ConnectionError):
            ask(tenant, message)
    assert spent(database) == {tenant: 0}
    ask(tenant, message)
    assert ask.api.calls == 2
    assert spent(database) == {tenant: 700_000}
    assert rows(database, "worker_llm_reservations") == []


def test_all_processes_on_one_redis_count_together(redis_url: str) -> None:
    settings = Settings.load(
        {"DATABASE_URL": "postgres://h/x", "REDIS_URL": redis_url, "REDIS_NAMESPACE": "ours", "LLM_TENANT_RATE": "10"}
    )
    acme, taken = uuid4(), list[bool]()

    def one() -> None:
        with closing(make_broker(settings)) as broker:
            limits = limits_of(broker, overall=settings.llm_rate, tenant=settings.llm_tenant_rate)
            for _ in range(5):
                try:
                    limits.take(acme, 0)
                except LimitReached:
                    taken.append(False)
                else:
                    taken.append(True)

    threads = [Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(taken), len(taken)) == (10, 20)
    with closing(redis.Redis.from_url(redis_url)) as client:
        assert {key.rpartition(b"@")[0].decode() for key in client.scan_iter()} == {
            "ours:__dramaturg__.llm_rate",
            f"ours:__dramaturg__.llm_rate.{acme}",
        }


def test_a_missing_table_is_said(ask: Ask, tenant: UUID, database: Database) -> None:
    with psycopg.connect(database.owner_url) as owner:
        owner.execute("DROP TABLE worker_llm_reservations")
    with pytest.raises(ConfigurationError, match="there is no table worker_llm_reservations: run `worker migrate`"):
        ask(tenant)
    assert ask.api.calls == 0


def test_a_refusal_is_counted_and_not_stored(ask: Ask, tenant: UUID, database: Database) -> None:
    ask.api.reply = replace(ask.api.reply, text="", refusal="no")
    with pytest.raises(RequestRefused):
        ask(tenant)
    ask.api.reply = replace(ask.api.reply, refusal=None, finish_reason="length")
    with pytest.raises(ConfigurationError, match="LLM_MAX_TOKENS"):
        ask(tenant)
    assert spent(database) == {tenant: 1_400_000}
    assert rows(database, "worker_llm_answers") == []
