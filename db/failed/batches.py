"""Takes failed jobs in batches that hold up nobody, to remove them or what they were called with.

A batch is a short transaction, and never waits for a lock while it holds one: rows and groups that somebody else holds
are left out, and where a group was, the batch after it waits for that group alone, before it has any other. So whoever
records failures, moves jobs, or removes some at the same moment, can be in no deadlock with it, in whatever order they
take theirs; and they wait for its groups for a fraction of what they are willing to (``WAIT_FOR_ROW``).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from psycopg.errors import LockNotAvailable
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.failed.actions import Begin
from db.failed.events import say
from db.failed_jobs import WAIT_FOR_ROW

#: Rows of a batch, at most.
AT_ONCE: Final = 1_000
#: Seconds that a batch may hold its groups before the next is made smaller.
TOO_LONG: Final = WAIT_FOR_ROW / 1000 / 3
#: Ids in memory at a time.
_FOUND_AT_ONCE: Final = 10_000

ShouldStop = Callable[[], bool]
#: Told after each batch how many rows it has been so far.
Progress = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Where:
    """A condition on ``worker_failed_jobs job`` and ``worker_failed_job_details details``, with its parameters."""

    condition: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def but(self, condition: str) -> Where:
        """Return it with one more condition."""
        return Where(f"({self.condition}) AND {condition}", self.parameters)


@dataclass(slots=True)
class Swept:
    """What became of the rows that matched.

    Attributes:
      rows: How many were removed, or forgotten, by the status that they had.
      originals: Original messages that were removed with them.
      deliveries: Deliveries by which they were known, likewise.
      spared: Rows in progress that were left because a replay of them runs.
      held: Rows that still match and are there because somebody else held them. Call again.
      stopped: Whether it was asked to stop; the rest is there still.
    """

    rows: Counter[str] = field(default_factory=Counter)
    originals: int = 0
    deliveries: int = 0
    spared: int = 0
    held: int = 0
    stopped: bool = False

    @property
    def count(self) -> int:
        """Rows of any status."""
        return self.rows.total()


_FROM: Final = """
    worker_failed_jobs job LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
"""

#: What there is to forget. Not by ``forgotten_at``: a replay that failed brings arguments back.
HAS_PAYLOAD: Final = """
    (job.task_args IS NOT NULL OR job.task_kwargs IS NOT NULL OR EXISTS (
        SELECT FROM worker_failed_job_originals kept WHERE kept.failed_job_id = job.id
    ) OR EXISTS (
        SELECT FROM worker_replay_edits edited WHERE edited.failed_job_id = job.id
    ))
