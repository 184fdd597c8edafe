"""Finding failed jobs, against a model that looks at every row."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.orm import Session

from db import failed_jobs
from db.failed import (
    STATUSES,
    FailedJobSummary,
    Filter,
    InvalidFilter,
    chain,
    count,
    count_up_to,
    find,
    find_groups,
    get,
    ids_beginning,
    iterate,
    largest_groups,
    moment,
    search,
    stats,
)
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.failed_rows import (
    START,
    a_random_failure,
    every_row,
    fingerprint,
    record_at_random,
    seeded,
)
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database

NOW = START + timedelta(hours=2)
Row = dict[str, Any]


def named(value: str, names: Iterable[str]) -> Callable[[str], bool]:
    """As filters take names of actors and exceptions: in full where there is such a one, else by their ends."""
    exact = value in set(names)
    return lambda name: name == value or (not exact and name.endswith(f".{value}"))


def expected(rows: list[Row], where: Filter) -> list[Row]:
    """The rows that match, looked at one by one."""

    def matches(row: Row) -> bool:
        return all(
            (
                not where.ids or row["id"] in where.ids,
                not where.status or row["status"] in where.status,
                not where.queue or row["queue"] in where.queue,
                not where.actor or any(named(a, {r["task_name"] for r in rows})(row["task_name"]) for a in where.actor),
                not where.tenant_id or row["tenant_id"] in where.tenant_id,
                not where.error_type or row["error_type"] in where.error_type,
                not where.exception
                or any(named(e, {r["exception_class"] for r in rows})(row["exception_class"]) for e in where.exception),
                not where.fingerprint or any(row["fingerprint"].startswith(f) for f in where.fingerprint),
                where.correlation_id is None or row["correlation_id"] == where.correlation_id,
                where.since is None or row["failed_at"] >= where.since,
                where.until is None or row["failed_at"] < where.until,
                where.text is None or where.text.lower() in row["searched"].lower(),
            )
        )

    return [row for row in rows if matches(row)]


def choices(rows: list[Row]) -> dict[str, list[Any]]:
    """Values to filter by, of each kind: those that rows have, and others."""
    return {
        "ids": [(rows[0]["id"], rows[7]["id"], uuid4()), (rows[3]["id"],)],
        "status": [*((s,) for s in STATUSES), ("pending", "in_progress"), ("resolved", "resolved"), STATUSES],
        "queue": [("billing",), ("llm", "attribution"), ("nobody's",)],
        "actor": [("recompute_window",), ("shop.billing.charge",), ("charge", "ask"), ("window",), ("ch%rge",)],
        "tenant_id": [(A,), (A, B), (UUID(int=0xC),)],
        "error_type": [("timeout",), ("validation_error", "upstream_error"), ("nothing",)],
        "exception": [("ValueError",), ("OperationalError", "GatewayDown"), ("errors.GatewayDown",), ("Error",)],
        "fingerprint": [(fingerprint(0),), ("abcd", "abcd1"), ("abcd3", fingerprint(4)), ("ffff",)],
        "correlation_id": [UUID(int=3), UUID(int=999)],
        "since": [START + timedelta(minutes=20), START - timedelta(days=1)],
        "until": [START + timedelta(minutes=10), START + timedelta(days=1)],
        "text": ["100%", "it_failed", "\\temp", "it's", '"quoted', "not FOUND", "arg_ument", "o-1", "[red]", "%%%"],
    }


def filters(rows: list[Row], r: random.Random) -> Iterable[Filter]:
    """One by one, and in pairs."""
    fields = choices(rows)
    for name, values in fields.items():
        for value in values:
            yield Filter(**{name: value})
    for one, other in itertools.combinations(fields, 2):
        pair = {one: r.choice(fields[one]), other: r.choice(fields[other])}
        if {one, other} != {"since", "until"}:
            yield Filter(**pair)
    yield Filter()


def every_page(session: Session, where: Filter, limit: int) -> list[FailedJobSummary]:
    found: list[FailedJobSummary] = []
    after = None
    while True:
        page = find(session, where, after=after, limit=limit)
        found += page.jobs
        after = page.next
        if after is None:
            return found
        assert len(page.jobs) == limit


@pytest.mark.parametrize("seed", [1, 2])
def test_each_filter_and_each_pair_finds_what_looking_at_every_row_finds(database: Database, seed: int) -> None:
    rows = record_at_random(database, seed)
    r = seeded(seed)
    matched = 0
    with operator_transaction() as session:
        for where in filters(rows, r):
            wanted = expected(rows, where)
            matched += bool(wanted)
            ids = [row["id"] for row in wanted]
            assert [job.id for job in every_page(session, where, r.choice((1, 3, 17, 1000)))] == ids, where
            assert count(session, where) == len(ids), where
            assert count_up_to(session, where, len(ids)) == (len(ids), True), where
            if ids and not where.of_groups:
                assert count_up_to(session, where, len(ids) - 1) == (len(ids) - 1, False), where
            assert [job.id for job in iterate(session, where)] == ids, where
            found = stats(session, where, now=NOW)
            assert {k: v for k, v in found.by_status.items() if v} == Counter(r_["status"] for r_ in wanted), where
            assert found.jobs == len(wanted)
            waiting = [row for row in wanted if row["status"] in {"pending", "in_progress"}]
            assert found.open_groups == len({row["fingerprint"] for row in waiting}), where
            pending = [row["failed_at"] for row in wanted if row["status"] == "pending"]
            assert found.oldest_pending == min(pending, default=None), where
            for name, column in (
                ("by_queue", "queue"),
                ("by_error_type", "error_type"),
                ("by_actor", "task_name"),
                ("by_tenant", "tenant_id"),
            ):
                counted = {c.name: (c.jobs, c.open) for c in getattr(found, name)}
                every, opened = Counter(row[column] for row in wanted), Counter(row[column] for row in waiting)
                assert counted == {name: (every[name], opened[name]) for name in every}, (where, name)
            if where.since is None and where.until is None:
                groups, _ = find_groups(session, where, limit=1000)
                assert {g.fingerprint for g in groups} == {row["fingerprint"] for row in wanted}, where
            shares = {share.fingerprint: share.jobs for share in largest_groups(session, where, limit=100)}
            assert shares == Counter(row["fingerprint"] for row in wanted), where
            if where.of_groups:
                # Groups count them all.
                assert count_up_to(session, where, 5) == (len(wanted), True), where
            else:
                assert count_up_to(session, where, 5) == (min(5, len(wanted)), len(wanted) <= 5), where
    assert matched > 60


def test_a_tenants_session_finds_its_own_alone_by_every_filter(database: Database) -> None:
    rows = record_at_random(database, 3, 120)
    own = [row for row in rows if row["tenant_id"] == A]
    with tenant_context(A), transaction() as session:
        for where in filters(rows, seeded(3)):
            wanted = expected(own, where)
            ids = [row["id"] for row in wanted]
            assert [job.id for job in every_page(session, where, 1000)] == ids, where
            assert count(session, where) == len(ids), where
            assert count_up_to(session, where, len(ids)) == (len(ids), True), where
            if ids and not where.of_groups:
                assert count_up_to(session, where, len(ids) - 1) == (len(ids) - 1, False), where
            assert [job.id for job in iterate(session, where)] == ids, where
            assert stats(session, where, now=NOW).jobs == len(ids), where
            groups, _ = find_groups(session, where, limit=1000)
            assert sum(group.failures for group in groups) <= len(own)
            assert all(group.tenants == 1 for group in groups)
        theirs = next(row for row in rows if row["tenant_id"] == B)
        assert get(session, theirs["id"]) is None
        assert ids_beginning(session, str(theirs["id"])[:8]) == []
        assert {job.tenant_id for job in chain(session, theirs["correlation_id"])} <= {A}
        mine = get(session, own[0]["id"])
        assert mine is not None
        # It may not even know whether an original is kept.
        assert (mine.has_original, mine.original_sealed) == (None, None)
    with tenant_context(None), transaction() as session:
        nobodys = [row["id"] for row in rows if row["tenant_id"] is None]
        assert [job.id for job in every_page(session, Filter(), 50)] == nobodys


@pytest.mark.parametrize("looked_at", [1, 7, 40])
def test_a_text_is_found_in_the_newest_jobs_and_in_all_before_them(
    database: Database, monkeypatch: pytest.MonkeyPatch, looked_at: int
) -> None:
    monkeypatch.setattr(search, "LOOKED_AT", looked_at)
    rows = record_at_random(database, 6, 80)
    # The operator's role may use the index, a tenant's not; where there is none, neither.
    for index in (True, False):
        if not index:
            with psycopg.connect(database.admin_url) as connection:
                connection.execute("DROP INDEX idx_worker_failed_jobs_text")
        for text in choices(rows)["text"]:
            for more in (Filter(), Filter(status=("pending",)), Filter(fingerprint=("abcd0", "abcd1"))):
                where = replace(more, text=text)
                with operator_transaction() as session:
                    wanted = [row["id"] for row in expected(rows, where)]
                    assert [job.id for job in every_page(session, where, 4)] == wanted, (where, index)
                with tenant_context(A), transaction() as session:
                    own = [row["id"] for row in expected(rows, where) if row["tenant_id"] == A]
                    assert [job.id for job in every_page(session, where, 4)] == own, (where, index)


def test_pages_show_each_row_once_while_others_are_added_and_closed(database: Database) -> None:
    r = seeded(4)
    before = {row["id"] for row in record_at_random(database, 4, 60) if row["status"] == "pending"}
    where = Filter(status=("pending",))
    seen: list[UUID] = []
    after = None
    while True:
        with operator_transaction() as session:
            page = find(session, where, after=after, limit=5)
        seen += [job.id for job in page.jobs]
        after = page.next
        if after is None:
            break
        # At the same moments as the others, newer and older.
        failed_jobs.record_all([a_random_failure(r) for _ in range(3)])
        with psycopg.connect(database.admin_url) as connection:
            connection.execute("UPDATE worker_failed_jobs SET status = 'abandoned' WHERE id = %s", [page.jobs[0].id])
    assert len(seen) == len(set(seen))
    assert before <= set(seen)


def test_equal_moments_are_no_trouble_for_pages(database: Database) -> None:
    r = seeded(5)
    failed_jobs.record_all([a_random_failure(r, failed_at=START) for _ in range(23)])
    with operator_transaction() as session:
        found = [job.id for job in every_page(session, Filter(), 4)]
        of_groups = [job.id for job in every_page(session, Filter(fingerprint=("abcd",)), 4)]
    assert found == of_groups == [row["id"] for row in every_row(database)]
    assert len(found) == 23


def test_a_job_in_full(database: Database) -> None:
    failure = a_failure(original=b"{}", fingerprint=fingerprint(1), attempts=[{"at": "2026", "worker": "w"}])
    row_id = failed_jobs.record(failure)
    sealed = failed_jobs.record(a_failure(original=b"\x80secret", original_key="k1"))
    neither = failed_jobs.record(a_failure())
    with operator_transaction() as session:
        job = get(session, row_id)
        assert job is not None
        for name in ("task_id", "task_args", "task_kwargs", "traceback", "retry_count", "last_retry_at", "attempts"):
            assert getattr(job, name) == getattr(failure, name)
        assert (job.status, job.failures, job.has_original, job.original_sealed) == ("pending", 1, True, False)
        kept = [get(session, other) for other in (sealed, neither)]
        assert [(k.has_original, k.original_sealed) for k in kept if k] == [(True, True), (False, None)]
        assert get(session, uuid4()) is None


def test_what_failed_in_one_piece_of_work_in_the_order_in_which_it_did(database: Database) -> None:
    work = uuid4()
    ids = [
        failed_jobs.record(a_failure(correlation_id=work, tenant_id=tenant, failed_at=START + timedelta(minutes=n)))
        for n, tenant in ((2, A), (0, B), (1, A))
    ]
    failed_jobs.record(a_failure())
    with operator_transaction() as session:
        assert [job.id for job in chain(session, work)] == [ids[1], ids[2], ids[0]]
        assert [job.id for job in chain(session, work, limit=1)] == [ids[1]]
    with tenant_context(A), transaction() as session:
        assert [job.id for job in chain(session, work)] == [ids[2], ids[0]]


def test_ids_by_what_they_begin_with(database: Database) -> None:
    ids = [failed_jobs.record(a_failure()) for _ in range(3)]
    twin = UUID(str(ids[0])[:13] + "-4000-8000-000000000000")
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("UPDATE worker_failed_jobs SET id = %s WHERE id = %s", [ids[0], ids[0]])
        connection.execute(
            "INSERT INTO worker_failed_jobs (id, task_id, task_name, error_type, exception_class, error_message)"
            " VALUES (%s, 't', 'a', 'unknown', 'E', 'm')",
            [twin],
        )
    with operator_transaction() as session:
        assert ids_beginning(session, str(ids[1])[:13].upper()) == [ids[1]]
        assert ids_beginning(session, ids[1].hex) == [ids[1]]
        assert ids_beginning(session, str(ids[0])[:8]) == sorted([ids[0], twin])
        assert ids_beginning(session, str(ids[0])[:8], limit=1) == sorted([ids[0], twin])[:1]
        assert ids_beginning(session, str(uuid4())) == []
        for wrong in ("abc", "", "wxyz", "a" * 33, "%%%%"):
            with pytest.raises(InvalidFilter, match="id must be a UUID"):
                ids_beginning(session, wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"status": ("done",)}, "status must be one of pending, in_progress, resolved, abandoned, not 'done'"),
        ({"queue": ("",)}, "queue must be a name"),
        ({"actor": ("a\0",)}, "actor must be a name"),
        ({"fingerprint": ("abc",)}, "fingerprint must be 4 to 32 of 0-9 and a-f, not 'abc'"),
        ({"fingerprint": ("ABCD",)}, "fingerprint must be"),
        ({"since": datetime(2026, 1, 1)}, "since must have a time zone"),  # noqa: DTZ001 - that is what is wrong
        ({"since": START, "until": START}, "since .* must be before until"),
        ({"text": "ab"}, "text must be at least 3 characters, not 'ab'"),
        ({"text": "  a  "}, "text must be at least 3"),
        ({"text": "abc\0"}, "text must be"),
    ],
)
def test_a_filter_that_cannot_be_names_its_field(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidFilter, match=said):
        Filter(**wrong)


@pytest.mark.parametrize(
    "after",
    ["", "x", "2026-01-01~x", f"~{UUID(int=1)}", f"2026-01-01T00:00:00~{UUID(int=1)}", "2026-01-01T00:00:00+00:00"],
)
def test_a_page_after_nothing_that_a_page_gave_is_refused(database: Database, after: str) -> None:
    with operator_transaction() as session, pytest.raises(InvalidFilter, match="after must be what a page gave"):
        find(session, Filter(), after=after)


@pytest.mark.parametrize("limit", [0, -1, 1001])
def test_a_page_has_1_to_1000(database: Database, limit: int) -> None:
    with operator_transaction() as session:
        with pytest.raises(InvalidFilter, match="limit must be 1 to 1000"):
            find(session, Filter(), limit=limit)
        with pytest.raises(InvalidFilter, match="limit must be 1 to 1000"):
            find_groups(session, Filter(), limit=limit)


@pytest.mark.parametrize(
    ("value", "then"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        (" 30m ", NOW - timedelta(minutes=30)),
        ("2h", NOW - timedelta(hours=2)),
        ("7d", NOW - timedelta(days=7)),
        ("4w", NOW - timedelta(weeks=4)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T08:00+01:00", datetime(2026, 1, 31, 7, tzinfo=UTC)),
    ],
)
def test_moments_as_people_say_them(value: str, then: datetime) -> None:
    assert moment("since", value, NOW) == then


@pytest.mark.parametrize("value", ["", "2", "h", "2y", "yesterday", "999999w", "-2h", "2026-13-01"])
def test_a_moment_that_is_none_is_named(value: str) -> None:
    with pytest.raises(InvalidFilter, match="since must be a time such as 2h"):
        moment("since", value, NOW)


def test_jobs_by_the_hour(database: Database) -> None:
    now = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    for ago in (timedelta(0), timedelta(minutes=29), timedelta(minutes=31), timedelta(hours=23), timedelta(hours=24)):
        failed_jobs.record(a_failure(failed_at=now - ago))
    with operator_transaction() as session:
        by_hour = stats(session, Filter(), now=now).by_hour
    assert len(by_hour) == 24
    assert by_hour[-1] == (datetime(2026, 3, 1, 12, tzinfo=UTC), 2)
    assert by_hour[-2] == (datetime(2026, 3, 1, 11, tzinfo=UTC), 1)
    assert by_hour[0] == (datetime(2026, 2, 28, 13, tzinfo=UTC), 1)
    assert sum(jobs for _, jobs in by_hour) == 4


def test_values_given_twice_count_once() -> None:
    where = Filter(status=("pending", "pending"), ids=(A, B, A), queue=("a", "a"))
    assert (where.status, where.ids, where.queue) == (("pending",), (A, B), ("a",))
    assert replace(where, status=("resolved",) * 3).status == ("resolved",)
