"""The tenant of a job, with real Redis, real Postgres and Dramatiq's own worker threads."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID, uuid4

import dramatiq
import psycopg
import pytest
import redis
from dramatiq import Actor, Message, MessageProxy, Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, MiddlewareError, SkipMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import failed_jobs, session
from db.current_message import current_execution
from db.deadline import deadline
from db.failures import Failure
from db.session import operator_transaction, transaction
from db.tenancy import Tenancy, current_tenancy, tenant_context
from middleware.known_queues import KnownQueues
from middleware.tenant_context import TenantContext
from tests.servers import Cluster, Database
from worker.broker import make_broker
from worker.settings import Settings

QUEUE: Final = "attribution"
#: Milliseconds that a test waits for its messages.
PATIENCE: Final = 60_000

A: Final = UUID("aaaaaaaa-0000-4000-8000-000000000001")
B: Final = UUID("bbbbbbbb-0000-4000-8000-000000000002")

INSERT = text(
    "INSERT INTO attribution_events (tenant_id, event_id, event_type, visitor_id, channel, occurred_at)"
    " VALUES (:mine, :n, 'touch', 'visitor', 'email', now())"
)
#: What Postgres was told, what is there to see, and on which connection.
LOOK = text(
    "SELECT current_setting('app.current_tenant_id'), current_setting('app.correlation_id'),"
    " count(*) FILTER (WHERE tenant_id IS DISTINCT FROM :mine), pg_backend_pid() FROM attribution_events"
)


#: What Dramatiq calls around a message.
HOOKS: Final = [
    *("before_process_message", "after_process_message", "after_skip_message"),
    *("before_ack", "after_ack", "before_nack", "after_nack"),
]


class Watch(Middleware):
    """First in the list, so outside of all others: here nothing is ever bound.

    ``before`` hooks of a message run here first, before ``TenantContext`` binds; ``after`` hooks run here last, when
    it has let go.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.left: list[tuple[str, object]] = []
        self.seen: Counter[str] = Counter()
        for hook in HOOKS:
            setattr(self, hook, functools.partial(self._look, hook))

    def _look(self, hook: str, *_: object, **__: object) -> None:
        with self._lock:
            self.seen[hook] += 1
            self.left += [
                (hook, left) for left in (current_tenancy(), current_execution(), deadline()) if left is not None
            ]


class Site:
    """A broker as in production, with what the tests look at."""

    def __init__(self, settings: Settings) -> None:
        self.failures: list[Failure] = []
        self.watch = Watch()
        broker = make_broker(settings, self._record)
        assert isinstance(broker, RedisBroker)
        self.broker = broker
        self.broker.add_middleware(self.watch, before=KnownQueues)
        # What the dramatiq command does in each process; it starts TimeLimit's thread.
        self.broker.emit_after("process_boot")

    def _record(self, failure: Failure) -> None:
        failed_jobs.record(failure)
        self.failures.append(failure)

    def actor(self, fn: Callable[..., Any], **options: Any) -> Actor[..., Any]:
        options = {"max_retries": 0, "actor_name": fn.__name__, **options}
        return dramatiq.actor(broker=self.broker, queue_name=QUEUE, **options)(fn)

    @contextmanager
    def working(self, threads: int = 1) -> Iterator[None]:
        """Run a worker until every message, sent before or within the block, has ended and every thread has, too."""
        worker = Worker(self.broker, queues={QUEUE}, worker_threads=threads, worker_timeout=20)
        worker.start()
        try:
            yield
            self.broker.join(QUEUE, timeout=PATIENCE)
            worker.join()
        finally:
            worker.stop()

    def assert_nothing_left(self, **hooks: int) -> None:
        """Nothing was bound outside of messages; and those hooks, at least, were there to see it."""
        assert self.watch.left == []
        for hook, times in hooks.items():
            assert self.watch.seen[hook] == times, self.watch.seen


