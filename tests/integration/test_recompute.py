from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from threading import Barrier, Event, Thread
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import ConfigurationError
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.servers import Database
from worker.recompute import Model, Recomputed, Window, parse_window, recompute
from worker.tenants import add_tenant

START = datetime(2025, 1, 1, tzinfo=UTC)
WINDOW = Window(START, datetime(2025, 3, 1, tzinfo=UTC))
MOST = 2**63 - 1


@dataclass(frozen=True)
class Touch:
    """A touch; ``day`` counts from the start of the window."""

    id: str
    day: float = 0
    visitor: str = "v"
    channel: str = "ads"

    @property
    def at(self) -> datetime:
        return START + timedelta(days=self.day)


@dataclass(frozen=True)
class Sale:
    """A conversion."""

    id: str
    cents: int
    day: float = 50
    visitor: str = "v"

    @property
    def at(self) -> datetime:
        return START + timedelta(days=self.day)


Row = tuple[str, int, str | None, str, int]


def insert(session: Session, tenant: UUID, events: Iterable[Touch | Sale]) -> None:
    values = [
        {
            "tenant": tenant,
            "id": event.id,
            "type": "touch" if isinstance(event, Touch) else "conversion",
            "visitor": event.visitor,
            "channel": event.channel if isinstance(event, Touch) else None,
            "cents": event.cents if isinstance(event, Sale) else None,
            "at": event.at,
        }
        for event in events
    ]
    if values:
        session.execute(
            text("INSERT INTO attribution_events VALUES (:tenant, :id, :type, :visitor, :channel, :cents, :at)"),
            values,
        )


def allocations(session: Session, job_id: UUID) -> list[Row]:
    found = session.execute(
        text(
            """
            SELECT conversion_id, position, touch_id, channel, allocated_cents FROM attribution_allocations
            WHERE job_id = :job_id ORDER BY conversion_id COLLATE "C", position
            """
        ),
        {"job_id": job_id},
    )
    return [(c, p, t, channel, cents) for c, p, t, channel, cents in found]


def new_tenant() -> UUID:
    with operator_transaction() as session:
        return add_tenant(session, "Alpha")


def run(tenant: UUID, model: Model, window: Window = WINDOW, version: str = "1") -> tuple[Recomputed, list[Row]]:
    with tenant_context(tenant), transaction() as session:
        done = recompute(session, tenant, window, model, version)
        return done, allocations(session, done.job_id)


def given_events(*events: Touch | Sale) -> UUID:
    tenant = new_tenant()
    with tenant_context(tenant), transaction() as session:
        insert(session, tenant, events)
    return tenant


# --- The same, in Python --------------------------------------------------------------------------


def weights(model: Model, sale: Sale, touches: list[Touch]) -> list[int]:
    n = len(touches)
    if model is Model.FIRST_TOUCH:
        return [1] + [0] * (n - 1)
    if model is Model.LAST_TOUCH:
        return [0] * (n - 1) + [1]
    if model is Model.TIME_DECAY:
        return [decay(sale.at - touch.at) for touch in touches]
    if model is Model.LINEAR or n < 3:
        return [1] * n
    return [2 * (n - 2), *[1] * (n - 2), 2 * (n - 2)]


def decay(age: timedelta) -> int:
    return max(1, math.floor(math.pow(2.0, 30 - min(30.0, age.total_seconds() / 604800))))


def expected(model: Model, events: Iterable[Touch | Sale], window: Window = WINDOW) -> list[Row]:
    inside = [event for event in events if window.start <= event.at < window.end]
    touches = defaultdict[str, list[Touch]](list)
    for event in sorted(inside, key=lambda e: (e.at, e.id.encode())):
        if isinstance(event, Touch):
            touches[event.visitor].append(event)
    rows: list[Row] = []
    for sale in inside:
        if not isinstance(sale, Sale):
            continue
        before = [t for t in touches[sale.visitor] if t.at <= sale.at]
        if not before:
            rows.append((sale.id, 0, None, "direct", sale.cents))
            continue
        shares = weights(model, sale, before)
        quotas = [Fraction(sale.cents * weight, sum(shares)) for weight in shares]
        cents = [math.floor(quota) for quota in quotas]
        by_remainder = sorted(range(len(cents)), key=lambda i: (cents[i] - quotas[i], i))
        for i in by_remainder[: sale.cents - sum(cents)]:
            cents[i] += 1
        rows.extend(
            (sale.id, i + 1, touch.id, touch.channel, cents[i]) for i, touch in enumerate(before) if shares[i] > 0
        )
    return sorted(rows, key=lambda row: (row[0].encode(), row[1]))


