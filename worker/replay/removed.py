"""Sets failed jobs back whose replays somebody removed from Redis before they ran.

Removing a message and remembering whose replay it was is one step in Redis, and what is remembered there is forgotten
once Postgres knows it: whoever dies between, no job stays ``in_progress`` for a message that is gone.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Final
from uuid import UUID

from db.failed.actions import Begin
from db.failed.events import NAME_AT_MOST, REASON_AT_MOST
from db.replays import claims
from middleware.lua_scripts import Scripts

#: Items that are read from Redis and released in one transaction.
AT_ONCE: Final = 500


def note(by: str, reason: str) -> str:
    """Return what is remembered of a removal: who, and why."""
    return json.dumps({"by": by, "reason": reason})


def release_removed(run: Scripts, begin: Begin) -> int:
    """Return to ``pending`` the jobs whose replays were removed, and return how many there were.

    The history says who removed the message, and why. Doing it twice, or in two processes, is harmless; a job that is
    not being replayed by the removed message any more is left alone. Where nothing was removed, Postgres is not asked.

    Arguments:
      run: Redis' scripts.
      begin: An operator's transactions.

    Raises:
      ConnectionClosed: For any error of Redis.
      sqlalchemy.exc.SQLAlchemyError: When Postgres is away. What is left is released the next time.
    """
    done = 0
    while given := run("removed_replays", AT_ONCE):
        by_note = defaultdict[bytes, list[bytes]](list)
        for item, said in zip(given[::2], given[1::2], strict=True):
            by_note[said].append(item)
        with begin() as session:
            for said, items in by_note.items():
                by, why = _read(said)
                done += claims.release(session, _ids(items), by=by, why=why, states=("claimed", "sent"))
        run("forget_removed_replays", *given[::2])
    return done


def _read(said: bytes) -> tuple[str, str]:
    told: dict[str, Any] = json.loads(said)
    by, reason = (str(told[name]).replace("\0", "") for name in ("by", "reason"))
    return by[:NAME_AT_MOST], f"its message was removed{f': {reason}' if reason else ''}"[:REASON_AT_MOST]


def _ids(items: Collection[bytes]) -> list[UUID]:
    """Return those that are ids: whoever sends messages may write anything there."""
    found = []
    for item in items:
        try:
            found.append(UUID(item.decode()))
        except ValueError:
            continue
    return found
