"""Arguments that people changed: what a replay sends instead of a job's own, and what those were.

They are as they are, not redacted, so they stand where originals do: in a table that only operators read, encrypted
where ``FAILED_JOB_KEYS`` is set. Of an edit others see its id, and which arguments it changed. It is forgotten, and
purged, with its job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.originals import as_kept, opened
from db.sealing import Keys


@dataclass(frozen=True, slots=True)
class Arguments:
    """What an actor is called with."""

    args: list[Any]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Edit:
    """Arguments before and after a person changed them."""

    before: Arguments
    after: Arguments
    #: What differs, for the eye: of each argument its name, and what it was and is, redacted.
    shown: list[dict[str, Any]] = field(default_factory=list)


def keep(session: Session, failed_job_id: UUID, edit: Edit, keys: Keys | None) -> UUID:
    """Keep an edit of a job, and return the edit's id.

    Arguments:
      session: An operator's.
      failed_job_id: Of the job, which must be there.
      edit: What it is.
      keys: Of ``FAILED_JOB_KEYS``.
    """
    data = json.dumps(
        {
            "before": {"args": edit.before.args, "kwargs": edit.before.kwargs},
            "after": {"args": edit.after.args, "kwargs": edit.after.kwargs},
            "shown": edit.shown,
        }
    ).encode()
    kept = as_kept(data, None) if keys is None else as_kept(*keys.seal(data))
    edit_id: UUID = session.execute(
        text(
            """
            INSERT INTO worker_replay_edits (failed_job_id, tenant_id, edit)
            SELECT id, tenant_id, :edit FROM worker_failed_jobs WHERE id = :id RETURNING id
            """
        ),
        {"id": failed_job_id, "edit": kept},
    ).scalar_one()
    return edit_id


def get(session: Session, edit_id: UUID, failed_job_id: UUID, keys: Keys | None) -> Edit | None:
    """Return an edit; None where it is none of that job, or was forgotten.

    Raises:
      KeyMissing: When it is encrypted, and its key is none of ``keys``.
      SealBroken: When it was changed since.
    """
    # Of that job: whoever may make a replay may name any edit.
    kept: bytes | None = session.execute(
        text("SELECT edit FROM worker_replay_edits WHERE id = :id AND failed_job_id = :job"),
        {"id": edit_id, "job": failed_job_id},
    ).scalar()
    if kept is None:
        return None
    found = json.loads(opened(kept, keys))
    return Edit(Arguments(**found["before"]), Arguments(**found["after"]), found["shown"])