# --- By hand --------------------------------------------------------------------------------------


# Ages at the conversion: 14, 7, 7 and 0 days.
PATH = (Touch("a", 36, channel="ads"), Touch("b", 43, channel="mail"), Touch("c", 43), Touch("d", 50))


@pytest.mark.parametrize(
    ("model", "cents"),
    [
        (Model.FIRST_TOUCH, {1: 1003}),
        (Model.LAST_TOUCH, {4: 1003}),
        # 250.75 each: three cents are left over for the first three.
        (Model.LINEAR, {1: 251, 2: 251, 3: 251, 4: 250}),
        # Weights 1, 2, 2, 4 of 9: 111.44, 222.89, 222.89, 445.78; three cents are left over, for all but the first.
        (Model.TIME_DECAY, {1: 111, 2: 223, 3: 223, 4: 446}),
        # Weights 4, 1, 1, 4 of 10: 401.2, 100.3, 100.3, 401.2; one cent goes to position 2.
        (Model.POSITION_BASED, {1: 401, 2: 101, 3: 100, 4: 401}),
    ],
)
def test_a_worked_example(database: Database, model: Model, cents: dict[int, int]) -> None:
    events: list[Touch | Sale] = [*PATH, Sale("s", 1003)]
    done, rows = run(given_events(*events), model)
    assert {position: share for _, position, _, _, share in rows} == cents
    assert [(t, c) for _, p, t, c, _ in rows] == [(PATH[p - 1].id, PATH[p - 1].channel) for p in sorted(cents)]
    assert (done.run_count, done.conversions, done.allocations, done.revenue_cents) == (1, 1, len(cents), 1003)
    assert rows == expected(model, events)


def test_short_paths_of_the_position_model(database: Database) -> None:
    tenant = given_events(
        Touch("a", 1, "one"), Sale("s1", 7, 2, "one"),
        Touch("b", 1, "two"), Touch("c", 2, "two"), Sale("s2", 7, 3, "two"),
        Touch("d", 1, "three"), Touch("e", 2, "three"), Touch("f", 3, "three"), Sale("s3", 10, 4, "three"),
    )  # fmt: skip
    _, rows = run(tenant, Model.POSITION_BASED)
    assert [(row[2], row[4]) for row in rows] == [("a", 7), ("b", 4), ("c", 3), ("d", 4), ("e", 2), ("f", 4)]


@pytest.mark.parametrize("model", Model)
def test_what_counts(database: Database, model: Model) -> None:
    end = 59
    tenant = given_events(
        # No touch before it: one of another visitor, one later, one before the window.
        Sale("alone", 500, 10, "alone"), Touch("later", 10.001, "alone"), Touch("early", -0.001, "alone"),
        # The window holds its start and not its end.
        Touch("first", 0, "edge"), Sale("edge", 3, 0, "edge"), Sale("after", 9, end, "edge"),
        # At the same time counts as before, whatever the ids.
        Touch("z", 5, "same"), Sale("a", 11, 5, "same"),
    )  # fmt: skip
    done, rows = run(tenant, model)
    assert rows == [
        ("a", 1, "z", "ads", 11), ("alone", 0, None, "direct", 500), ("edge", 1, "first", "ads", 3)
    ]  # fmt: skip
    assert (done.conversions, done.allocations, done.revenue_cents) == (3, 3, 514)


def test_an_empty_window(database: Database) -> None:
    done, rows = run(new_tenant(), Model.LINEAR)
    assert rows == []
    assert (done.conversions, done.allocations, done.revenue_cents) == (0, 0, 0)