"""


def count(begin: Begin, where: Where) -> Counter[str]:
    """Return how many jobs match, by status."""
    with begin() as session:
        found = session.execute(
            text(f"SELECT job.status, count(*) AS jobs FROM {_FROM} WHERE {where.condition} GROUP BY 1"),
            dict(where.parameters),
        )
        return Counter({row.status: row.jobs for row in found})


def remove(
    begin: Begin,
    where: Where,
    *,
    by: str,
    reason: str | None,
    batch: int = AT_ONCE,
    oldest_first: bool = False,
    should_stop: ShouldStop = lambda: False,
    progress: Progress = lambda _: None,
) -> Swept:
    """Remove the rows that match; see :func:`purge`.

    Arguments:
      oldest_first: In the order in which they failed: for conditions to which an index gives that.
    """
    work = _Removal(begin, where, by, reason, Pace(batch))
    return _sweep(work, oldest_first=oldest_first, should_stop=should_stop, progress=progress)


def erase(
    begin: Begin,
    where: Where,
    *,
    by: str,
    reason: str | None,
    batch: int = AT_ONCE,
    oldest_first: bool = False,
    should_stop: ShouldStop = lambda: False,
    progress: Progress = lambda _: None,
) -> Swept:
    """Forget what the rows that match were called with; see :func:`forget` and :func:`remove`."""
    work = _Erasure(begin, where.but(HAS_PAYLOAD), by, reason, Pace(batch))
    return _sweep(work, oldest_first=oldest_first, should_stop=should_stop, progress=progress)


def count_in(begin: Begin, table: str, where: Where) -> int:
    """Return how many rows of another table match; see :func:`remove_from`."""
    with begin() as session:
        found = session.execute(text(f"SELECT count(*) FROM {table} WHERE {where.condition}"), dict(where.parameters))
        return int(found.scalar_one())


def remove_from(
    begin: Begin,
    table: str,
    key: str,
    where: Where,
    *,
    batch: int = AT_ONCE,
    should_stop: ShouldStop = lambda: False,
) -> tuple[int, bool]:
    """Remove rows of a table on which nothing hangs, in batches; return how many, and whether it was asked to stop.

    Rows that somebody else has locked are left.

    Arguments:
      table: And its alias.
      key: A column, by which an index has the rows in order.
      where: With the alias.
    """
    pace, removed = Pace(batch), 0
    name, _, alias = table.partition(" ")
    beyond, parameters = "true", dict(where.parameters)
    while not should_stop():
        size, started = pace.size, time.monotonic()
        with begin() as session:
            keys = session.scalars(
                text(
                    f"""
                    WITH taken AS MATERIALIZED (
                        SELECT {alias}.id FROM {table} WHERE {where.condition} AND {beyond}
                        ORDER BY {alias}.{key} LIMIT :batch_size FOR UPDATE OF {alias} SKIP LOCKED
                    )
                    DELETE FROM {name} WHERE id IN (SELECT id FROM taken) RETURNING {key}
                    """
                ),
                {**parameters, "batch_size": size},
            ).all()
        pace.took(len(keys), time.monotonic() - started)
        removed += len(keys)
        if len(keys) < size:
            return removed, False
        # Not from the first again, past all that is dead by now, and all that stays. There may be more of the last.
        beyond, parameters["beyond"] = f"{alias}.{key} >= :beyond", max(keys)
    return removed, True


def checked_batch(batch: int) -> int:
    """Return ``batch``.

    Raises:
      ValueError: When it is less than 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch!r}")
    return batch


