"""Applies the rules of retention: removes what has been kept for long enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from db.failed.actions import Begin
from db.failed.batches import (
    AT_ONCE,
    HAS_PAYLOAD,
    ShouldStop,
    Swept,
    Where,
    checked_batch,
    count,
    count_in,
    erase,
    remove,
    remove_from,
)
from db.failed.events import NAME_AT_MOST, checked
from db.failed.retention import DEFAULTS, KEEP_DAYS_AT_MOST, Rule, Subject, is_operators, rules
from db.failed.statuses import STATUSES
from db.session import tenant_of


@dataclass(slots=True)
class Expired:
    """What was removed, or would be.

    Attributes:
      rows: By the status that they had.
      payloads: Rows whose arguments and original were forgotten.
      events: Of the history.
      answers: Of a language model.
      replays: That had ended, with what they say of each job.
      groups: That have had no row for longer than anything of theirs is kept.
      held: Rows that are there still because somebody else held them. The next time will do.
      stopped: Whether it was asked to stop before it was done.
    """

    rows: Counter[str] = field(default_factory=Counter)
    payloads: int = 0
    events: int = 0
    answers: int = 0
    replays: int = 0
    groups: int = 0
    held: int = 0
    stopped: bool = False

    @property
    def total(self) -> int:
        """How many things of any kind were removed."""
        return self.rows.total() + self.payloads + self.events + self.answers + self.replays + self.groups


def expire(
    begin: Begin,
    *,
    now: datetime,
    by: str,
    batch: int = AT_ONCE,
    dry_run: bool = False,
    should_stop: ShouldStop = lambda: False,
) -> Expired:
    """Apply the rules of retention. Several may at once, in any number of processes.

    A rule that is changed meanwhile holds from the next batch. Groups are remembered beyond their rows, so that one
    that was resolved can say that it has come back.

    Arguments:
      begin: See :data:`~db.failed.actions.Begin`. Bound to a tenant, it touches that one's rows alone, and neither
        events nor answers: nobody who is bound to one removes those.
      now: With a time zone.
      by: Who, for the history.
      batch: Rows in one transaction, at most; fewer where they take long.
      dry_run: Count, and change nothing: what is due at this moment, so that a row counts as one even if its payload
        does as well, and groups only if they are empty already.
      should_stop: Asked between batches.

    Raises:
      ValueError: When one of these cannot be so; the message names it.
    """
    if now.tzinfo is None:
        raise ValueError(f"now must have a time zone, not {now!r}")
    by = checked("by", by, NAME_AT_MOST)
    checked_batch(batch)
    with begin() as session:
        in_force, bound, of_all_tenants = rules(session), tenant_of(session), is_operators(session)
    run = _Run(begin, now, by, batch, dry_run, should_stop, bound)
    ending = [rule for rule in in_force if rule.keep_days is not None]
    for rule in ending:
        if rule.subject in STATUSES:
            run.rows(rule)
    for rule in ending:
        if rule.subject == "payload":
            run.payloads(rule)
    if of_all_tenants:
        for rule in ending:
            if rule.subject == "events":
                run.events(rule)
                run.replays(rule)
            elif rule.subject == "answers":
                run.answers(rule)
    run.groups(in_force)
    return run.done


# --- What is due ----------------------------------------------------------------------------------

# As it is at that moment: who says "for ever" does not have to wait for a run to end.
_KEEP: Final = f"""
    (SELECT CASE
        WHEN count(*) = 0 THEN CAST(:default_days AS integer)
        ELSE max(CASE WHEN keep_days > {KEEP_DAYS_AT_MOST} THEN {KEEP_DAYS_AT_MOST} ELSE keep_days END)
    END
    FROM worker_failed_job_retention
    WHERE subject = :subject AND tenant_id IS NOT DISTINCT FROM CAST(:of_tenant AS uuid))
