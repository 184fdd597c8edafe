"""Dry runs from the console: bounded in jobs and in time, and one at a time, for each reads originals."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import redis
from dramatiq.errors import ConnectionClosed
from sqlalchemy import text

from db.errors import ConfigurationError
from db.failed import Filter
from db.replays.runs import ReplaySettings
from worker.console.access import Work
from worker.console.deployment import Deployment
from worker.console.problems import Illegal
from worker.replay.dry_run import DryRun, dry_run
from worker.replay.making import make_today

#: Jobs that are looked at, and seconds that it may take.
AT_MOST: Final = 5_000
WITHIN: Final = 5.0


@dataclass(frozen=True, slots=True)
class Looked:
    """What a replay would do, as far as was looked.

    Attributes:
      jobs: How many were looked at: those that failed first.
      would_go: Those of them that would be sent.
      refused: Why others would not, how many, and one of them; the most frequent reason first.
      in_time: Whether there was time to look at as many as that.
    """

    jobs: int
    would_go: int
    refused: list[tuple[str, int, UUID]]
    in_time: bool


class _TimeIsUp(Exception):
    """Raised to end a dry run."""


def look(work: Work, deployment: Deployment, client: redis.Redis, where: Filter, settings: ReplaySettings) -> Looked:
    """Return what a replay would do now.

    Arguments:
      work: Of somebody who sees all tenants.
      deployment: Has the actors.
      client: Of Redis, which knows who consumes what.
      where: Which jobs, held fast.
      settings: Of the replay that is thought of.

    Raises:
      Illegal: When another dry run is under way in this process.
      ConfigurationError: When the application cannot be imported here, or Redis not be asked.
    """
    broker = deployment.broker
    if not deployment.dry_run.acquire(blocking=False):
        raise Illegal("somebody else's dry run is under way here: try again in a moment")
    try:
        try:
            today = make_today(deployment.settings, broker, client, knows_all=True)
        except (ConnectionClosed, OSError) as e:
            raise ConfigurationError(f"Redis cannot be asked which queues are consumed: {type(e).__name__}") from None
        ends_at = time.monotonic() + WITHIN
        looked, in_time = DryRun(), True

        def progress(found: DryRun) -> None:
            nonlocal looked
            looked = found
            if time.monotonic() > ends_at and found.matched < AT_MOST:
                raise _TimeIsUp

        with work.begin() as session:
            session.execute(text(f"SET LOCAL statement_timeout = {int(WITHIN * 1000)}"))
            try:
                looked = dry_run(
                    session,
                    where,
                    settings,
                    today,
                    now=work.now,
                    keys=deployment.settings.keys,
                    renamed=deployment.settings.renamed,
                    at_most=AT_MOST,
                    progress=progress,
                )
            except _TimeIsUp:
                in_time = False
    finally:
        deployment.dry_run.release()
    refused = [(reason, number, looked.examples[reason]) for reason, number in looked.by_number]
    return Looked(looked.matched, looked.would_go, refused, in_time)
