"""Runs a replay to its end: step by step up its ramp, and no further when too many jobs fail again.

Everything it knows stands in Postgres, so another process goes on where this one died; and what it does twice happens
once, see :mod:`db.replays.claims`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from loguru import logger

from db.errors import KeyMissing, SealBroken
from db.failed.actions import Begin
from db.failed.filters import Filter, spelled_out
from db.replays import claims, edits, runs
from db.replays.claims import Candidate, Claim, LeaseTaken
from db.replays.edits import Arguments
from db.replays.runs import Replay, UnreadableReplay
from db.sealing import Keys
from middleware.lua_scripts import Scripts
from middleware.replays import option
from worker.replay.messages import Content, NotReplayable, content_of
from worker.replay.ramp import allowed, to_send, too_many_failed, worthwhile
from worker.replay.removed import release_removed
from worker.replay.sending import remember, send, withdraw
from worker.replay.today import NoConsumer, Today

#: Jobs claimed and sent at a time.
AT_ONCE: Final = 500
#: Seconds between two looks at how jobs have ended.
LOOK_EVERY: Final = 0.5
#: Seconds for which it stays as it was who consumes what, and which tenants there are.
TODAY_LASTS: Final = 5.0
#: Seconds for which jobs whose queue nobody consumes wait before they are refused: workers may be starting again.
WITHOUT_CONSUMER: Final = 30.0
#: Seconds after the last step from which on any number is worth one.
WORTHWHILE_AFTER: Final = 2.0
#: Of the time that passes, the part that counting items may take.
COUNTING: Final = 0.05


@dataclass(frozen=True, slots=True)
class Step:
    """What came of one step.

    Attributes:
      looked_at: Jobs that it has moved on past.
      claimed: Those of them that were sent.
      exhausted: Whether there are none beyond them.
    """

    looked_at: int
    claimed: int
    exhausted: bool = False


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
        self._known: tuple[float, Today] | None = None
        self._unconsumed: dict[str, float] = {}

    def run_to_end(
        self,
        replay_id: UUID,
        progress: Callable[[Replay], object] = lambda _: None,
        *,
        at_most: float = float("inf"),
    ) -> Replay | None:
        """Run a replay until it ends, is paused, or somebody else runs it.

        Arguments:
          replay_id: Which.
          progress: Told how far it is, after each step, or where counting takes long, after some.
          at_most: Seconds, about, after which it is left for others, or for another time.

        Returns:
          How it stands then; None where it is not this process' to run.

        Raises:
          UnreadableReplay: When it cannot be read; it is stopped.
          ConnectionClosed: When Redis is away. It goes on when somebody runs it again.
          sqlalchemy.exc.SQLAlchemyError: When Postgres is away; likewise.
        """
        with self._begin() as session:
            if runs.take(session, self._name, replay_id) is None:
                return None
        try:
            return self._go_on(replay_id, progress, self._clock() + at_most)
        except UnreadableReplay:
            with self._begin() as session:
                runs.stop(session, replay_id, runner=self._name, why="its filter or its settings cannot be read")
            raise
        finally:
            self._leave(replay_id)

    def _leave(self, replay_id: UUID) -> None:
        try:
            with self._begin() as session:
                runs.leave(session, self._name, replay_id)
        except Exception as e:  # noqa: BLE001 - its lease ends by itself, and what went wrong before is to be told
            logger.warning("replay {} cannot be left to others yet: {}", replay_id, type(e).__name__)

    def _go_on(self, replay_id: UUID, progress: Callable[[Replay], object], until: float) -> Replay | None:
        self._send_what_was_claimed(replay_id)
        budget, asked, count_again, look_at = 0.0, self._clock(), 0.0, 0
        exhausted, where, stepped = False, None, float("-inf")
        while True:
            with self._begin() as session:
                if runs.take(session, self._name, replay_id) is None:
                    return self._as_it_stands(replay_id, progress)
                began = self._clock()
                replay = runs.get(session, replay_id, counted=began >= count_again)
                assert replay is not None  # noqa: S101 - taken in this transaction
                if began >= count_again:
                    count_again = self._clock() + (self._clock() - began) / COUNTING
                where = where or spelled_out(session, replay.filter)
                settings = replay.settings
                pulse = claims.pulse(session, replay_id, window=settings.window, enough=sum(settings.ramp))
                why = too_many_failed(settings, pulse.latest)
                ends = exhausted and not pulse.under_way
                if why is not None:
                    runs.stop(session, replay_id, runner=self._name, why=why)
                elif ends:
                    claims.follow_the_moved(session, replay_id)
                    runs.finish(session, replay_id, runner=self._name)
            if why is not None or ends:
                return self._as_it_stands(replay_id, progress)
            if replay.items:
                progress(replay)
            now = self._clock()
            budget, asked = to_send(settings.rate, now - asked, budget), now
            room = allowed(settings, pulse.succeeded) - pulse.under_way
            count = int(min(room, budget, AT_ONCE)) if not exhausted else 0
            if count < worthwhile(settings, pulse.succeeded) and now - stepped < WORTHWHILE_AFTER:
                # A step costs as much for one as for hundreds, and enough are under way.
                count = 0
            if count > 0 and now < until:
                stepped = now
                try:
                    step = self._step(replay, where, count, max(count, look_at))
                except LeaseTaken:
                    return self._as_it_stands(replay_id, progress)
                budget -= step.claimed
                exhausted = step.exhausted
                # Where many are refused, more are looked at to find those that are not.
                look_at = min(2 * step.looked_at, AT_ONCE) if step.claimed < step.looked_at else 0
                if step.looked_at and (step.claimed < count or room > step.claimed) and budget >= 1:
                    continue
            if now >= until or self._wait(LOOK_EVERY):
                return self._as_it_stands(replay_id, progress)

    def _as_it_stands(self, replay_id: UUID, progress: Callable[[Replay], object]) -> Replay | None:
        with self._begin() as session:
            replay = runs.get(session, replay_id)
        if replay is not None:
            progress(replay)
        return replay

    def _step(self, replay: Replay, where: Filter, count: int, look_at: int) -> Step:
        """Claim and send some more.

        Arguments:
          replay: As it stands.
          where: Its filter, spelled out.
          count: How many to send at most.
          look_at: How many to look at at most, to find those.
        """
        today = self._of_today()
        with self._begin() as session:
            if replay.matched is None:
                claims.count_matching(session, replay, where)
            found = claims.matching(session, replay, replay.come_to, look_at, where)
            if not found:
                return Step(0, 0, exhausted=True)
            jobs, ready, refused = self._ready(replay, found, count, today)
            if not jobs:
                # They wait for a worker that takes them.
                return Step(0, 0)
            claimed = claims.claim(session, replay, jobs, refused, runner=self._name)
        # Committed: whatever happens from here on, somebody sends them or lets them go.
        self._send(claimed, ready)
        return Step(len(jobs), len(claimed))

    def _ready(
        self, replay: Replay, jobs: list[Candidate], count: int, today: Today
    ) -> tuple[list[Candidate], dict[UUID, Content], dict[UUID, str]]:
        """Return those that were looked at, what the ``count`` of them that can be sent are to say, and why others
        cannot."""
        ready: dict[UUID, Content] = {}
        refused: dict[UUID, str] = {}
        today.look_up(job.tenant_id for job in jobs)
        for n, job in enumerate(jobs):
            if len(ready) == count:
                return jobs[:n], ready, refused
            try:
                content = self._content(job, replay, replay.settings.edit, today)
                ready[job.id] = content
                self._unconsumed.pop(content.queue_name, None)
            except NoConsumer as e:
                since = self._unconsumed.setdefault(e.queue_name, self._clock())
                if self._clock() - since < WITHOUT_CONSUMER:
                    return jobs[:n], ready, refused
                refused[job.id] = str(e)
            except NotReplayable as e:
                refused[job.id] = str(e)
        return jobs, ready, refused

    def _of_today(self) -> Today:
        if self._known is None or self._clock() - self._known[0] > TODAY_LASTS:
            self._known = self._clock(), self._today()
        return self._known[1]

    def _content(
        self,
        job: Candidate,
        replay: Replay,
        edit: Mapping[str, object] | None,
        today: Today,
        *,
        waits: bool = False,
    ) -> Content:
        after = None if edit is None else self._edited(job, edit)
        content = content_of(
            job,
            keys=self._keys,
            actor=replay.settings.actor,
            edit=after,
            renamed=self._renamed,
            by_operator=replay.tenant_id is None,
        )
        return today.check(content, job.tenant_id, waits=waits)

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
            withdrawn = {item for item, _ in messages} - in_redis
            if withdrawn:
                # By a process that has died, or another that saw the replay cancelled, before it could say so.
                claims.release(session, withdrawn, by=self._name, why="it was withdrawn before it was sent")
        remember(self._run, in_redis)

    def _send_what_was_claimed(self, replay_id: UUID) -> None:
        """Send what a process before this one claimed, and may have sent."""
        while True:
            with self._begin() as session:
                replay = runs.get(session, replay_id, counted=False)
                astray = claims.astray(session, replay_id)
                claimed = claims.unsent(session, replay_id, AT_ONCE)
            if astray:
                self.let_go(astray, "its job was handed to another tenant, or closed")
            if not claimed or replay is None:
                return
            today = self._of_today()
            ready: dict[UUID, Content] = {}
            for claim in claimed:
                try:
                    # It was claimed, so it may as well wait in its queue.
                    ready[claim.job.id] = self._content(claim.job, replay, claim.edit, today, waits=True)
                except NotReplayable as e:
                    self.let_go([claim.item], str(e))
            self._send([claim for claim in claimed if claim.job.id in ready], ready)

    def let_go(self, items: Collection[UUID], why: str) -> None:
        """Return items that were not sent to ``pending``; those that were, go on."""
        withdrawn = withdraw(self._run, items)
        with self._begin() as session:
            claims.release(session, withdrawn, by=self._name, why=why)
            claims.sent(session, set(items) - withdrawn)

    def release_removed(self) -> int:
        """Set jobs back whose messages were removed; see :func:`worker.replay.removed.release_removed`."""
        return release_removed(self._run, self._begin)

    def tidy(self) -> int:
        """Let go of what replays had claimed and not sent that nobody runs any more, and return how many jobs that is.

        Those of cancelled ones are let go for good. Those of ones that wait for a person are as they were before, so
        that they are sent when it lets them go on.
        """
        done = 0
        while True:
            with self._begin() as session:
                unsent = claims.unsent_of_idle(session, AT_ONCE)
            if not unsent:
                return done
            cancelled = [one.item for one in unsent if one.state == "cancelled"]
            if cancelled:
                self.let_go(cancelled, "its replay was cancelled")
            for replay_id in {one.replay_id for one in unsent if one.state != "cancelled"}:
                self._give_back(replay_id, [one.item for one in unsent if one.replay_id == replay_id])
            done += len(unsent)

    def _give_back(self, replay_id: UUID, items: Collection[UUID]) -> None:
        withdrawn = withdraw(self._run, items)
        with self._begin() as session:
            claims.give_back(session, replay_id, withdrawn, by=self._name)
            claims.sent(session, set(items) - withdrawn)