class Notes:
    """What jobs saw, from whichever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seen: list[tuple[str, Tenancy | None]] = []

    def take(self, what: str) -> None:
        with self._lock:
            self.seen.append((what, current_tenancy()))

    def tenants(self) -> list[tuple[str, UUID | None]]:
        return [(what, tenancy.tenant_id if tenancy else None) for what, tenancy in self.seen]

    def correlations(self) -> set[UUID | None]:
        return {tenancy.correlation_id if tenancy else None for _, tenancy in self.seen}


@pytest.fixture(scope="module")
def clone(cluster: Cluster, template: Database) -> Iterator[Database]:
    """A migrated database with two tenants, for all tests of this module."""
    with cluster.database(template.name) as database:
        with psycopg.connect(database.admin_url) as admin:
            admin.execute("INSERT INTO tenants (id, name) VALUES (%s, 'Acme'), (%s, 'Globex')", [A, B])
        yield database


@pytest.fixture
def database(clone: Database) -> Iterator[Database]:
    """The database without any row but its tenants, behind a pool of two connections: threads must share them."""
    with psycopg.connect(clone.admin_url, autocommit=True) as admin:
        admin.execute("TRUNCATE attribution_events, worker_failed_jobs CASCADE")
    session.configure(
        clone.worker_url, operator_database_url=clone.operator_url, pool_size=2, max_overflow=0, pool_timeout=60
    )
    try:
        yield clone
    finally:
        session.dispose()


@pytest.fixture
def site(database: Database, redis_url: str) -> Iterator[Site]:
    """A broker on the test's own servers."""
    # What is tried here fails on purpose, and Dramatiq would show every traceback.
    logging.getLogger("dramatiq").setLevel(logging.CRITICAL + 1)
    site = Site(
        Settings.load({**database.environment(), "REDIS_URL": redis_url, "MIN_BACKOFF": "10", "MAX_BACKOFF": "20"})
    )
    yield site
    site.broker.close()
    site.broker.client.close()
    logging.getLogger("dramatiq").setLevel(logging.NOTSET)


def check_in_postgres() -> int:
    """Let Postgres say whose transaction this is; return the connection."""
    tenancy = current_tenancy()
    assert tenancy is not None
    with transaction() as s:
        tenant, correlation, strange, pid = s.execute(LOOK, {"mine": tenancy.tenant_id}).one()
    assert (tenant, correlation, strange) == (str(tenancy.tenant_id), str(tenancy.correlation_id), 0)
    return int(pid)


# --- Two tenants at once --------------------------------------------------------------------------


def test_no_row_crosses_between_interleaved_tenants(site: Site, database: Database) -> None:
    jobs = 2_000
    lock = threading.Lock()
    ran: Counter[str] = Counter()
    threads: defaultdict[int, set[str]] = defaultdict(set)
    connections: defaultdict[int, set[str]] = defaultdict(set)

    def job(mine: str, n: str) -> None:
        with transaction() as s:
            s.execute(INSERT, {"mine": mine, "n": n})
            tenant, _, strange, pid = s.execute(LOOK, {"mine": UUID(mine)}).one()
        with lock:
            ran[n] += 1
            threads[threading.get_ident()].add(tenant)
            connections[pid].add(tenant)
        assert (tenant, strange) == (mine, 0)

    actor = site.actor(job)
    for n in range(jobs):
        tenant = (A, B)[n % 2]
        with tenant_context(tenant):
            actor.send(str(tenant), str(n))
    with site.working(threads=8):
        pass

    assert site.failures == []
    assert ran == Counter({str(n): 1 for n in range(jobs)})
    with psycopg.connect(database.admin_url) as admin:
        rows = admin.execute("SELECT tenant_id, event_id FROM attribution_events").fetchall()
    assert {(tenant, int(n)) for tenant, n in rows} == {((A, B)[n % 2], n) for n in range(jobs)}
    # They did meet, on every thread and on every connection.
    both = {str(A), str(B)}
    assert len(threads) == 8
    assert len(connections) == 2
    assert all(tenants == both for tenants in (*threads.values(), *connections.values()))
    site.assert_nothing_left(before_process_message=jobs, after_process_message=jobs, before_ack=jobs, after_ack=jobs)


