"""How long failed jobs, what they were called with, and their history are kept; and what a language model answered.

A tenant's own rule wins over the rule for all, and that over the default. What nobody has looked at, and what is being
replayed, is kept for ever by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.events import NAME_AT_MOST, checked, write_event
from db.failed.statuses import STATUSES, Status
from db.tenancy import parse_uuid

#: A status; ``payload`` for arguments and originals, ``events`` for the history, ``answers`` for a language model's.
Subject = Literal[Status, "payload", "events", "answers"]
SUBJECTS: Final[tuple[Subject, ...]] = (*STATUSES, "payload", "events", "answers")

#: Days; None is for ever.
DEFAULTS: Final[dict[Subject, int | None]] = {
    "pending": None,
    "in_progress": None,
    "resolved": 90,
    "abandoned": 180,
    "payload": None,
    "events": 400,
    "answers": 400,
}

#: Longer than that, say for ever.
KEEP_DAYS_AT_MOST: Final = 36_500


@dataclass(frozen=True, slots=True)
class Rule:
    """How long something is kept.

    Attributes:
      subject: Rows of a status: after they were resolved, after they were abandoned, otherwise after they failed;
        ``payload``: after the row failed; ``events``: after they happened; ``answers``: after they were given.
      keep_days: None is for ever.
      tenant_id: Whose; None is for all that have no rule of their own.
      source: Where it comes from.
      changed_by, changed_at: Who made it; None for a default.
    """

    subject: Subject
    keep_days: int | None
    tenant_id: UUID | None
    source: Literal["default", "all", "tenant"]
    changed_by: str | None = None
    changed_at: datetime | None = None


def rules(session: Session) -> list[Rule]:
    """Return what holds for all, a rule for each subject, and after that what tenants have of their own.

    A session that is bound to a tenant sees the own ones of that tenant alone.
    """
    rows = session.execute(
        text("SELECT subject, keep_days, tenant_id, changed_by, changed_at FROM worker_failed_job_retention")
    ).all()
    made = [Rule(source="all" if row.tenant_id is None else "tenant", **row._mapping) for row in rows]
    of_all = {rule.subject: rule for rule in made if rule.tenant_id is None}
    return [
        *(of_all.get(subject) or Rule(subject, DEFAULTS[subject], None, "default") for subject in SUBJECTS),
        *sorted(
            (rule for rule in made if rule.tenant_id is not None),
            key=lambda rule: (str(rule.tenant_id), SUBJECTS.index(rule.subject)),
        ),
    ]


def rules_for(session: Session, tenant_id: UUID) -> list[Rule]:
    """Return the rules that hold for a tenant, one for each subject, its own or not."""
    every = rules(session)
    own = {rule.subject: rule for rule in every if rule.tenant_id == tenant_id}
    return [own.get(rule.subject, rule) for rule in every if rule.tenant_id is None]


def set_rule(
    session: Session, subject: str, keep_days: int | None, *, by: str, tenant_id: UUID | str | None = None
) -> bool:
    """Make a rule, with an event in the same transaction; return whether that changed anything.

    Arguments:
      session: An operator's. Tenants may read the rules that hold for them, and make none.
      subject: See :data:`Subject`.
      keep_days: 0 to 36,500, or None for ever.
      by: Who.
      tenant_id: Whose it is; without one it is for all that have none of their own.

    Raises:
      ValueError: When one of these cannot be so; the message names it.
      PermissionError: When the session is bound to a tenant.
    """
    if keep_days is not None and (
        not isinstance(keep_days, int) or isinstance(keep_days, bool) or not 0 <= keep_days <= KEEP_DAYS_AT_MOST
    ):
        raise ValueError(f"keep_days must be 0 to {KEEP_DAYS_AT_MOST}, or None for ever, not {keep_days!r}")
    return _change(session, subject, tenant_id, by, {"keep_days": keep_days})


def unset_rule(session: Session, subject: str, *, by: str, tenant_id: UUID | str | None = None) -> bool:
    """Remove a rule, so that the one for all holds, or the default; otherwise as :func:`set_rule`."""
    return _change(session, subject, tenant_id, by, None)


def _change(
    session: Session, subject: str, tenant_id: UUID | str | None, by: str, now: dict[str, int | None] | None
) -> bool:
    if subject not in SUBJECTS:
        raise ValueError(f"subject must be one of {', '.join(SUBJECTS)}, not {subject!r}")
    tenant_id = None if tenant_id is None else parse_uuid("tenant_id", tenant_id)
    by = checked("by", by, NAME_AT_MOST)
    operators_only(session, "make a rule of retention")
    # Two who change one at once come one after the other, and each event has the right before.
    session.execute(text("SELECT pg_advisory_xact_lock(hashtext('worker_failed_job_retention'))"))
    which = {"tenant_id": tenant_id, "subject": subject}
    found = session.execute(
        text(f"SELECT keep_days FROM worker_failed_job_retention WHERE {_WHICH}"), which
    ).one_or_none()
    before = None if found is None else {"keep_days": found.keep_days}
    if before == now:
        return False
    if now is None:
        session.execute(text(f"DELETE FROM worker_failed_job_retention WHERE {_WHICH}"), which)
    else:
        session.execute(
            text(
                """
                INSERT INTO worker_failed_job_retention (tenant_id, subject, keep_days, changed_by)
                VALUES (:tenant_id, :subject, :keep_days, :by)
                ON CONFLICT (tenant_id, subject) DO UPDATE
                SET keep_days = excluded.keep_days, changed_by = excluded.changed_by, changed_at = now()
                """
            ),
            {**which, **now, "by": by},
        )
    write_event(
        session,
        "retention_changed",
        by=by,
        tenant_id=tenant_id,
        before=None if before is None else {"subject": subject, **before},
        after=None if now is None else {"subject": subject, **now},
    )
    return True


_WHICH: Final = "subject = :subject AND tenant_id IS NOT DISTINCT FROM CAST(:tenant_id AS uuid)"


def is_operators(session: Session) -> bool:
    """Tell whether a session sees every tenant. Postgres knows, also where there is one credential for both."""
    return bool(session.execute(text("SELECT current_setting('app.execution_context', true) = 'operator'")).scalar())


def operators_only(session: Session, what: str) -> None:
    """Raise :exc:`PermissionError` unless a session is an operator's."""
    if not is_operators(session):
        raise PermissionError(f"only an operator may {what}: use operator_transaction()")
