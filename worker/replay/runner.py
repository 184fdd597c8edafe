"""Runs a replay to its end: step by step up its ramp, and no further when too many jobs fail again.

Everything it knows stands in Postgres, so another process goes on where this one died; and what it does twice happens
once, see :mod:`db.replays.claims`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final
from uuid import UUID

from loguru import logger

from db.errors import KeyMissing, SealBroken
from db.failed.actions import Begin
from db.replays import claims, edits, runs
from db.replays.claims import Candidate, Claim, LeaseTaken
from db.replays.edits import Arguments
from db.replays.runs import Replay
from db.sealing import Keys
from middleware.lua_scripts import Scripts
from middleware.replays import option
from worker.replay.messages import Content, NotReplayable, content_of
from worker.replay.ramp import allowed, to_send, too_many_failed
from worker.replay.sending import send, withdraw
from worker.replay.today import Today

#: Jobs claimed and sent at a time.
AT_ONCE: Final = 500
#: Seconds between two looks at how jobs have ended.
LOOK_EVERY: Final = 0.5


class Runner:
    """Runs replays in this process.

    Arguments:
      begin: An operator's transactions; :func:`db.session.operator_transaction`.
      run: Redis' scripts.
      name: Names this process, and no other.
      today: Checks what is to be sent; made anew for each look at the workers.
      keys: Of ``FAILED_JOB_KEYS``.
      renamed: Today's names of actors that had others.
      wait: Waits so many seconds, and tells whether to stop.
      clock: Seconds, of a clock that only goes on.
    """

    def __init__(
        self,
        begin: Begin,
        run: Scripts,
        name: str,
        today: Callable[[], Today],
        *,
        keys: Keys | None = None,
        renamed: Mapping[str, str] | None = None,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._begin = begin
        self._run = run
        self._name = name
        self._today = today
        self._keys = keys
        self._renamed = renamed or {}
        self._wait = wait
        self._clock = clock

    def run_to_end(self, replay_id: UUID, progress: Callable[[Replay], object] = lambda _: None) -> Replay | None:
        """Run a replay until it ends, is paused, or somebody else runs it.

        Arguments:
          replay_id: Which.
          progress: Told how far it is, after each step.

        Returns:
          How it stands then; None where it is not this process' to run.

        Raises:
          ConnectionClosed: When Redis is away. It goes on when somebody runs it again.
          sqlalchemy.exc.SQLAlchemyError: When Postgres is away; likewise.
        """
        with self._begin() as session:
            if runs.take(session, self._name, replay_id) is None:
                return None
        try:
            return self._go_on(replay_id, progress)
        finally:
            self._leave(replay_id)

    def _leave(self, replay_id: UUID) -> None:
        try:
            with self._begin() as session:
                runs.leave(session, self._name, replay_id)
        except Exception as e:  # noqa: BLE001 - its lease ends by itself, and what went wrong before is to be told
            logger.warning("replay {} cannot be left to others yet: {}", replay_id, type(e).__name__)

    def _go_on(self, replay_id: UUID, progress: Callable[[Replay], object]) -> Replay | None:
        self._send_what_was_claimed(replay_id)
        budget, asked, exhausted = 0.0, self._clock(), False
        while True:
            with self._begin() as session:
                if runs.take(session, self._name, replay_id) is None:
                    return self._as_it_stands(replay_id, progress)
                replay = runs.get(session, replay_id)
                assert replay is not None  # noqa: S101 - taken in this transaction
                latest = claims.latest_outcomes(session, replay_id, replay.settings.window)
                why = too_many_failed(replay.settings, latest)
                if why is not None:
                    runs.stop(session, replay_id, runner=self._name, why=why)
                elif exhausted and not replay.under_way:
                    runs.finish(session, replay_id, runner=self._name)
            progress(replay)
            if why is not None or (exhausted and not replay.under_way):
                return self._as_it_stands(replay_id, progress)
            now = self._clock()
            budget, asked = to_send(replay.settings.rate, now - asked, budget), now
            room = allowed(replay.settings, replay.items.get("succeeded", 0)) - replay.under_way
            count = int(min(room, budget, AT_ONCE)) if not exhausted else 0
            if count > 0:
                try:
                    came, exhausted = self._step(replay, count)
                except LeaseTaken:
                    return self._as_it_stands(replay_id, progress)
                budget -= came
                if came and budget >= 1 and room > came:
                    continue
            if self._wait(LOOK_EVERY):
                return self._as_it_stands(replay_id, progress)

    def _as_it_stands(self, replay_id: UUID, progress: Callable[[Replay], object]) -> Replay | None:
        with self._begin() as session:
            replay = runs.get(session, replay_id)
        if replay is not None:
            progress(replay)
        return replay

    def _step(self, replay: Replay, count: int) -> tuple[int, bool]:
        """Claim and send some more; return how many, and whether there are none beyond them."""
        today = self._today()
        with self._begin() as session:
            if replay.matched is None:
                claims.count_matching(session, replay)
            jobs = claims.matching(session, replay, claims.come_to(session, replay.id), count)
            if not jobs:
                return 0, True
            ready, refused = self._ready(replay, jobs, today)
            claimed = claims.claim(session, replay, jobs, refused, runner=self._name)
        # Committed: whatever happens from here on, somebody sends them or lets them go.
        self._send(claimed, ready)
        return len(claimed), len(jobs) < count

    def _ready(
        self, replay: Replay, jobs: Collection[Candidate], today: Today
    ) -> tuple[dict[UUID, Content], dict[UUID, str]]:
        ready: dict[UUID, Content] = {}
        refused: dict[UUID, str] = {}
        for job in jobs:
            try:
                ready[job.id] = self._content(job, replay.settings.actor, replay.settings.edit, today)
            except NotReplayable as e:
                refused[job.id] = str(e)
        return ready, refused

    def _content(self, job: Candidate, actor: str | None, edit: Mapping[str, object] | None, today: Today) -> Content:
        after = None if edit is None else self._edited(job, edit)
        content = content_of(job, keys=self._keys, actor=actor, edit=after, renamed=self._renamed)
        return today.check(content, job.tenant_id)

    def _edited(self, job: Candidate, edit: Mapping[str, object]) -> Arguments:
        with self._begin() as session:
            try:
                found = edits.get(session, UUID(str(edit.get("id"))), job.id, self._keys)
            except (ValueError, KeyMissing, SealBroken) as e:
                raise NotReplayable(f"what it was edited to cannot be read: {e}") from e
        if found is None:
            raise NotReplayable("what it was edited to was forgotten")
        return found.after

    def _send(self, claimed: Collection[Claim], ready: Mapping[UUID, Content]) -> None:
        if not claimed:
            return
        messages = [
            (claim.item, ready[claim.job.id].message(str(claim.item), option(claim.job.id, claim.item)))
            for claim in claimed
        ]
        in_redis = send(self._run, messages)
        with self._begin() as session:
            claims.sent(session, in_redis)

    def _send_what_was_claimed(self, replay_id: UUID) -> None:
        """Send what a process before this one claimed, and may have sent."""
        while True:
            with self._begin() as session:
                replay = runs.get(session, replay_id)
                claimed = claims.unsent(session, replay_id, AT_ONCE)
            if not claimed or replay is None:
                return
            today = self._today()
            ready: dict[UUID, Content] = {}
            for claim in claimed:
                try:
                    ready[claim.job.id] = self._content(claim.job, replay.settings.actor, claim.edit, today)
                except NotReplayable as e:
                    self.let_go([claim.item], str(e))
            self._send([claim for claim in claimed if claim.job.id in ready], ready)

    def let_go(self, items: Collection[UUID], why: str) -> None:
        """Return items that were not sent to ``pending``; those that were, go on."""
        withdrawn = withdraw(self._run, items)
        with self._begin() as session:
            claims.release(session, withdrawn, by=self._name, why=why)
            claims.sent(session, set(items) - withdrawn)

    def tidy(self) -> int:
        """Let go of what cancelled replays had claimed and not sent, and return how many."""
        done = 0
        while True:
            with self._begin() as session:
                items = claims.unsent_of_ended(session, AT_ONCE)
            if not items:
                return done
            self.let_go(items, "its replay was cancelled")
            done += len(items)
