"""Finding and understanding failures: milliseconds of each search at 10,000 and at 1,000,000 rows, and how they grow.

As the operator, as the tenant of a fifth of all rows and as a small one, each through its own role, so under row-level
security. ``python -m tests.benchmarks.understanding``; ``--explain`` prints the plans, ``--cost`` measures instead what
indexes and triggers cost whoever records a failure, ``--keep FOLDER`` keeps the data for the next time (8 GB; they take
minutes to load). Buffers are the pages of 8 kB that were looked at: they tell cost from what else the machine did.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from db import session
from db.failed import (
    Filter,
    audit,
    chain,
    count,
    failures_by_tenant,
    failures_per_minute,
    find,
    find_groups,
    get,
    history,
    ids_beginning,
    stats,
)
from db.tenancy import tenant_context
from tests.benchmarks import failed_jobs_cost
from tests.benchmarks.failed_jobs_data import BIG, SMALL, TEXTS, loaded, shapes
from tests.servers import Database

ROWS = (10_000, 1_000_000)
ROUNDS, SECONDS = 20, 5.0
PAGE, DEEP = 50, 1_000

#: Milliseconds, by the first word of a case.
TARGETS = {"page": 50.0, "text": 500.0, "groups": 300.0, "stats": 300.0, "rates": 60.0, "tenants": 100.0}

#: Does it, and returns what it found.
Search = Callable[[Session], Sized]


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one case."""

    found: int
    milliseconds: list[float]
    buffers: int

    @property
    def median(self) -> float:
        """Half were as fast."""
        return median(self.milliseconds)

    @property
    def p95(self) -> float:
        """One of twenty was slower."""
        return quantiles(self.milliseconds, n=20)[-1] if len(self.milliseconds) > 1 else self.milliseconds[0]


def filters(now: datetime) -> dict[str, Filter]:
    """Return what pages are asked for."""
    known = shapes()
    common, rare = known[0], known[124]
    seldom = next(shape for shape in known[300:] if shape.error_type == "timeout")
    other = next(shape for shape in known if shape.queue != common.queue)
    day = now - timedelta(days=1)
    return {
        "everything": Filter(),
        "status pending": Filter(status=("pending",)),
        "status in_progress": Filter(status=("in_progress",)),
        "queue": Filter(queue=(common.queue,)),
        "actor": Filter(actor=(seldom.task_name,)),
        "actor, short name": Filter(actor=(seldom.task_name.rpartition(".")[2],)),
        "tenant, big": Filter(tenant_id=(BIG,)),
        "tenant, small": Filter(tenant_id=(SMALL,)),
        "error type, common": Filter(error_type=("database_error",)),
        "error type, rare": Filter(error_type=(rare.error_type,)),
        "exception, common": Filter(exception=(common.exception_class,)),
        "exception, rare": Filter(exception=(rare.exception_class,)),
        "fingerprint, common": Filter(fingerprint=(common.fingerprint,)),
        "fingerprint, rare": Filter(fingerprint=(rare.fingerprint[:8],)),
        "since 2h": Filter(since=now - timedelta(hours=2)),
        "until 60 days ago": Filter(until=now - timedelta(days=60)),
        "correlation id": Filter(correlation_id=_uuid("work 777")),
        "ids": Filter(ids=tuple(_uuid(f"row {n}") for n in range(100, 120))),
        "pending + queue": Filter(status=("pending",), queue=(common.queue,)),
        "pending + actor": Filter(status=("pending",), actor=(seldom.task_name,)),
        "pending + error type, rare": Filter(status=("pending",), error_type=(rare.error_type,)),
        "in_progress + tenant, small": Filter(status=("in_progress",), tenant_id=(SMALL,)),
        "in_progress + exception, rare": Filter(status=("in_progress",), exception=(rare.exception_class,)),
        "tenant, big + error type, rare": Filter(tenant_id=(BIG,), error_type=(rare.error_type,)),
        "tenant, big + actor": Filter(tenant_id=(BIG,), actor=(seldom.task_name,)),
        "tenant, small + since 7 days": Filter(tenant_id=(SMALL,), since=now - timedelta(days=7)),
        "queue + error type, rare": Filter(queue=(rare.queue,), error_type=(rare.error_type,)),
        "since 1 day + exception, rare": Filter(since=day, exception=(rare.exception_class,)),
        "since 1 day + queue": Filter(since=day, queue=(common.queue,)),
        "queue + actor of another (none)": Filter(queue=(common.queue,), actor=(other.task_name,)),
        "actor + exception never raised (none)": Filter(actor=(_without(rare),), exception=(rare.exception_class,)),
    }


