"""Says what a replay would do with the code, the tenants and the workers of today, and does nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from db.failed.filters import Filter, spelled_out
from db.replays import claims
from db.replays.runs import Replay, ReplaySettings
from db.sealing import Keys
from db.session import tenant_of
from worker.replay.messages import NotReplayable, content_of
from worker.replay.today import Today

#: Jobs looked at in one statement, and different reasons that are counted by themselves.
AT_ONCE: Final = 500
REASONS: Final = 50


@dataclass(slots=True)
class DryRun:
    """What a replay would do.

    Attributes:
      matched: Jobs that it is for, of those that were looked at.
      would_go: Those of them that would be sent.
      refused: Why the others would not, and how many for each reason.
      examples: A job of each reason.
    """

    matched: int = 0
    would_go: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    examples: dict[str, UUID] = field(default_factory=dict)

    @property
    def by_number(self) -> list[tuple[str, int]]:
        """Reasons and how many would not go for each, the most first."""
        return sorted(self.refused.items(), key=lambda one: (-one[1], one[0]))

    def add(self, job_id: UUID, reason: str) -> None:
        """Count one that would not go."""
        if reason not in self.refused and len(self.refused) >= REASONS:
            reason = "other reasons"
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self.examples.setdefault(reason, job_id)


def dry_run(
    session: Session,
    where: Filter,
    settings: ReplaySettings,
    today: Today,
    *,
    now: datetime,
    keys: Keys | None = None,
    renamed: Mapping[str, str] | None = None,
    at_most: int | None = None,
    progress: Callable[[DryRun], object] = lambda _: None,
) -> DryRun:
    """Check each job that a replay would take, with few of them in memory at a time.

    Arguments:
      session: An operator's: it reads originals.
      where: Which; as for :func:`db.replays.runs.create`.
      settings: Of the replay that is thought of.
      today: With every actor imported.
      now: With a time zone.
      keys: Of ``FAILED_JOB_KEYS``.
      renamed: Today's names of actors that had others.
      at_most: Jobs to look at, but for the rest of a statement; all by default.
      progress: Told after each statement.
    """
    replay = Replay(
        id=UUID(int=0),
        tenant_id=tenant_of(session),
        state="running",
        why=None,
        filter=where,
        settings=settings,
        created_by="",
        reason=None,
        created_at=now,
        finished_at=None,
        matched=None,
        runner=None,
        until_at=datetime.max.replace(tzinfo=UTC),
    )
    found, come_to = DryRun(), None
    spelled = spelled_out(session, where)
    while jobs := claims.matching(session, replay, come_to, AT_ONCE, spelled):
        today.look_up(job.tenant_id for job in jobs)
        for job in jobs:
            found.matched += 1
            try:
                content = content_of(job, keys=keys, actor=settings.actor, renamed=renamed)
                today.check(content, job.tenant_id)
            except NotReplayable as e:
                found.add(job.id, str(e))
            else:
                found.would_go += 1
        progress(found)
        if at_most is not None and found.matched >= at_most:
            break
        come_to = (jobs[-1].failed_at, jobs[-1].id)
    return found
