"""What a person does to failed jobs by hand: resolve, abandon, reopen, note.

The guard stands in the statement, so two people at once, or a double click, do no harm. Many jobs are changed in
batches, each a short transaction of its own: failures that are recorded meanwhile wait for none of them long.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.events import REASON_AT_MOST, checked, say
from db.failed.filters import Filter, InvalidFilter, spelled_out
from db.failed.statuses import Status, sources, why_not

#: Gives a transaction: :func:`db.session.operator_transaction`, or bound to a tenant :func:`db.session.transaction`.
Begin = Callable[[], AbstractContextManager[Session]]

#: Jobs changed in one transaction.
AT_ONCE: Final = 500


@dataclass(slots=True)
class Moved:
    """What became of it.

    Attributes:
      moved: Ids of the jobs that were changed; of many the first thousand.
      count: How many were.
      refused: By id, those that were named and not changed, and why.
    """

    moved: list[UUID] = field(default_factory=list)
    count: int = 0
    refused: dict[UUID, str] = field(default_factory=dict)

    def add(self, ids: list[UUID]) -> None:
        """Count some more."""
        self.moved += ids[: max(0, 1_000 - len(self.moved))]
        self.count += len(ids)


def resolve(
    begin: Begin, where: Filter, *, by: str, note: str, progress: Callable[[int], object] | None = None
) -> Moved:
    """Close jobs for which there is nothing left to do.

    Arguments:
      begin: See :data:`Begin`. Bound to a tenant, it touches that one's jobs alone.
      where: Which; those that cannot be resolved are left, and where they were named by id, refused.
      by: Who.
      note: What was done; it is added to ``remediation_notes``.
      progress: Told after each batch how many jobs have been changed so far.

    Raises:
      ValueError: When ``by`` or ``note`` is empty or too long.
      InvalidFilter: When ``where`` is empty: that is every job there is.
    """
    return _move(begin, where, "resolved", by=by, reason=checked("note", note, REASON_AT_MOST), progress=progress)


def abandon(
    begin: Begin, where: Filter, *, by: str, reason: str, progress: Callable[[int], object] | None = None
) -> Moved:
    """Give jobs up, for a reason, which is added to ``remediation_notes``. Otherwise as :func:`resolve`."""
    return _move(begin, where, "abandoned", by=by, reason=checked("reason", reason, REASON_AT_MOST), progress=progress)


def reopen(
    begin: Begin, where: Filter, *, by: str, reason: str | None = None, progress: Callable[[int], object] | None = None
) -> Moved:
    """Return abandoned jobs, and those whose replay is not to be waited for any more, to ``pending``.

    Otherwise as :func:`resolve`.
    """
    reason = checked("reason", reason, REASON_AT_MOST) if reason else None
    return _move(begin, where, "pending", by=by, reason=reason, progress=progress)


def note(begin: Begin, where: Filter, *, by: str, note: str, progress: Callable[[int], object] | None = None) -> Moved:
    """Add to the ``remediation_notes`` of jobs, whatever their status. Otherwise as :func:`resolve`."""
    return _move(begin, where, None, by=by, reason=checked("note", note, REASON_AT_MOST), progress=progress)


_SET: Final[dict[Status | None, str]] = {
    None: "",
    "pending": "status = 'pending', ",
    "in_progress": "status = 'in_progress', ",
    "abandoned": "status = 'abandoned', ",
    "resolved": "status = 'resolved', resolved_at = now(), ",
}

#: Whoever changes rows locks their groups first, in one order, as those who record failures do.
LOCK_GROUPS: Final = """
    SELECT FROM worker_failed_job_groups own
    WHERE (own.fingerprint, own.id) IN (
        SELECT known.fingerprint, known.id
        FROM worker_failed_job_details details
        JOIN worker_failed_job_groups known
          ON known.fingerprint = details.fingerprint
            AND (known.tenant_id = details.tenant_id OR (known.tenant_id IS NULL AND details.tenant_id IS NULL))
        WHERE details.failed_job_id = ANY(:ids)
    )
    ORDER BY own.tenant_id, own.fingerprint FOR UPDATE
"""


def _move(
    begin: Begin,
    where: Filter,
    to: Status | None,
    *,
    by: str,
    reason: str | None,
    progress: Callable[[int], object] | None,
) -> Moved:
    if where.is_empty:
        raise InvalidFilter("say which jobs: by id, or by what they have in common")
    result = Moved()
    # Of those that were named, all that were changed, so that none of them counts as refused.
    changed: set[UUID] = set()
    after: UUID | None = None
    while True:
        with begin() as session:
            say(session, by=by, reason=reason)
            ids = _pick(session, where, to, after)
            if ids:
                session.execute(text(LOCK_GROUPS), {"ids": ids})
                batch = _change(session, ids, to, reason)
        if ids:
            # Committed by now.
            result.add(batch)
            changed.update(batch if where.ids else ())
        if progress is not None:
            progress(result.count)
        if len(ids) < AT_ONCE:
            break
        after = ids[-1]
    if where.ids:
        with begin() as session:
            result.refused = _refused(session, where, to, changed)
    return result


def _pick(session: Session, where: Filter, to: Status | None, after: UUID | None) -> list[UUID]:
    condition, parameters = spelled_out(session, where).where()
    if to is not None:
        condition += " AND job.status = ANY(:sources)"
        parameters["sources"] = list(sources(to))
    if after is not None:
        # By id, so that none is looked at twice, whatever becomes of it.
        condition += " AND job.id > :after"
        parameters["after"] = after
    found = session.scalars(
        text(
            f"""
            SELECT job.id FROM worker_failed_jobs job
            LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
            WHERE {condition} ORDER BY job.id LIMIT {AT_ONCE} FOR UPDATE OF job SKIP LOCKED
            """
        ),
        parameters,
    )
    return list(found.all())


def _change(session: Session, ids: list[UUID], to: Status | None, reason: str | None) -> list[UUID]:
    guard = "" if to is None else " AND status = ANY(:sources)"
    parameters: dict[str, Any] = {"ids": ids, "reason": reason}
    if to is not None:
        parameters["sources"] = list(sources(to))
    changed = session.scalars(
        text(
            f"""
            UPDATE worker_failed_jobs
            SET {_SET[to]}remediation_notes = nullif(concat_ws(E'\\n', remediation_notes, CAST(:reason AS text)), '')
            WHERE id = ANY(:ids){guard} RETURNING id
            """
        ),
        parameters,
    )
    return sorted(changed.all())


def _refused(session: Session, where: Filter, to: Status | None, moved: set[UUID]) -> dict[UUID, str]:
    left = [job_id for job_id in where.ids if job_id not in moved]
    if not left:
        return {}
    found = {
        row.id: row.status
        for row in session.execute(
            text("SELECT id, status FROM worker_failed_jobs WHERE id = ANY(:ids)"), {"ids": left}
        )
    }
    return {
        job_id: "is not there"
        if job_id not in found
        else "does not match the other filters, or somebody else holds it"
        if to is None or found[job_id] in sources(to)
        else why_not(found[job_id], to)
        for job_id in left
    }