class Pace:
    """How many rows to take at once, so that it does not take too long, whatever the machine."""

    def __init__(self, at_most: int) -> None:
        self.at_most = checked_batch(at_most)
        self.size = min(at_most, 100)

    def took(self, rows: int, seconds: float) -> None:
        """Learn from a batch of so many rows."""
        if seconds > TOO_LONG:
            self.size = max(1, min(self.size, rows) // 2)
        elif rows >= self.size and seconds < TOO_LONG / 3:
            self.size = min(self.at_most, self.size * 2)


# --- Batches --------------------------------------------------------------------------------------

#: A tenant and a fingerprint.
_Group = tuple[UUID | None, str]
#: Milliseconds to wait for a group that somebody holds for longer than a moment, in psql for example.
_WAIT_FOR_GROUP: Final = 5_000


@dataclass(slots=True)
class _Work:
    """What is done to the rows that match, and for whom."""

    begin: Begin
    where: Where
    by: str
    reason: str | None
    pace: Pace
    swept: Swept = field(default_factory=Swept)

    def do(self, ids: Sequence[UUID]) -> None:
        """Do it to those of ``ids`` that match still and nobody holds."""
        raise NotImplementedError

    def take(self, session: Session, ids: Sequence[UUID]) -> dict[UUID, str]:
        """Lock the rows of ``ids`` that match still, but for those that somebody else has; return their status."""
        rows = session.execute(*self._matching(ids, "FOR UPDATE OF job SKIP LOCKED"))
        return {row.id: row.status for row in rows}

    def still(self, ids: Sequence[UUID]) -> list[UUID]:
        """Return those of ``ids`` that match."""
        with self.begin() as session:
            return list(session.scalars(*self._matching(ids)))

    def _matching(self, ids: Sequence[UUID], lock: str = "") -> tuple[Any, dict[str, Any]]:
        statement = f"""
            SELECT job.id, job.status FROM {_FROM}
            WHERE job.id = ANY(CAST(:batch_ids AS uuid[])) AND ({self.where.condition}) {lock}
        """
        return text(statement), {**self.where.parameters, "batch_ids": list(ids)}


def _sweep(work: _Work, *, oldest_first: bool, should_stop: ShouldStop, progress: Progress) -> Swept:
    swept = work.swept
    for found in _chunks(work.begin, work.where, oldest_first):
        left = found
        while left:
            if should_stop():
                swept.stopped = True
                return swept
            size = work.pace.size
            work.do(left[:size])
            left = left[size:]
            progress(swept.count)
        # What was held for a moment is let go by now.
        held = work.still(found)
        if held:
            work.do(held[: work.pace.at_most])
            swept.held += len(work.still(held))
    return swept


def _chunks(begin: Begin, where: Where, oldest_first: bool) -> Iterator[list[UUID]]:
    """Give the ids of the rows that match, each once, few of them in memory at a time.

    By id where not by age: from where the last ended, whatever became of the rows before it, and where no index helps,
    the table is read once in all.
    """
    key = "job.failed_at, job.id" if oldest_first else "job.id"
    beyond = (
        "job.failed_at >= :beyond_at AND (job.failed_at, job.id) > (:beyond_at, :beyond_id)"
        if oldest_first
        else "job.id > :beyond_id"
    )
    condition, parameters = where.condition, dict(where.parameters)
    while True:
        with begin() as session:
            rows = session.execute(
                text(
                    f"SELECT job.id, job.failed_at FROM {_FROM} WHERE {condition} ORDER BY {key} LIMIT {_FOUND_AT_ONCE}"
                ),
                parameters,
            ).all()
        if rows:
            yield [row.id for row in rows]
        if len(rows) < _FOUND_AT_ONCE:
            return
        condition = f"({where.condition}) AND {beyond}"
        parameters["beyond_id"] = rows[-1].id
        if oldest_first:
            parameters["beyond_at"] = rows[-1].failed_at


@dataclass(slots=True)
class _Removal(_Work):
    """Removes rows, and with them what stands beside them; a trigger takes them off the counts of their groups.

    The delivery by which a row was known goes, too. If its message is in Redis still, because its worker died between
    the row and the acknowledgement, it is delivered again, runs again, and where that fails makes a row again: right,
    because a message whose row is gone and that is there still has had no ending.
    """

    #: Groups that somebody holds for longer than we wait.
    stuck: set[_Group] = field(default_factory=set)

    def do(self, ids: Sequence[UUID]) -> None:
        for group, of_group in self._remove(ids, None).items():
            if group not in self.stuck:
                try:
                    self._remove(of_group, group)
                except OperationalError as e:
                    if not isinstance(e.orig, LockNotAvailable):
                        raise
                    self.stuck.add(group)

    def _remove(self, ids: Sequence[UUID], awaited: _Group | None) -> dict[_Group, list[UUID]]:
        """Remove rows, and return those whose groups somebody else holds.

        Arguments:
          awaited: The group to wait for; no others are in ``ids``.
        """
        with self.begin() as session:
            say(session, by=self.by, reason=self.reason)
            if awaited is not None:
                session.execute(_WAIT, {"milliseconds": str(_WAIT_FOR_GROUP)})
                session.execute(_LOCK_GROUP, {"tenant_id": awaited[0], "fingerprint": awaited[1]})
            started = time.monotonic()
            taken = self.take(session, ids)
            groups = self._groups(session, taken)
            ours = {awaited} if awaited is not None else self._take_groups(session, set(groups.values()))
            free = [row_id for row_id in taken if row_id not in groups or groups[row_id] in ours]
            originals = session.execute(_DROP_ORIGINALS, {"ids": free}).all()
            deliveries = session.execute(_DROP_DELIVERIES, {"ids": free}).all()
            session.execute(_REMOVE, {"ids": free})
        self.pace.took(len(ids), time.monotonic() - started)
        self.swept.rows.update(taken[row_id] for row_id in free)
        self.swept.originals += len(originals)
        self.swept.deliveries += len(deliveries)
        held: dict[_Group, list[UUID]] = {}
        for row_id in taken.keys() - set(free):
            held.setdefault(groups[row_id], []).append(row_id)
        return held

    def _groups(self, session: Session, ids: Iterable[UUID]) -> dict[UUID, _Group]:
        # Once they are locked, none moves to another group.
        rows = session.execute(_GROUPS, {"ids": list(ids)})
        return {row.failed_job_id: (row.tenant_id, row.fingerprint) for row in rows}

    def _take_groups(self, session: Session, groups: set[_Group]) -> set[_Group]:
        """Lock groups, and return them, but for those that somebody else has: rows are locked by now, so none waits."""
        rows = session.execute(
            _TAKE_GROUPS,
            {"tenants": [tenant_id for tenant_id, _ in groups], "fingerprints": [name for _, name in groups]},
        )
        return {(row.tenant_id, row.fingerprint) for row in rows}


_GROUPS: Final = text(
    """
    SELECT failed_job_id, tenant_id, fingerprint FROM worker_failed_job_details
    WHERE failed_job_id = ANY(CAST(:ids AS uuid[])) AND fingerprint IS NOT NULL
    """
)
# Not IS NOT DISTINCT FROM, which cannot use the index.
_TAKE_GROUPS: Final = text(
    """
    SELECT own.tenant_id, own.fingerprint
    FROM unnest(CAST(:tenants AS uuid[]), CAST(:fingerprints AS varchar[])) wanted (tenant_id, fingerprint)
    JOIN worker_failed_job_groups own ON own.fingerprint = wanted.fingerprint
        AND (own.tenant_id = wanted.tenant_id OR (own.tenant_id IS NULL AND wanted.tenant_id IS NULL))
    FOR NO KEY UPDATE OF own SKIP LOCKED
    """
)
_WAIT: Final = text("SELECT set_config('lock_timeout', :milliseconds, true)")
_LOCK_GROUP: Final = text(
    """
    SELECT FROM worker_failed_job_groups
    WHERE fingerprint = :fingerprint AND tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS uuid) FOR NO KEY UPDATE
    """
)
_DROP_ORIGINALS: Final = text(
    "DELETE FROM worker_failed_job_originals WHERE failed_job_id = ANY(CAST(:ids AS uuid[])) RETURNING failed_job_id"
)
_DROP_EDITS: Final = text(
    "DELETE FROM worker_replay_edits WHERE failed_job_id = ANY(CAST(:ids AS uuid[])) RETURNING failed_job_id"
)
_DROP_DELIVERIES: Final = text(
    "DELETE FROM worker_failed_job_deliveries WHERE failed_job_id = ANY(CAST(:ids AS uuid[])) RETURNING failed_job_id"
)
_REMOVE: Final = text("DELETE FROM worker_failed_jobs WHERE id = ANY(CAST(:ids AS uuid[]))")


@dataclass(slots=True)
class _Erasure(_Work):
    """Forgets what rows were called with. It changes no count, so it holds no group."""

    def do(self, ids: Sequence[UUID]) -> None:
        with self.begin() as session:
            say(session, by=self.by, reason=self.reason, event="forgotten")
            started = time.monotonic()
            taken = self.take(session, ids)
            changed = set(session.scalars(_FORGET, {"ids": list(taken)}))
            originals = set(session.scalars(_DROP_ORIGINALS, {"ids": list(taken)}))
            edited = set(session.scalars(_DROP_EDITS, {"ids": list(taken)}))
            session.execute(_FORGOTTEN, {"ids": list(taken)})
            # Of the others the trigger has told.
            session.execute(_TELL, {"ids": list((originals | edited) - changed), "by": self.by, "reason": self.reason})
        self.pace.took(len(ids), time.monotonic() - started)
        self.swept.rows.update(taken.values())
        self.swept.originals += len(originals)


_FORGET: Final = text(
    """
    UPDATE worker_failed_jobs SET task_args = NULL, task_kwargs = NULL
    WHERE id = ANY(CAST(:ids AS uuid[])) AND (task_args IS NOT NULL OR task_kwargs IS NOT NULL) RETURNING id
    """
)
_FORGOTTEN: Final = text(
    "UPDATE worker_failed_job_details SET forgotten_at = now() WHERE failed_job_id = ANY(CAST(:ids AS uuid[]))"
)
_TELL: Final = text(
    """
    INSERT INTO worker_failed_job_events (failed_job_id, tenant_id, event, changed_by, reason)
    SELECT id, tenant_id, 'forgotten', :by, :reason FROM worker_failed_jobs WHERE id = ANY(CAST(:ids AS uuid[]))
    """
)