"""
# Days of 24 hours, whatever the session's time zone. Null, and so no row, where it is for ever.
_CUTOFF: Final = f"(CAST(:now AS timestamptz) - {_KEEP} * interval '24 hours')"

# All are later than failed_at, by which indexes find them.
_MOMENT: Final = {
    "resolved": "coalesce(job.resolved_at, job.failed_at)",
    "abandoned": """
        coalesce((
            SELECT max(event.happened_at) FROM worker_failed_job_events event
            WHERE event.failed_job_id = job.id AND event.after ->> 'status' = 'abandoned'
        ), job.failed_at)
    """,
}


def _whose(rule: Rule, bound: UUID | None, table: str) -> str:
    """Return whose rows of ``table`` a rule is for, as a condition."""
    if rule.tenant_id is not None:
        return f"{table}.tenant_id = CAST(:of_tenant AS uuid)"
    without = (
        "NOT EXISTS (SELECT FROM worker_failed_job_retention own"
        f" WHERE own.subject = :subject AND own.tenant_id = {table}.tenant_id)"
    )
    # Said, although the policy sees to it: its OR keeps Postgres from some indexes.
    return without if bound is None else f"{table}.tenant_id = CAST(:bound AS uuid) AND {without}"


def _parameters(rule: Rule, bound: UUID | None, now: datetime) -> dict[str, Any]:
    return {
        "now": now,
        "subject": rule.subject,
        "of_tenant": rule.tenant_id,
        # A tenant's rule that is gone meanwhile has none to take its place here: it is for the next run.
        "default_days": DEFAULTS[rule.subject] if rule.tenant_id is None else None,
        **({"bound": bound} if rule.tenant_id is None and bound is not None else {}),
    }


def _due(rule: Rule, status: str, bound: UUID | None, now: datetime) -> Where:
    """Return which rows of ``status`` a rule says are due."""
    condition = f"job.status = '{status}' AND job.failed_at < {_CUTOFF} AND {_whose(rule, bound, 'job')}"
    if rule.subject in _MOMENT:
        condition += f" AND {_MOMENT[rule.subject]} < {_CUTOFF}"
    return Where(condition, _parameters(rule, bound, now))


# --- A run ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One application of the rules, and what it has done so far."""

    begin: Begin
    now: datetime
    by: str
    batch: int
    dry_run: bool
    should_stop: ShouldStop
    #: The tenant that sessions are bound to.
    bound: UUID | None
    done: Expired = field(default_factory=Expired)

    def rows(self, rule: Rule) -> None:
        """Remove the rows of a status that are due."""
        where = _due(rule, rule.subject, self.bound, self.now)
        if self.dry_run:
            self.done.rows += count(self.begin, where)
        elif not self._asked_to_stop():
            self.done.rows += self._note(remove(self.begin, where, **self._how(rule))).rows

    def payloads(self, rule: Rule) -> None:
        """Forget payloads that are due, status by status, because that is what the index begins with."""
        for status in STATUSES:
            where = _due(rule, status, self.bound, self.now)
            if self.dry_run:
                self.done.payloads += count(self.begin, where.but(HAS_PAYLOAD)).total()
            elif not self._asked_to_stop():
                self.done.payloads += self._note(erase(self.begin, where, **self._how(rule))).count

    def events(self, rule: Rule) -> None:
        """Remove the history that is due."""
        where = Where(
            f"event.happened_at < {_CUTOFF} AND {_whose(rule, None, 'event')} AND NOT ({_NEEDED})",
            _parameters(rule, None, self.now),
        )
        self.done.events += self._of("worker_failed_job_events event", "happened_at", where)

    def answers(self, rule: Rule) -> None:
        """Remove what a language model answered long enough ago."""
        where = Where(
            f"answer.answered_at < {_CUTOFF} AND {_whose(rule, None, 'answer')}",
            _parameters(rule, None, self.now),
        )
        self.done.answers += self._of("worker_llm_answers answer", "answered_at", where)

    def replays(self, rule: Rule) -> None:
        """Remove replays that ended as long ago as history that is due."""
        where = Where(
            f"replay.finished_at < {_CUTOFF} AND {_whose(rule, None, 'replay')}",
            _parameters(rule, None, self.now),
        )
        self.done.replays += self._of("worker_replays replay", "id", where)

    def groups(self, in_force: list[Rule]) -> None:
        """Remove groups that are nothing but a memory, and an old one."""
        of_all = {rule.subject: rule.keep_days for rule in in_force if rule.tenant_id is None}
        tenants = {rule.tenant_id for rule in in_force if rule.tenant_id is not None}
        for tenant_id in (None, *sorted(tenants)):
            own = {rule.subject: rule.keep_days for rule in in_force if rule.tenant_id == tenant_id}
            days = _remembered({**of_all, **own})
            if days is not None:
                condition = (
                    f"{' AND '.join(f'own.{status} = 0' for status in STATUSES)} AND own.last_seen < :before AND "
                    + (
                        "own.tenant_id = :tenant_id"
                        if tenant_id is not None
                        else "NOT EXISTS (SELECT FROM worker_failed_job_retention rule"
                        " WHERE rule.tenant_id = own.tenant_id)"
                    )
                )
                parameters = {"before": self.now - timedelta(days=days)}
                where = Where(condition, parameters if tenant_id is None else {**parameters, "tenant_id": tenant_id})
                self.done.groups += self._of("worker_failed_job_groups own", "id", where)

    def _of(self, table: str, key: str, where: Where) -> int:
        if self.dry_run:
            return count_in(self.begin, table, where)
        removed, stopped = remove_from(self.begin, table, key, where, batch=self.batch, should_stop=self.should_stop)
        self.done.stopped |= stopped
        return removed

    def _asked_to_stop(self) -> bool:
        self.done.stopped |= self.should_stop()
        return self.done.stopped

    def _how(self, rule: Rule) -> dict[str, Any]:
        return {
            "by": self.by,
            "reason": f"retention: {rule.subject} for {rule.keep_days} days",
            "batch": self.batch,
            "oldest_first": True,
            "should_stop": self.should_stop,
        }

    def _note(self, swept: Swept) -> Swept:
        self.done.held += swept.held
        self.done.stopped |= swept.stopped
        return swept


# Since when a row that is there still has been abandoned.
_NEEDED: Final = """
    (event.after ->> 'status' = 'abandoned') IS TRUE AND EXISTS (
        SELECT FROM worker_failed_jobs job WHERE job.id = event.failed_job_id AND job.status = 'abandoned'
    )
"""


def _remembered(keep: dict[Subject, int | None]) -> int | None:
    """Return for how many days a group without rows is: the most that anything of it is kept. None is for ever."""
    if any(keep[subject] is None for subject in ("resolved", "abandoned", "events")):
        return None
    longest = max(days for subject, days in keep.items() if subject not in {"payload", "answers"} and days is not None)
    return min(longest, KEEP_DAYS_AT_MOST)