def test_no_row_crosses_between_interleaved_async_tenants(site: Site, database: Database) -> None:
    jobs = 200
    ran: Counter[str] = Counter()
    connections: defaultdict[int, set[str]] = defaultdict(set)
    engines: set[AsyncEngine] = set()

    # All run on the one thread of the event loop, so nothing needs a lock.
    async def job(mine: str, n: str) -> None:
        async with transaction() as s:
            await s.execute(INSERT, {"mine": mine, "n": n})
            tenant, _, strange, pid = (await s.execute(LOOK, {"mine": UUID(mine)})).one()
            assert isinstance(s.bind, AsyncEngine)
            engines.add(s.bind)
        ran[n] += 1
        connections[pid].add(tenant)
        assert (tenant, strange) == (mine, 0)

    actor = site.actor(job)
    for n in range(jobs):
        tenant = (A, B)[n % 2]
        with tenant_context(tenant):
            actor.send(str(tenant), str(n))
    with site.working(threads=8):
        site.broker.join(QUEUE, timeout=PATIENCE)
        loop = get_event_loop_thread()
        assert loop is not None
        loop.run_coroutine(engines.pop().dispose())

    assert site.failures == []
    assert ran == Counter({str(n): 1 for n in range(jobs)})
    assert len(connections) == 2
    assert all(tenants == {str(A), str(B)} for tenants in connections.values())
    site.assert_nothing_left(after_ack=jobs)


# --- Bound, and gone afterwards -------------------------------------------------------------------


def test_a_skipped_message_leaves_nothing(site: Site) -> None:
    notes = Notes()

    def skip(_: dramatiq.Broker, message: MessageProxy) -> None:
        notes.take(message.args[0])
        if message.args[0] == "skipped":
            raise SkipMessage("not today")

    skips = Middleware()
    skips.before_process_message = skip  # type: ignore[method-assign,assignment]
    site.broker.add_middleware(skips)
    actor = site.actor(lambda what: notes.take(f"ran {what}"), actor_name="job")
    with tenant_context(A):
        actor.send("skipped")
    with tenant_context(B):
        actor.send("next")
    with site.working():
        pass
    assert notes.tenants() == [("skipped", A), ("next", B), ("ran next", B)]
    # What was skipped has not succeeded, so it is rejected.
    site.assert_nothing_left(after_skip_message=1, after_process_message=1, after_ack=1, after_nack=1)


def test_an_expired_message_is_its_tenants_and_leaves_nothing(site: Site, database: Database) -> None:
    notes = Notes()
    actor = site.actor(notes.take, actor_name="job", max_age=3_600_000)
    correlation = uuid4()
    with tenant_context(A, correlation):
        site.broker.enqueue(actor.message("expired").copy(message_timestamp=1))
    with tenant_context(B):
        actor.send("next")
    with site.working():
        pass
    assert notes.tenants() == [("next", B)]
    assert [(f.error_type, f.tenant_id, f.correlation_id) for f in site.failures] == [("expired", A, correlation)]
    site.assert_nothing_left(after_nack=1, after_ack=1)
    with tenant_context(A), transaction() as s:
        assert s.scalar(text("SELECT error_type FROM worker_failed_jobs")) == "expired"


def test_each_run_of_a_retried_message_has_the_tenant(site: Site) -> None:
    notes = Notes()

    def job(what: str) -> None:
        notes.take(what)
        check_in_postgres()
        if what == "retried" and len([w for w, _ in notes.seen if w == what]) < 3:
            raise RuntimeError("once more")

    actor = site.actor(job, max_retries=5)
    correlation = uuid4()
    with tenant_context(A, correlation):
        actor.send("retried")
    with tenant_context(B, correlation):
        actor.send("other")
    with site.working():
        pass
    assert Counter(notes.tenants()) == {("retried", A): 3, ("other", B): 1}
    assert notes.correlations() == {correlation}
    assert site.failures == []
    site.assert_nothing_left(after_process_message=4)


def test_the_row_of_a_message_out_of_retries_is_its_tenants(site: Site) -> None:
    def job() -> None:
        raise RuntimeError("no")

    actor = site.actor(job, max_retries=1)
    correlations = {A: uuid4(), B: uuid4()}
    for tenant, correlation in correlations.items():
        with tenant_context(tenant, correlation):
            actor.send()
    with site.working():
        pass
    for tenant, correlation in correlations.items():
        with tenant_context(tenant), transaction() as s:
            rows = s.execute(text("SELECT tenant_id, correlation_id, retry_count FROM worker_failed_jobs")).all()
        assert rows == [(tenant, correlation, 1)]
    site.assert_nothing_left(after_process_message=4, after_nack=2)