def test_touches_at_the_same_time_are_ordered_by_the_bytes_of_their_ids(database: Database) -> None:
    ids = ["b", "B", "a", "ä", "_", "10", "9"]
    tenant = given_events(*[Touch(i, 1) for i in ids], Sale("s", 3))
    _, rows = run(tenant, Model.LINEAR)
    assert [row[2] for row in rows] == ["10", "9", "B", "_", "a", "b", "ä"]
    assert [row[4] for row in rows] == [1, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("model", Model)
def test_the_largest_revenue_adds_up(database: Database, model: Model) -> None:
    touches = [Touch(f"t{i:02}", i * 3.7) for i in range(13)]
    events: list[Touch | Sale] = [*touches, Sale("s", MOST)]
    done, rows = run(given_events(*events), model)
    assert sum(row[4] for row in rows) == done.revenue_cents == MOST
    assert rows == expected(model, events)


def test_more_revenue_than_a_bigint_holds_is_an_error_that_names_the_window(database: Database) -> None:
    tenant = given_events(Sale("a", MOST), Sale("b", 1))
    with pytest.raises(ValueError, match=rf"^window_start 2025-01-01T.*adds up to {MOST + 1} cents"):
        run(tenant, Model.LINEAR)


def test_windows_reach_from_year_1_to_year_9999(database: Database) -> None:
    """With touches so old that 2^-age is no floating point number, in a session that is not in UTC."""
    events: list[Touch | Sale] = [
        Touch("old", (datetime(1, 1, 1, tzinfo=UTC) - START) / timedelta(days=1)),
        Touch("new", 1),
        Sale("s", 5, (datetime(9999, 12, 30, tzinfo=UTC) - START) / timedelta(days=1)),
    ]
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        admin.execute(f"ALTER DATABASE {database.name} SET timezone = 'Pacific/Auckland'")
    window = parse_window("0001-01-01", "9999-12-31")
    _, rows = run(given_events(*events), Model.TIME_DECAY, window)
    assert rows == [("s", 1, "old", "ads", 3), ("s", 2, "new", "ads", 2)]


# --- Running it again -----------------------------------------------------------------------------


def test_a_re_run_writes_the_same_rows(database: Database) -> None:
    tenant, correlation = given_events(*PATH, Sale("s", 1003)), uuid4()
    first, rows = run(tenant, Model.LINEAR)
    with tenant_context(tenant, correlation):
        second, again = run(tenant, Model.LINEAR)
    assert again == rows
    assert second == replace(first, run_count=2)
    with psycopg.connect(database.admin_url) as admin:
        assert admin.execute(
            "SELECT id, run_count, conversions, allocations, revenue_cents, correlation_id, model, model_version,"
            " last_run_at > first_run_at FROM attribution_recompute_jobs"
        ).fetchall() == [(first.job_id, 2, 1, 4, 1003, correlation, "linear", "1", True)]
        assert admin.execute("SELECT count(*) FROM attribution_allocations").fetchone() == (4,)


def test_a_re_run_takes_up_what_changed_and_leaves_other_jobs_alone(database: Database) -> None:
    tenant = given_events(*PATH[:2], Sale("s", 1003))
    first, _ = run(tenant, Model.LINEAR)
    others = [
        run(tenant, Model.FIRST_TOUCH),
        run(tenant, Model.LINEAR, version="2"),
        run(tenant, Model.LINEAR, Window(WINDOW.start, WINDOW.end + timedelta(days=1))),
    ]
    with tenant_context(tenant), transaction() as session:
        insert(session, tenant, PATH[2:])
    again, rows = run(tenant, Model.LINEAR)
    assert (again.job_id, again.run_count, len(rows)) == (first.job_id, 2, 4)
    assert len({first.job_id, *(done.job_id for done, _ in others)}) == 4
    with tenant_context(tenant), transaction() as session:
        assert [allocations(session, done.job_id) for done, _ in others] == [rows for _, rows in others]


def test_the_order_in_which_events_came_does_not_matter(database: Database) -> None:
    events: list[Touch | Sale] = [*PATH, Sale("s", 1003), Sale("u", 7, 44), Sale("w", 1, 1, "w")]
    for model in Model:
        assert run(given_events(*events), model)[1] == run(given_events(*events[::-1]), model)[1]


def test_settings_of_the_transaction_are_as_before(database: Database) -> None:
    tenant = given_events(*PATH, Sale("s", 1003))
    with tenant_context(tenant), transaction() as session:
        recompute(session, tenant, WINDOW, Model.LINEAR, "1")
        for name in ("enable_nestloop", "enable_hashjoin"):
            assert session.execute(text(f"SHOW {name}")).scalar() == "on"


# --- Against the reference ------------------------------------------------------------------------

_DAYS = st.integers(-1, 60).map(float) | st.floats(-1, 60).map(lambda d: round(d, 3))
_VISITORS = st.sampled_from(["v", "w", "V"])
_CENTS = st.integers(0, 20) | st.integers(0, 10**6) | st.integers(MOST // 8 - 100, MOST // 8)


@st.composite
def _paths(draw: st.DrawFn) -> list[Touch | Sale]:
    channels = st.sampled_from(["ads", "mail", "direct"])
    touches = draw(st.lists(st.tuples(_DAYS, _VISITORS, channels), max_size=12))
    sales = draw(st.lists(st.tuples(_CENTS, _DAYS, _VISITORS), max_size=6))
    ids = draw(st.permutations([f"{'xX_é'[i % 4]}{i}" for i in range(len(touches) + len(sales))]))
    events: list[Touch | Sale] = [Touch(i, *touch) for i, touch in zip(ids, touches, strict=False)]
    return draw(st.permutations(events + [Sale(i, *sale) for i, sale in zip(ids[len(touches) :], sales, strict=True)]))


def test_every_model_agrees_with_the_reference(database: Database) -> None:
    tenant = new_tenant()

    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(_paths())
    def agrees(events: list[Touch | Sale]) -> None:
        savepoint = session.begin_nested()
        insert(session, tenant, events)
        for model in Model:
            done = recompute(session, tenant, WINDOW, model, "1")
            rows = allocations(session, done.job_id)
            assert rows == expected(model, events), model
            inside = {e.id: e.cents for e in events if isinstance(e, Sale) and WINDOW.start <= e.at < WINDOW.end}
            shared = defaultdict[str, int](int)
            for conversion, _, _, _, cents in rows:
                assert cents >= 0
                shared[conversion] += cents
            assert shared == inside
            assert (done.conversions, done.allocations) == (len(inside), len(rows))
            assert done.revenue_cents == sum(inside.values())
            again = recompute(session, tenant, WINDOW, model, "1")
            assert again == replace(done, run_count=2)
            assert allocations(session, again.job_id) == rows
        savepoint.rollback()

    with tenant_context(tenant), transaction() as session:
        agrees()


def test_a_long_path_agrees_with_the_reference(database: Database) -> None:
    """More touches than sort in memory one by one, several conversions on one path, and next to no statistics."""
    events: list[Touch | Sale] = [Touch(f"t{i}", (i * 37 % 1000) / 20, channel=f"c{i % 7}") for i in range(1000)]
    events += [Sale(f"s{i}", 10**i + i, i * 4) for i in range(14)]
    tenant = given_events(*events)
    for model in Model:
        assert run(tenant, model)[1] == expected(model, events)


# --- Tenants and errors ---------------------------------------------------------------------------


def test_events_of_another_tenant_are_never_used(database: Database) -> None:
    mine, theirs = given_events(Sale("s", 10)), given_events(*PATH, Sale("s", 1003))
    done, rows = run(mine, Model.LINEAR)
    assert rows == [("s", 0, None, "direct", 10)]
    assert run(theirs, Model.LINEAR)[0].job_id != done.job_id
    assert run(mine, Model.LINEAR)[1] == rows


def test_an_unknown_tenant_is_named(database: Database) -> None:
    nobody, somebody = uuid4(), new_tenant()
    with pytest.raises(ValueError, match=rf"^tenant_id: no tenant {nobody}$"):
        run(nobody, Model.LINEAR)
    with (
        pytest.raises(ValueError, match=rf"^tenant_id: no tenant {somebody}$"),
        tenant_context(new_tenant()),
        transaction() as session,
    ):
        recompute(session, somebody, WINDOW, Model.LINEAR, "1")


def test_a_bad_model_version_is_named(database: Database) -> None:
    with pytest.raises(ValueError, match=r"^model_version: must not be empty"):
        run(new_tenant(), Model.LINEAR, version="")


def test_tables_of_another_shape_are_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    tenant = new_tenant()
    changes = [
        ("events", "RENAME visitor_id TO person", "RENAME person TO visitor_id", "has no column visitor_id"),
        ("recompute_jobs", "RENAME model TO m", "RENAME m TO model", "has no column model"),
        ("channel_days", "RENAME day TO d", "RENAME d TO day", "has no column day"),
        ("allocations", "RENAME position TO p", "RENAME p TO position", "has no column position"),
        (
            "allocations",
            "ALTER allocated_cents TYPE numeric",
            "ALTER allocated_cents TYPE bigint",
            "column allocated_cents is of type numeric, not bigint",
        ),
        ("allocations", "ADD more text NOT NULL", "DROP more", "needs a value for more"),
        ("allocations", "RENAME TO elsewhere", None, "there is no table attribution_allocations: run"),
    ]
    with psycopg.connect(database.owner_url, autocommit=True) as owner:
        for table, change, back, message in changes:
            # What was found good is not looked at again, in this process, whoever looked.
            monkeypatch.setattr("worker.table_shapes._checked", {})
            owner.execute(f"ALTER TABLE attribution_{table} {change}")
            with pytest.raises(ConfigurationError, match=message) as caught:
                run(tenant, Model.LINEAR)
            assert f"table attribution_{table}" in str(caught.value)
            if back:
                owner.execute(f"ALTER TABLE attribution_{table} {back}")
        owner.execute("ALTER TABLE elsewhere RENAME TO attribution_allocations")
    # A failure is not remembered.
    assert run(tenant, Model.LINEAR)[0].run_count == 1


# --- At the same time -----------------------------------------------------------------------------


def wait_for_lock(database: Database, waiting: int = 1, seconds: float = 30) -> None:
    """Return once that many of the database's sessions wait for a lock."""
    end = time.monotonic() + seconds
    with psycopg.connect(database.admin_url, autocommit=True) as admin:
        while time.monotonic() < end:
            found = admin.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'",
                [database.name],
            ).fetchone()
            if found == (waiting,):
                return
    raise AssertionError(f"{waiting} sessions were to wait for a lock")


@pytest.mark.parametrize("known", [False, True], ids=["first run", "re-run"])
def test_a_second_recompute_of_the_same_window_waits_for_the_first(database: Database, known: bool) -> None:
    tenant = given_events(*PATH, Sale("s", 1003))
    if known:
        run(tenant, Model.LINEAR)
    started, go_on = Event(), Event()
    results: list[Recomputed] = []

    def first() -> None:
        with tenant_context(tenant), transaction() as session:
            results.append(recompute(session, tenant, WINDOW, Model.LINEAR, "1"))
            started.set()
            assert go_on.wait(60)

    def second() -> None:
        results.append(run(tenant, Model.LINEAR)[0])

    threads = [Thread(target=first), Thread(target=second)]
    threads[0].start()
    try:
        assert started.wait(60)
        threads[1].start()
        wait_for_lock(database)
        # Others do not wait.
        assert run(tenant, Model.LAST_TOUCH)[0].run_count == 1
        assert len(results) == 1
    finally:
        go_on.set()
        for thread in threads:
            if thread.ident:
                thread.join(60)
    base = int(known)
    assert [result.run_count for result in results] == [base + 1, base + 2]
    assert len({result.job_id for result in results}) == 1
    with tenant_context(tenant), transaction() as session:
        assert allocations(session, results[0].job_id) == expected(Model.LINEAR, [*PATH, Sale("s", 1003)])


def test_many_recomputes_at_once(database: Database) -> None:
    events: list[Touch | Sale] = [*PATH, Sale("s", 1003), Sale("u", 7, 44)]
    tenant = given_events(*events)
    barrier, results = Barrier(4), list[Recomputed]()

    def repeat() -> None:
        for _ in range(5):
            barrier.wait(60)
            results.append(run(tenant, Model.TIME_DECAY)[0])

    threads = [Thread(target=repeat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(result.run_count for result in results) == list(range(1, 21))
    with tenant_context(tenant), transaction() as session:
        assert allocations(session, results[0].job_id) == expected(Model.TIME_DECAY, events)
