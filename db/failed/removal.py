"""Removes failed jobs, or only what they were called with, because somebody says so."""

from __future__ import annotations

from db.failed.actions import Begin
from db.failed.batches import (
    AT_ONCE,
    HAS_PAYLOAD,
    Progress,
    ShouldStop,
    Swept,
    Where,
    count,
    erase,
    remove,
)
from db.failed.events import NAME_AT_MOST, REASON_AT_MOST, checked
from db.failed.filters import Filter, InvalidFilter, spelled_out

__all__ = ["Swept", "forget", "purge"]


def purge(
    begin: Begin,
    where: Filter,
    *,
    by: str,
    reason: str | None,
    in_progress: bool = False,
    batch: int = AT_ONCE,
    dry_run: bool = False,
    should_stop: ShouldStop = lambda: False,
    progress: Progress = lambda _: None,
) -> Swept:
    """Remove jobs, with their originals and deliveries. Of each an event remains: who, why, and what row it was.

    Arguments:
      begin: See :data:`~db.failed.actions.Begin`. Bound to a tenant, it touches that one's jobs alone.
      where: Which.
      by: Who.
      reason: Why.
      in_progress: Also those whose replay runs. If that fails, it makes a row again.
      batch: Rows in one transaction, at most; fewer where they take long.
      dry_run: Count, and remove nothing.
      should_stop: Asked between batches.

    Raises:
      ValueError: When ``by`` is empty, it or ``reason`` is too long, or ``batch`` is less than 1.
      InvalidFilter: When ``where`` is empty: that is every job there is.
    """
    by, reason = _signed(by, reason)
    chosen = _chosen(begin, where)
    kept = chosen if in_progress else chosen.but("job.status <> 'in_progress'")
    if dry_run:
        swept = Swept(rows=count(begin, kept))
    else:
        swept = remove(begin, kept, by=by, reason=reason, batch=batch, should_stop=should_stop, progress=progress)
    if not in_progress:
        swept.spared = count(begin, chosen.but("job.status = 'in_progress'")).total()
    return swept


def forget(
    begin: Begin,
    where: Filter,
    *,
    by: str,
    reason: str | None,
    batch: int = AT_ONCE,
    dry_run: bool = False,
    should_stop: ShouldStop = lambda: False,
    progress: Progress = lambda _: None,
) -> Swept:
    """Remove what jobs were called with, for good: arguments and original. The rows stay, and cannot be replayed.

    Nothing of the arguments is left in our tables, except where the application itself put some into an exception's
    message: that, the traceback and the attempts, which are redacted when they are recorded, are what a failure is
    understood by, and stay. Postgres' dead rows, its log and backups keep the arguments for as long as they keep
    anything. Doing it twice is harmless; a replay that was on its way and fails brings its arguments back.

    Otherwise as :func:`purge`, and of jobs in progress, too.
    """
    by, reason = _signed(by, reason)
    chosen = _chosen(begin, where)
    if dry_run:
        return Swept(rows=count(begin, chosen.but(HAS_PAYLOAD)))
    return erase(begin, chosen, by=by, reason=reason, batch=batch, should_stop=should_stop, progress=progress)


def _signed(by: str, reason: str | None) -> tuple[str, str | None]:
    return checked("by", by, NAME_AT_MOST), checked("reason", reason, REASON_AT_MOST) if reason else None


def _chosen(begin: Begin, where: Filter) -> Where:
    if where.is_empty:
        raise InvalidFilter("say which jobs: by id, or by what they have in common")
    with begin() as session:
        return Where(*spelled_out(session, where).where())
