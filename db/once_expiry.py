"""Removes what :func:`db.once.once` recorded, once nothing can ask for it again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from db.failed.actions import Begin
from db.failed.batches import AT_ONCE, ShouldStop, Where, remove_from

# Whoever replays a failed job executes its message again, however old that is. A message id that no column takes stands
# here as a digest, and in its failed job as another, so that only whether there are any such can be told.
_DIGEST: Final = "~ '^[0-9a-f]{64}$'"
_NOT_NEEDED: Final = f"""
    NOT EXISTS (SELECT FROM worker_failed_jobs job WHERE job.task_id = done.message_id)
    AND NOT (
        coalesce(done.message_id {_DIGEST}, false)
        AND EXISTS (SELECT FROM worker_failed_jobs job WHERE job.task_id {_DIGEST})
    )
"""
#: By the beginning of what is recorded: for a message, and under a key of the caller's.
_KINDS: Final = ("message:", "key:")


def expire_once(
    begin: Begin,
    *,
    now: datetime,
    message_days: int | None,
    key_days: int | None,
    batch: int = AT_ONCE,
    should_stop: ShouldStop = lambda: False,
) -> tuple[int, bool]:
    """Remove what was recorded longer ago than that, and return how much that was, and whether it was asked to stop.

    What a message recorded that has a failed job stays, whatever its age: that may be replayed, and must not have its
    effect again.

    Arguments:
      begin: :func:`db.session.operator_transaction`.
      now: With a time zone.
      message_days, key_days: Days of 24 hours that what was recorded without a key, and with one, is kept; None is for
        ever.
      batch: Rows in one transaction, at most; fewer where they take long.
      should_stop: Asked between batches.
    """
    removed, stopped = 0, False
    for kind, days in zip(_KINDS, (message_days, key_days), strict=True):
        if days is None:
            continue
        where = Where(
            f"done.recorded_at < :before AND starts_with(done.key, :kind) AND {_NOT_NEEDED}",
            {"before": now - timedelta(days=days), "kind": kind},
        )
        count, told = remove_from(begin, "worker_once done", "recorded_at", where, batch=batch, should_stop=should_stop)
        removed, stopped = removed + count, stopped or told
    return removed, stopped
