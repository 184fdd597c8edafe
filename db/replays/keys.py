"""Replays that are asked for with a key, so that whoever asks twice, because he heard no answer, gets one."""

from __future__ import annotations

import hashlib
import json
from typing import Final
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.failed.events import NAME_AT_MOST, checked
from db.failed.filters import Filter
from db.replays import runs
from db.replays.runs import REQUEST, AlreadyMade, IllegalChange, ReplaySettings
from db.session import tenant_of

#: Hours for which a key gives the replay that was made with it.
HOLDS: Final = 24


def create(
    session: Session,
    where: Filter,
    settings: ReplaySettings,
    *,
    key: str,
    request: str,
    by: str,
    reason: str | None = None,
) -> UUID:
    """Make a replay and return its id; that of the one that is there, where the same author, bound to the same tenant,
    gave the same key before, or another of his requests does at the same time.

    A caller asks :func:`made_with` before it looks which jobs there are, because the first may have sent them.

    Arguments:
      request: What was asked for, as it came; with the same key it must be the same.

    Raises:
      ValueError: As :func:`db.replays.runs.create`; or when ``key`` is empty or too long.
      IllegalChange: When the key was given for another request, or longer ago than :data:`HOLDS` hours.
    """
    replay_id = _id_with(session, key, by)
    try:
        return runs.create(
            session, where, settings, by=by, reason=reason, replay_id=replay_id, request=_digest(request)
        )
    except AlreadyMade:
        # Another request was first, and has ended by now.
        found = made_with(session, key, by=by, request=request)
        if found is None:
            raise IllegalChange(f"key {key!r} cannot be used: give another") from None
        return found


def made_with(session: Session, key: str, *, by: str, request: str) -> UUID | None:
    """Return the id of the replay that :func:`create` made with a key; None where there is none. As there."""
    replay_id = _id_with(session, key, by)
    row = session.execute(
        text(
            f"""
            SELECT settings ->> '{REQUEST}' AS request,
                to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS at,
                created_at < now() - make_interval(hours => {HOLDS}) AS is_old
            FROM worker_replays WHERE id = :id
            """
        ),
        {"id": replay_id},
    ).first()
    if row is None:
        return None
    if row.is_old:
        raise IllegalChange(
            f"key {key!r} made replay {replay_id} at {row.at} UTC, more than {HOLDS} hours ago: give another"
        )
    if row.request != _digest(request):
        raise IllegalChange(f"key {key!r} made replay {replay_id}, for another request: give another")
    return replay_id


def _id_with(session: Session, key: str, by: str) -> UUID:
    whose = [str(tenant_of(session)), checked("by", by, NAME_AT_MOST), checked("key", key, NAME_AT_MOST)]
    return uuid5(NAMESPACE_URL, f"dramaturg:replay:{json.dumps(whose)}")


def _digest(request: str) -> str:
    return hashlib.sha256(request.encode("utf-8", "surrogatepass")).hexdigest()