def _without(rare: Any) -> str:
    raising = {shape.task_name for shape in shapes() if shape.exception_class == rare.exception_class}
    return next(shape.task_name for shape in shapes() if shape.task_name not in raising)


def _uuid(text: str) -> UUID:
    return UUID(hashlib.md5(text.encode()).hexdigest())  # noqa: S324 - as the data were made


def cases(session_: Session, now: datetime, deep: bool) -> Iterator[tuple[str, Search]]:
    """Give each case's name and what it does. Keys of later pages are found before it is timed."""
    for name, where in filters(now).items():
        yield f"page 1, {name}", _page(where)
        after, page = _key_of(session_, where) if deep else (None, 0)
        if after is not None:
            yield f"page {page:,}, {name}", _page(where, after)
    day, month = now - timedelta(days=1), now - timedelta(days=30)
    texts = {name: str(_uuid(f"customer {t[4:]}")) if t.startswith("md5:") else t for name, t in TEXTS.items()}
    asked: dict[str, Filter] = {name: Filter(text=text) for name, text in texts.items() if len(text) > 2}
    rare, common = texts["rare, 3 rows"], texts["common, a third"]
    asked |= {
        "rare + pending": Filter(text=rare, status=("pending",)),
        "common + in_progress": Filter(text=common, status=("in_progress",)),
        "common + tenant, small": Filter(text=common, tenant_id=(SMALL,)),
        "common + since 1 day": Filter(text=common, since=day),
        "middling + since 1 day": Filter(text=texts["middling, 0.1 %"], since=day),
    }
    for name, where in asked.items():
        yield f"text, {name}", _page(where)
    for name, where in {
        "everything": Filter(),
        "pending": Filter(status=("pending",)),
        "queue": Filter(queue=("llm",)),
        "tenant, small": Filter(tenant_id=(SMALL,)),
        "error type": Filter(error_type=("database_error",)),
        "since 1 day": Filter(since=day),
        "text, rare": Filter(text=rare),
        "text, common": Filter(text=common),
        "correlation id": Filter(correlation_id=_uuid("work 777")),
    }.items():
        yield f"groups, {name}", _groups(where)
    for name, where in {
        "everything": Filter(),
        "pending": Filter(status=("pending",)),
        "tenant, small": Filter(tenant_id=(SMALL,)),
        "error type": Filter(error_type=("database_error",)),
        "since 1 day": Filter(since=day),
        "since 30 days": Filter(since=month),
        "text, rare": Filter(text=rare),
    }.items():
        yield f"stats, {name}", _stats(where, now)
    for name, where in {
        "everything": Filter(),
        "pending": Filter(status=("pending",)),
        "exception": Filter(exception=("ValueError",)),
        "pending + error type": Filter(status=("pending",), error_type=("database_error",)),
        "text, rare": Filter(text=rare),
    }.items():
        yield f"count, {name}", _count(where)
    for name, hours in (("3 hours", 3), ("1 day", 24), ("30 days", 720)):
        yield f"rates, {name}", _rates(now, timedelta(hours=hours))
    yield "tenants", lambda s: failures_by_tenant(s, now=now).tenants
    one = _uuid("row 100")
    yield "chain", lambda s: chain(s, _uuid("work 777"))
    yield "get", lambda s: [get(s, one)]
    yield "ids_beginning", lambda s: ids_beginning(s, str(one)[:8])
    yield "history", lambda s: history(s, one)
    yield "audit", audit


def _page(where: Filter, after: str | None = None) -> Search:
    return lambda s: find(s, where, after=after, limit=PAGE).jobs


def _groups(where: Filter) -> Search:
    return lambda s: find_groups(s, where)[0]


def _stats(where: Filter, now: datetime) -> Search:
    return lambda s: stats(s, where, now=now).by_actor


def _rates(now: datetime, time: timedelta) -> Search:
    return lambda s: failures_per_minute(s, since=now - time, now=now).series


def _count(where: Filter) -> Search:
    return lambda s: range(count(s, where))


def _key_of(session_: Session, where: Filter) -> tuple[str | None, int]:
    """Return where the thousandth page begins, or of fewer the last, and its number."""
    after, page, left = None, 1, (DEEP - 1) * PAGE
    while left:
        step = min(left, 1_000)
        found = find(session_, where, after=after, limit=step)
        if found.next is None:
            break
        after, left, page = found.next, left - step, page + step // PAGE
    return after, page


