"""Messages as they were fetched, byte for byte, and how they are kept: encrypted where ``FAILED_JOB_KEYS`` is set."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import KeyMissing
from db.sealing import SETTING, Keys

#: What stands before one that is encrypted: this, and the id of the key; and before one that is not and would look so.
SEALED: Final = b"dramaturg-sealed:"
_PLAIN: Final = b"dramaturg-plain:"


def as_kept(original: bytes, key_id: str | None) -> bytes:
    """Return an original as it stands in the table.

    Arguments:
      original: What was fetched, or what it was sealed to.
      key_id: Names the key that sealed it; None where it is as it was fetched.
    """
    if key_id is not None:
        return SEALED + key_id.encode("ascii") + b":" + original
    return _PLAIN + original if original.startswith((SEALED, _PLAIN)) else original


def opened(kept: bytes, keys: Keys | None) -> bytes:
    """Return what was fetched.

    Arguments:
      kept: As it stands in the table.
      keys: Of ``FAILED_JOB_KEYS``; None where it is not set.

    Raises:
      KeyMissing: When it is encrypted, and its key is none of ``keys``.
      SealBroken: When it was changed since.
    """
    if kept.startswith(_PLAIN):
        return kept[len(_PLAIN) :]
    if not kept.startswith(SEALED):
        return kept
    key_id, _, sealed = kept[len(SEALED) :].partition(b":")
    name = key_id.decode("ascii", "replace")
    if keys is None:
        raise KeyMissing(f"{SETTING} is not set, and this was encrypted with the key {name!r}")
    return keys.open(sealed, name)


def get_original(session: Session, failed_job_id: UUID, keys: Keys | None) -> bytes | None:
    """Return a failed job's message as it was fetched; None where none is kept. Otherwise as :func:`opened`.

    Arguments:
      session: An operator's; nobody who is bound to a tenant may read originals.
    """
    kept: bytes | None = session.execute(
        text("SELECT original FROM worker_failed_job_originals WHERE failed_job_id = :id"), {"id": failed_job_id}
    ).scalar()
    return None if kept is None else opened(kept, keys)


def sealed_with(session: Session) -> dict[str | None, int]:
    """Return how many originals, arguments that people edited, and messages of the outbox each key has sealed, by its
    id; None for those that are not encrypted.

    A key may go once nothing is sealed with it, here and in the spool (:func:`worker.queue_admin.sealed_in_spool`).

    Arguments:
      session: An operator's.
    """
    # Tenants write originals: what follows the mark may be anything.
    rows = session.execute(
        text(
            """
            SELECT CASE WHEN starts THEN encode(substring(kept FROM :from FOR 16), 'escape') END, count(*)
            FROM (
                SELECT kept, substring(kept FOR :length) = :mark AS starts FROM (
                    SELECT original AS kept FROM worker_failed_job_originals
                    UNION ALL SELECT edit FROM worker_replay_edits
                    UNION ALL SELECT message FROM worker_outbox
                ) all_kinds
            ) each GROUP BY 1
            """
        ),
        {"from": len(SEALED) + 1, "length": len(SEALED), "mark": SEALED},
    )
    return {key: int(count) for key, count in rows}