def test_a_time_limit_leaves_nothing(site: Site) -> None:
    notes = Notes()

    def job(what: str) -> None:
        notes.take(what)
        while what == "endless":
            time.sleep(0.01)

    actor = site.actor(job, time_limit=100)
    with tenant_context(A):
        actor.send("endless")
    with tenant_context(B):
        actor.send_with_options(args=("next",), time_limit=60_000)
    with site.working():
        pass
    assert notes.tenants() == [("endless", A), ("next", B)]
    assert [(f.error_type, f.tenant_id) for f in site.failures] == [("timeout", A)]
    site.assert_nothing_left(after_process_message=2, after_nack=1, after_ack=1)


@pytest.mark.parametrize(
    ("hook", "error"),
    [
        *((hook, RuntimeError) for hook in HOOKS if hook != "after_skip_message"),
        # In before_ack and before_nack it would keep the message from ending while this worker runs.
        *((hook, MiddlewareError) for hook in ("before_process_message", "after_process_message", "after_ack")),
    ],
)
@pytest.mark.parametrize("place", ["outside", "inside"])
def test_an_error_in_anothers_hook_leaves_nothing(site: Site, hook: str, place: str, error: type[Exception]) -> None:
    raised: list[str] = []

    def raises(*_: object, **__: object) -> None:
        raised.append(hook)
        raise error("not my day")

    broken = Middleware()
    setattr(broken, hook, raises)
    if place == "outside":
        site.broker.add_middleware(broken, before=TenantContext)
    else:
        site.broker.add_middleware(broken)
    notes = Notes()

    def job(what: str) -> None:
        notes.take(what)
        check_in_postgres()
        if hook.endswith("nack"):
            raise ValueError("no")

    actor = site.actor(job)
    for tenant in (A, B):
        with tenant_context(tenant):
            actor.send(str(tenant))
    with site.working():
        pass
    assert len(raised) >= 2
    never_run = hook == "before_process_message" and error is MiddlewareError
    assert notes.tenants() == ([] if never_run else [(str(A), A), (str(B), B)])
    assert all(f.tenant_id in (A, B) for f in site.failures)
    site.assert_nothing_left(before_process_message=2, after_process_message=2)


def test_a_pipeline_hands_its_tenant_on(site: Site) -> None:
    notes = Notes()

    def first(n: int) -> int:
        notes.take("first")
        return n + 1

    def second(n: int) -> int:
        notes.take(f"second {n}")
        check_in_postgres()
        return n + 1

    one, two = site.actor(first), site.actor(second)
    correlation = uuid4()
    with tenant_context(A, correlation):
        dramatiq.pipeline([one.message(1), two.message(), two.message()], broker=site.broker).run()
    with site.working():
        pass
    assert notes.tenants() == [("first", A), ("second 2", A), ("second 3", A)]
    assert notes.correlations() == {correlation}
    site.assert_nothing_left(after_ack=3)


def test_a_child_inherits_tenant_and_correlation(site: Site) -> None:
    notes = Notes()

    def child(n: int) -> None:
        notes.take(f"child {n}")
        check_in_postgres()
        if n:
            children.send(n - 1)

    def parent() -> None:
        notes.take("parent")
        children.send(1)

    children = site.actor(child)
    parents = site.actor(parent)
    with tenant_context(A):
        message = parents.send()
    with site.working():
        pass
    assert notes.tenants() == [("parent", A), ("child 1", A), ("child 0", A)]
    # Nobody named one, so it is the id of the message that began it all.
    assert notes.correlations() == {UUID(message.message_id)}
    site.assert_nothing_left(after_ack=3)


def test_a_delayed_message_keeps_its_tenant(site: Site) -> None:
    notes = Notes()

    def job(what: str) -> None:
        notes.take(what)
        check_in_postgres()

    actor = site.actor(job)
    correlation = uuid4()
    for tenant in (A, B):
        with tenant_context(tenant, correlation):
            actor.send_with_options(args=(str(tenant),), delay=100)
    with site.working():
        pass
    assert sorted(notes.tenants(), key=str) == [(str(A), A), (str(B), B)]
    assert notes.correlations() == {correlation}
    # Twice each: in the thread of the delay queue, and in the worker's.
    site.assert_nothing_left(before_process_message=2, after_ack=4)