def measure(begin: Callable[[], Any], now: datetime, *, deep: bool, explain: bool, only: str) -> dict[str, Figures]:
    """Run every case and return its figures."""
    measured = {}
    with begin() as looking:
        for name, search in cases(looking, now, deep):
            if only not in name:
                continue
            milliseconds: list[float] = []
            found: Sized = ()
            while len(milliseconds) < ROUNDS and (len(milliseconds) < 3 or sum(milliseconds) < SECONDS * 1000):
                with begin() as s:
                    start = time.perf_counter()
                    found = search(s)
                    milliseconds.append((time.perf_counter() - start) * 1000)
            with begin() as s:
                buffers = _buffers(s, search, name if explain else None)
            measured[name] = Figures(len(found), milliseconds, buffers)
    return measured


def _buffers(s: Session, search: Search, title: str | None) -> int:
    """Return the pages that its statements look at; with a title print their plans."""
    with _statements(s.connection()) as statements:
        search(s)
    if title:
        print(f"\n{title}")
    pages = 0
    for statement, parameters in statements:
        options = "ANALYZE, BUFFERS, SUMMARY OFF"
        plan = s.connection().exec_driver_sql(f"EXPLAIN ({options}, FORMAT JSON) {statement}", parameters).scalar_one()
        pages += plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]
        if title:
            for line in s.connection().exec_driver_sql(f"EXPLAIN ({options}) {statement}", parameters).scalars():
                print(f"    {line}")
            print()
    return pages


@contextmanager
def _statements(connection: Connection) -> Iterator[list[tuple[str, Any]]]:
    """Collect what is executed."""
    executed: list[tuple[str, Any]] = []

    def collect(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        executed.append((statement, parameters))

    event.listen(connection, "before_cursor_execute", collect)
    try:
        yield executed
    finally:
        event.remove(connection, "before_cursor_execute", collect)


@contextmanager
def _as_tenant(tenant_id: UUID) -> Iterator[Session]:
    with tenant_context(tenant_id), session.transaction() as s:
        yield s


#: Whose rows are looked at.
EYES: dict[str, Callable[[], Any]] = {
    "the operator": session.operator_transaction,
    "the big tenant": lambda: _as_tenant(BIG),
    "a small tenant": lambda: _as_tenant(SMALL),
}


def show(title: str, figures: dict[int, dict[str, Figures]]) -> None:
    """Print the table; what is slower than it should be at the largest number is marked."""
    table = Table(
        "", *(f"{rows:,} rows: ms" for rows in figures), "p95", "buffers", "found", "grows by", "", title=title
    )
    first, last = (figures[rows] for rows in (min(figures), max(figures)))
    for name, each in last.items():
        target = TARGETS.get(name.split()[0].rstrip(","))
        table.add_row(
            name,
            *(f"{figures[rows][name].median:,.1f}" if name in figures[rows] else "" for rows in figures),
            f"{each.p95:,.1f}",
            f"{each.buffers:,}",
            f"{each.found:,}",
            f"{each.median / first[name].median:.1f}" if name in first and len(figures) > 1 else "",
            "" if target is None else f"<= {target:.0f}" if each.median <= target else f"[red]> {target:.0f}",
        )
    Console(width=140).print(table)


def run(database: Database, arguments: argparse.Namespace) -> dict[str, dict[str, Figures]]:
    """Measure one database with each pair of eyes."""
    session.configure(database.worker_url, operator_database_url=database.operator_url)
    now = datetime.now(UTC)
    try:
        return {
            who: measure(begin, now, deep=who == "the operator", explain=arguments.explain, only=arguments.only)
            for who, begin in EYES.items()
            if arguments.eyes in who
        }
    finally:
        session.dispose()


def main() -> None:
    """Load, measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.understanding", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="how many failed jobs")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the data stay")
    parser.add_argument("--explain", action="store_true", help="print the plans")
    parser.add_argument("--cost", action="store_true", help="what indexes and triggers cost whoever records")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their names")
    parser.add_argument("--eyes", default="", metavar="WHO", help=f"one of: {', '.join(EYES)}")
    arguments = parser.parse_args()
    figures: dict[str, dict[int, dict[str, Figures]]] = {}
    for rows in sorted(arguments.rows):
        with loaded(rows, arguments.keep) as database:
            if arguments.cost:
                failed_jobs_cost.measure(database)
                continue
            for who, measured in run(database, arguments).items():
                figures.setdefault(who, {})[rows] = measured
    for who, by_rows in figures.items():
        show(f"As {who}", by_rows)


if __name__ == "__main__":
    main()
