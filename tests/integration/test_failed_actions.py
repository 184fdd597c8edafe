"""What a person does to failed jobs by hand, on real Postgres."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from db import failed_jobs
from db.failed import MOVES, STATUSES, Filter, InvalidFilter, Moved, Status, abandon, note, reopen, resolve, sources
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.integration.failed_rows import fingerprint, group_counts, recounted
from tests.integration.test_failed_jobs import A, B, a_failure, rows, set_status
from tests.servers import Database
from tests.waiting import eventually

Act = Callable[..., Moved]
#: By the status that they lead to, with what they must be told.
ACTS: dict[Status | None, tuple[Act, dict[str, str]]] = {
    "resolved": (resolve, {"note": "done by hand"}),
    "abandoned": (abandon, {"reason": "not worth it"}),
    "pending": (reopen, {"reason": "once more"}),
    None: (note, {"note": "look at this"}),
}


def act(to: Status | None, where: Filter, **more: Any) -> Moved:
    function, words = ACTS[to]
    return function(operator_transaction, where, by="ada", **{**words, **more})


def record(number: int, **changes: Any) -> list[UUID]:
    failures = [a_failure(fingerprint=fingerprint(n % 3), **changes) for n in range(number)]
    failed_jobs.record_all(failures)
    return [failed_jobs.failed_job_id(f.task_id, f.task_name) for f in failures]


def row(database: Database, row_id: UUID) -> dict[str, Any]:
    (found,) = (r for r in rows(database) if r["id"] == row_id)
    return found


@pytest.mark.parametrize("to", ["resolved", "abandoned", "pending"])
@pytest.mark.parametrize("status", STATUSES)
def test_each_move_is_made_or_refused_with_what_is_allowed(database: Database, status: Status, to: Status) -> None:
    (row_id,) = record(1)
    set_status(database, row_id, status)
    moved = act(to, Filter(ids=(row_id,)))
    if to in MOVES[status]:
        assert (moved.moved, moved.count, moved.refused) == ([row_id], 1, {})
        assert row(database, row_id)["status"] == to
        assert row(database, row_id)["remediation_notes"] == next(iter(ACTS[to][1].values()))
    else:
        assert (moved.moved, moved.count) == ([], 0)
        assert row(database, row_id)["status"] == status
        assert row(database, row_id)["remediation_notes"] is None
        why = moved.refused[row_id]
        if status == to:
            assert why == f"is {status} already"
        else:
            allowed = f"can become {', '.join(MOVES[status])} only" if MOVES[status] else "which is final"
            assert why.startswith(f"is {status}, ")
            assert why.endswith(allowed)


def test_notes_are_added_and_keep_what_was_there(database: Database) -> None:
    (row_id,) = record(1)
    where = Filter(ids=(row_id,))
    act(None, where)
    note(operator_transaction, where, by="bob", note="  again\nin two lines ")
    reopen_without_reason = abandon(operator_transaction, where, by="ada", reason="no")
    assert reopen_without_reason.count == 1
    assert reopen(operator_transaction, where, by="ada").count == 1
    before = datetime.now(UTC)
    act("resolved", where)
    found = row(database, row_id)
    assert found["remediation_notes"] == "look at this\nagain\nin two lines\nno\ndone by hand"
    assert abs(found["resolved_at"] - before) < timedelta(minutes=1)
    # It may be noted still.
    assert act(None, where).count == 1


def test_many_are_changed_in_batches_that_say_how_far_they_are(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("db.failed.actions.AT_ONCE", 7)
    for number in (20, 21):
        record(number, queue=f"q{number}")
        told: list[int] = []
        moved = act("resolved", Filter(queue=(f"q{number}",)), progress=told.append)
        assert (moved.count, len(moved.moved), moved.refused) == (number, number, {})
        assert told == [7, 14, *([20] if number == 20 else [21, 21])]
    assert {r["status"] for r in rows(database)} == {"resolved"}
    assert group_counts(database) == recounted(database)


def test_of_more_than_a_thousand_that_are_named_none_counts_as_refused(database: Database) -> None:
    ids = tuple(record(1_100))
    moved = act("abandoned", Filter(ids=ids))
    assert (moved.count, moved.refused) == (1_100, {})
    assert len(moved.moved) == 1_000


def test_what_a_filter_does_not_match_is_left(database: Database) -> None:
    mine, other = record(1, queue="llm")[0], record(1, queue="billing")[0]
    moved = act("resolved", Filter(ids=(mine, other), queue=("llm",)))
    assert moved.moved == [mine]
    assert moved.refused == {other: "does not match the other filters, or somebody else holds it"}
    unknown = uuid4()
    assert act("resolved", Filter(ids=(unknown,))).refused == {unknown: "is not there"}
    assert act("resolved", Filter(queue=("nobody's",))) == Moved()


@pytest.mark.parametrize("to", ACTS)
def test_a_tenant_touches_its_own_alone(database: Database, to: Status | None) -> None:
    own, theirs, nobodys = (record(1, tenant_id=tenant)[0] for tenant in (A, B, None))
    if to == "pending":
        for each in (own, theirs, nobodys):
            set_status(database, each, "abandoned")
    before = {r["id"]: r for r in rows(database)}
    function, words = ACTS[to]
    with tenant_context(A):
        named = function(transaction, Filter(ids=(own, theirs, nobodys)), by="a", **words)
        found = function(transaction, Filter(tenant_id=(B,)), by="a", **words)
        # To say whose does not widen it.
        every = function(transaction, Filter(status=STATUSES), by="a", **words)
    assert named.moved == [own]
    assert named.refused == {theirs: "is not there", nobodys: "is not there"}
    assert found.count == 0
    assert every.count == (1 if to is None else 0)
    after = {r["id"]: r for r in rows(database)}
    assert (after[theirs], after[nobodys]) == (before[theirs], before[nobodys])
    assert after[own] != before[own]


def test_two_people_at_once_do_each_job_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("db.failed.actions.AT_ONCE", 20)
    record(200)
    gate = threading.Barrier(4)

    def person(n: int) -> int:
        gate.wait()
        function, words = ACTS["resolved" if n % 2 else "abandoned"]
        total = 0
        while True:
            # What another holds is left out; it comes back for that.
            done = function(operator_transaction, Filter(status=("pending",)), by=f"person {n}", **words).count
            total += done
            if not done:
                return total

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(person, range(4)))
    assert sum(counts) == 200
    with psycopg.connect(database.admin_url) as connection:
        events = connection.execute(
            "SELECT failed_job_id, count(*) FROM worker_failed_job_events WHERE event IN ('resolved', 'abandoned')"
            " GROUP BY 1"
        ).fetchall()
    assert len(events) == 200
    assert {number for _, number in events} == {1}
    assert group_counts(database) == recounted(database)


def test_groups_are_locked_in_one_order_whoever_changes_their_rows(database: Database) -> None:
    """Else two who change rows of the same groups would each hold what the other waits for."""
    number = 6
    # In the table the last one comes first: that is the order in which nobody must take them.
    for n in reversed(range(number)):
        failed_jobs.record(a_failure(fingerprint=fingerprint(n)))
    one_by_one = "SELECT FROM worker_failed_job_groups WHERE fingerprint = %s FOR UPDATE"
    with psycopg.connect(database.operator_url) as recorder, ThreadPoolExecutor(1) as pool:
        # As whoever records failures of all of them, who has come to the first.
        recorder.execute(one_by_one, [fingerprint(0)])
        person = pool.submit(act, "resolved", Filter(queue=("attribution",)))
        with psycopg.connect(database.admin_url, autocommit=True) as onlooker:
            waits = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
            eventually(lambda: onlooker.execute(waits, [recorder.info.backend_pid]).fetchone() == (1,))
        for n in range(1, number):
            recorder.execute(one_by_one, [fingerprint(n)])
        recorder.commit()
        assert person.result(timeout=30).count == number
    assert group_counts(database) == recounted(database)


def test_a_row_that_somebody_holds_is_refused_at_once_and_holds_up_no_other(database: Database) -> None:
    held, free = record(2)
    with psycopg.connect(database.operator_url) as connection:
        connection.execute("SELECT FROM worker_failed_jobs WHERE id = %s FOR UPDATE", [held])
        moved = act("resolved", Filter(ids=(held, free)))
    assert moved.moved == [free]
    assert moved.refused == {held: "does not match the other filters, or somebody else holds it"}
    assert act("resolved", Filter(ids=(held,))).moved == [held]


def test_a_failure_that_is_recorded_meanwhile_is_not_lost(database: Database) -> None:
    failure = a_failure(fingerprint=fingerprint(0))
    row_id = failed_jobs.record(failure)
    act("abandoned", Filter(ids=(row_id,)))
    failed_jobs.record(a_failure(task_id=failure.task_id, fingerprint=fingerprint(1)))
    assert row(database, row_id)["status"] == "pending"
    assert group_counts(database) == recounted(database) == {(A, fingerprint(1)): {"pending": 1}}


@pytest.mark.parametrize(
    ("to", "wrong", "said"),
    [
        ("resolved", {"note": " "}, "note must not be empty"),
        ("resolved", {"note": "x" * 10_001}, "note must be at most 10,000 characters, not 10,001"),
        ("abandoned", {"reason": ""}, "reason must not be empty"),
        ("abandoned", {"reason": "a\0b"}, "reason must not hold a NUL"),
        ("pending", {"reason": "x" * 10_001}, "reason must be at most"),
        (None, {"note": ""}, "note must not be empty"),
        ("resolved", {"by": ""}, "by must not be empty"),
        (None, {"by": "x" * 256}, "by must be at most 255 characters"),
    ],
)
def test_wrong_words_change_nothing(database: Database, to: Status | None, wrong: dict[str, str], said: str) -> None:
    (row_id,) = record(1)
    if to == "pending":
        set_status(database, row_id, "abandoned")
    before = rows(database)
    function, words = ACTS[to]
    with pytest.raises(ValueError, match=said):
        function(operator_transaction, Filter(ids=(row_id,)), **{"by": "ada", **words, **wrong})
    assert rows(database) == before


@pytest.mark.parametrize("to", ACTS)
def test_every_job_there_is_must_be_said_in_some_way(database: Database, to: Status | None) -> None:
    record(1)
    with pytest.raises(InvalidFilter, match="say which jobs"):
        act(to, Filter())


def test_sources_are_the_moves_read_backwards() -> None:
    moves = {(status, to) for status, targets in MOVES.items() for to in targets}
    assert {(status, to) for to in STATUSES for status in sources(to)} == moves