def test_an_async_actor_and_its_retry_have_the_tenant(site: Site) -> None:
    notes = Notes()
    engines: set[AsyncEngine] = set()

    async def job(what: str) -> None:
        notes.take(what)
        async with transaction() as s:
            assert isinstance(s.bind, AsyncEngine)
            engines.add(s.bind)
            tenancy = current_tenancy()
            assert tenancy is not None
            tenant, *_ = (await s.execute(LOOK, {"mine": tenancy.tenant_id})).one()
            assert tenant == str(tenancy.tenant_id)
        if len(notes.seen) == 1:
            raise RuntimeError("once more")

    actor = site.actor(job, max_retries=3)
    with tenant_context(A):
        actor.send("a")
    with tenant_context(B):
        actor.send("b")
    with site.working():
        site.broker.join(QUEUE, timeout=PATIENCE)
        loop = get_event_loop_thread()
        assert loop is not None
        loop.run_coroutine(engines.pop().dispose())
    # Which of the two came first does not matter.
    assert sorted(set(notes.tenants())) == [("a", A), ("b", B)]
    assert len(notes.seen) == 3
    assert site.failures == []
    site.assert_nothing_left(after_process_message=3)


def test_an_actor_without_a_tenant_has_none_whoever_came_before(site: Site) -> None:
    notes = Notes()
    tenants: list[object] = []

    def unscoped() -> None:
        notes.take("unscoped")
        with operator_transaction() as s:
            tenants.extend(s.scalars(text("SELECT tenant_id FROM attribution_events")))

    def scoped() -> None:
        notes.take("scoped")
        tenancy = current_tenancy()
        assert tenancy is not None
        with transaction() as s:
            s.execute(INSERT, {"mine": tenancy.tenant_id, "n": "1"})

    for_all = site.actor(unscoped, tenant_scoped=False)
    for_one = site.actor(scoped)
    with tenant_context(A):
        for_one.send()
    with tenant_context(B):
        for_one.send()
    for_all.send()
    with site.working():
        pass
    assert notes.tenants() == [("scoped", A), ("scoped", B), ("unscoped", None)]
    assert set(tenants) == {A, B}
    site.assert_nothing_left(after_ack=3)


@pytest.mark.parametrize("options", [{}, {"tenant_id": None}, {"tenant_id": "nonsense"}, {"tenant_id": 7}])
def test_a_message_without_a_valid_tenant_never_runs(site: Site, redis_url: str, options: dict[str, Any]) -> None:
    notes = Notes()
    actor = site.actor(notes.take, actor_name="job")
    # Another's producer, which knows nothing of tenants.
    with redis.Redis.from_url(redis_url) as client:
        stock = RedisBroker(client=client, middleware=[])
        stock.declare_queue(QUEUE)
        with tenant_context(A):
            actor.send("before")
        stock.enqueue(Message(QUEUE, "job", ("nobody's",), {}, options))
        with tenant_context(B):
            actor.send("after")
        with site.working():
            pass
        stock.close()
    assert notes.tenants() == [("before", A), ("after", B)]
    assert [(f.error_type, f.tenant_id) for f in site.failures] == [("tenant_error", None)]
    site.assert_nothing_left(after_nack=1, after_ack=2)


# --- A statement that outlives its job ------------------------------------------------------------


def test_postgres_ends_the_statement_of_a_job_past_its_limit(site: Site, database: Database) -> None:
    took: list[float] = []

    def job() -> None:
        began = time.monotonic()
        try:
            with transaction() as s:
                s.execute(text("SELECT pg_sleep(60)"))
        finally:
            took.append(time.monotonic() - began)

    actor = site.actor(job, time_limit=1_000)
    with tenant_context(A):
        actor.send()
    with site.working():
        pass
    assert len(took) == 1
    assert 0.9 < took[0] < 4
    assert [(f.error_type, f.tenant_id) for f in site.failures] == [("timeout", A)]
    site.assert_nothing_left(after_nack=1)
    with psycopg.connect(database.admin_url) as admin:
        running = admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)%' AND state = 'active'"
        ).fetchall()
    assert running == []
    # The thread, and the connection, work on.
    with tenant_context(A), transaction() as s:
        assert s.scalar(text("SELECT error_type FROM worker_failed_jobs")) == "timeout"
