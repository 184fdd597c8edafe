"""Groups of failures: their lives, and that their counts are right whatever happens to rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import text

from db import failed_jobs
from db.errors import RowLocked
from db.failed import (
    Filter,
    Group,
    InvalidFilter,
    abandon,
    find,
    find_groups,
    get_group,
    largest_groups,
    reopen,
    resolve,
    stats,
)
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.failed_rows import (
    START,
    TENANTS,
    a_random_failure,
    every_row,
    fingerprint,
    group_counts,
    record_at_random,
    recounted,
    seeded,
)
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database

NOW = START + timedelta(hours=2)


def fail(minute: int, group: int = 0, **changes: Any) -> UUID:
    return failed_jobs.record(
        a_failure(**{"fingerprint": fingerprint(group), "failed_at": START + timedelta(minutes=minute), **changes})
    )


def the_group(group: int = 0) -> Group:
    with operator_transaction() as session:
        found = get_group(session, fingerprint(group))
    assert found is not None
    return found


def close(group: int = 0) -> None:
    resolve(operator_transaction, Filter(fingerprint=(fingerprint(group),)), by="ada", note="mended")


def test_what_a_group_says(database: Database) -> None:
    fail(5, title="bad *", place="shop:run", tenant_id=A)
    newest = fail(9, tenant_id=B, queue="llm", title="worse *")
    fail(7, tenant_id=None)
    group = the_group()
    assert (group.failures, group.pending, group.open, group.tenants, group.without_tenant) == (3, 3, 3, 2, True)
    assert (group.first_seen, group.last_seen) == (START + timedelta(minutes=5), START + timedelta(minutes=9))
    assert (group.sample_id, group.regressed, group.resolved_at) == (newest, False, None)
    assert (group.task_name, group.exception_class, group.place) == ("test.job", "ValueError", "shop:run")
    with tenant_context(A), transaction() as session:
        own = get_group(session, fingerprint(0))
    assert own is not None
    assert (own.failures, own.pending, own.tenants, own.without_tenant, own.title) == (1, 1, 1, False, "bad *")


def test_groups_of_a_replay_are_those_of_its_jobs(database: Database) -> None:
    sent = fail(1, group=0)
    fail(2, group=1)
    with operator_transaction() as session:
        replay_id = runs.create(session, Filter(ids=(sent,)), ReplaySettings(), by="ada")
        session.execute(
            text(
                "INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id) VALUES (:replay, :job, :tenant)"
            ),
            {"replay": replay_id, "job": sent, "tenant": A},
        )
        found, _ = find_groups(session, Filter(replay=replay_id))
    assert [group.fingerprint for group in found] == [fingerprint(0)]


def test_a_group_is_called_what_the_newest_says_that_says_something(database: Database) -> None:
    fail(1, queue="old")
    fail(2, title="bad *", place="shop:run", queue="old")
    fail(3, queue="new", error_type="timeout")
    group = the_group()
    assert (group.title, group.place, group.queue, group.error_type) == ("bad *", "shop:run", "new", "timeout")
    fail(4, title="worse *", place="shop:walk")
    assert (the_group().title, the_group().place) == ("worse *", "shop:walk")


def test_a_group_that_was_resolved_and_comes_back_regresses_as_often_as_it_does(database: Database) -> None:
    fail(1)
    assert not the_group().regressed
    close()
    resolved = the_group()
    assert (resolved.open, resolved.regressed, resolved.resolved_at is not None) == (0, False, True)
    fail(2)
    back = the_group()
    assert (back.regressed, back.regressed_at, back.regressions) == (True, START + timedelta(minutes=2), 1)
    assert back.resolved_at is None
    fail(3)
    # One more of the same is no other regression.
    assert (the_group().regressed_at, the_group().regressions) == (START + timedelta(minutes=2), 1)
    close()
    assert (the_group().regressed, the_group().regressions) == (False, 1)
    fail(4)
    assert (the_group().regressed_at, the_group().regressions) == (START + timedelta(minutes=4), 2)


def test_what_was_given_up_does_not_come_back(database: Database) -> None:
    row_id = fail(1)
    abandon(operator_transaction, Filter(ids=(row_id,)), by="ada", reason="no")
    fail(2)
    assert not the_group().regressed
    reopen(operator_transaction, Filter(ids=(row_id,)), by="ada")
    assert (the_group().pending, the_group().regressed) == (2, False)


def test_a_group_comes_back_where_it_was_resolved(database: Database) -> None:
    fail(1, tenant_id=A)
    fail(1, tenant_id=B)
    with tenant_context(A):
        resolve(transaction, Filter(fingerprint=(fingerprint(0),)), by="a", note="mended for us")
    assert the_group().resolved_at is None
    fail(2, tenant_id=A)
    with tenant_context(A), transaction() as session:
        own = get_group(session, fingerprint(0))
        assert own is not None
        assert own.regressed
    with tenant_context(B), transaction() as session:
        theirs = get_group(session, fingerprint(0))
        assert theirs is not None
        assert not theirs.regressed
    assert the_group().regressed


def test_those_that_are_back_come_first_then_the_last_seen_page_by_page(database: Database) -> None:
    for group, minute in ((0, 1), (1, 9), (2, 5), (3, 5), (4, 7)):
        fail(minute, group)
    close(0)
    fail(2, 0)
    expected = [fingerprint(n) for n in (0, 1, 4, 3, 2)]
    with operator_transaction() as session:
        for limit in (1, 2, 5, 50):
            found: list[str] = []
            after = None
            while True:
                page, after = find_groups(session, Filter(), after=after, limit=limit)
                found += [group.fingerprint for group in page]
                if after is None:
                    break
            assert found == expected
        assert stats(session, Filter(), now=NOW).regressed_groups == 1
        assert stats(session, Filter(text="bad input"), now=NOW).regressed_groups == 1


@pytest.mark.parametrize("after", ["", "x~y~z", "1~2026-01-01~abcd", "1~2026-01-01T00:00:00+00:00~\0", "yes~~"])
def test_a_page_after_nothing_that_a_page_gave_is_refused(database: Database, after: str) -> None:
    with operator_transaction() as session, pytest.raises(InvalidFilter, match="after must be what a page gave"):
        find_groups(session, Filter(), after=after)


def test_groups_seen_in_a_time(database: Database) -> None:
    for group, minute in ((0, 1), (1, 9)):
        fail(minute, group)
    fail(5, 0)

    def seen(**times: int) -> set[str]:
        with operator_transaction() as session:
            where = Filter(**{name: START + timedelta(minutes=minute) for name, minute in times.items()})  # type: ignore[arg-type]
            return {group.fingerprint for group in find_groups(session, where)[0]}

    assert seen(since=5) == {fingerprint(0), fingerprint(1)}
    assert seen(since=6) == {fingerprint(1)}
    assert seen(until=9) == {fingerprint(0)}
    assert seen(since=2, until=5) == {fingerprint(0)}


def test_a_group_by_what_its_fingerprint_begins_with(database: Database) -> None:
    fail(1, 0)
    fail(1, 1)
    with operator_transaction() as session:
        found = get_group(session, fingerprint(1)[:5])
        assert found is not None
        assert found.fingerprint == fingerprint(1)
        assert get_group(session, "abcd") is None
        assert get_group(session, "ffff") is None


def test_of_which_groups_most_are(database: Database) -> None:
    for group, number in ((0, 1), (1, 3), (2, 2)):
        for n in range(number):
            fail(n, group, title=f"title {group}")
    with operator_transaction() as session:
        assert [(s.fingerprint, s.jobs, s.title) for s in largest_groups(session, Filter(), limit=2)] == [
            (fingerprint(1), 3, "title 1"),
            (fingerprint(2), 2, "title 2"),
        ]
        assert largest_groups(session, Filter(queue=("nobody's",))) == []


@pytest.mark.parametrize("seed", [1, 2])
def test_counts_equal_a_recount_whatever_several_do_at_once(database: Database, seed: int) -> None:
    record_at_random(database, seed, 60)
    gate = threading.Barrier(6)
    known = [row["id"] for row in every_row(database)]
    messages = [a_random_failure(seeded(seed + n)) for n in range(30)]

    def record(r: Random) -> None:
        failures = [a_random_failure(r) for _ in range(r.randrange(1, 6))]
        again = r.choice(messages)
        # The same message, of another delivery, and perhaps another cause.
        cause = r.randrange(3)
        changed = a_random_failure(r, task_id=again.task_id, task_name=again.task_name, tenant_id=again.tenant_id)
        failures.append(replace(changed, fingerprint=fingerprint(cause)))
        while True:
            try:
                failed_jobs.record_all(failures)
            except RowLocked:
                # As workers do: later.
                continue
            return

    def move(r: Random) -> None:
        where = r.choice(
            [
                Filter(ids=tuple(r.sample(known, 5))),
                Filter(fingerprint=(fingerprint(r.randrange(5)),), tenant_id=(A,)),
                Filter(correlation_id=UUID(int=r.randrange(20))),
            ]
        )
        match r.randrange(3):
            case 0:
                resolve(operator_transaction, where, by="ada", note="done")
            case 1:
                abandon(operator_transaction, where, by="ada", reason="no")
            case _:
                reopen(operator_transaction, where, by="ada")

    def move_own(r: Random) -> None:
        tenant = r.choice(TENANTS)
        with tenant_context(tenant):
            resolve(transaction, Filter(fingerprint=(fingerprint(r.randrange(5)),)), by="a", note="done")

    def by_hand(r: Random) -> None:
        with psycopg.connect(database.operator_url, autocommit=True) as connection:
            chosen = r.choice(known)
            status = r.choice(("pending", "in_progress", "resolved", "abandoned"))
            if r.random() < 0.3:
                connection.execute("DELETE FROM worker_failed_jobs WHERE id = %s", [chosen])
            else:
                connection.execute("UPDATE worker_failed_jobs SET status = %s WHERE id = %s", [status, chosen])

    def work(n: int, does: Callable[[Random], None]) -> None:
        r = seeded(100 * seed + n)
        gate.wait()
        for _ in range(15):
            does(r)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6), (record, record, move, move, move_own, by_hand)))
    counts = group_counts(database)
    assert counts == recounted(database)
    assert sum(sum(c.values()) for c in counts.values()) == len(every_row(database)) > 60
    with operator_transaction() as session:
        found = stats(session, Filter(), now=NOW)
        assert found.jobs == len(every_row(database))
        assert found.by_status["resolved"] == len(find(session, Filter(status=("resolved",)), limit=1000).jobs)
