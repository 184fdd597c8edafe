"""What schedulers share in Redis: each job's last tick, and who of them lives.

It is where the queues are, so that a tick is taken and its message enqueued in one step: both or neither, whenever a
scheduler dies, and once, however many there are. Where Redis loses what it had said (no AOF, a failover), the worst is
that a tick is sent again, under the same message id, or is left out; the next one comes as if nothing had been.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import redis

from middleware.deliveries import Entry
from middleware.lua_scripts import Argument, Scripts
from middleware.unique import KEEP as KEEP_LOCK
from middleware.unique import Outcome
from worker.queue_admin.keys import answer, asking
from worker.scheduler.jobs import Job

#: Milliseconds after which a rule is forgotten that nobody looks after, and a scheduler that is gone.
KEEP: Final = 90 * 86_400_000
#: Milliseconds by which a clock was set back that had been wrong: as Debian's cron has it, what is less than three
#: hours is waited for, so that nothing comes twice.
SET_BACK: Final = 3 * 3_600_000
#: Seconds without a sign after which a scheduler does not live; it gives one every five at least.
LEASE: Final = 15.0


@dataclass(frozen=True, slots=True)
class Looked:
    """What one look told: the time of the server, and when the last tick of each job was."""

    now: datetime
    handled: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class Sent:
    """The last message that was sent for a job: for which tick, when, by whom, and under which id."""

    tick: datetime
    at: datetime
    message_id: str
    by: str


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis holds of all jobs."""

    now: datetime
    #: The last ticks, sent or let be, by job and rule.
    handled: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    #: By job.
    sent: Mapping[str, Sent] = field(default_factory=dict)


class State:
    """The jobs' state, for a scheduler.

    Arguments:
      run: Runs scripts.
      scheduler_id: Of this scheduler and no other.

    Raises (from every method):
      ConnectionClosed: For any error of Redis. Saying it again does no harm.
    """

    def __init__(self, run: Scripts, scheduler_id: str) -> None:
        self._run = run
        self._id = scheduler_id

    def look(self, facts: Mapping[str, Any], jobs: Sequence[Job], *, first: bool = False) -> Looked:
        """Say that this scheduler lives, and look how far its jobs are.

        Arguments:
          facts: About this scheduler.
          jobs: All of them.
          first: Whether it has just begun: what went by while others kept a job otherwise, or off, is then left out.
        """
        asked = [part for job in jobs for part in (job.name, job.rule)]
        now, *ticks = self._run("schedule_look", self._id, json.dumps(facts), int(first), KEEP, SET_BACK, *asked)
        return Looked(moment(now), {job.name: moment(tick) for job, tick in zip(jobs, ticks, strict=True)})

    def take(
        self,
        job: Job,
        handled: datetime,
        tick: datetime,
        entry: Entry | None,
        said: Mapping[str, Any],
        policy: str = "",
    ) -> bool | Outcome:
        """Take a tick and put its message on its queue, both or neither; tell whether this was done here, or which
        message kept this one away, so that the tick was taken alone.

        Arguments:
          job: Whose.
          handled: Its last tick, as it was looked at.
          tick: Which.
          entry: Queue, Redis id and data of the message; None to let the tick be.
          said: What is to be known of it: ``message_id`` and ``by``.
          policy: What makes the message unique, as :func:`middleware.unique.policy_of` says it.
        """
        known = json.dumps({**said, "tick": _said(tick), "id": entry and entry[1]})
        parts: tuple[Argument, ...] = () if entry is None else (*entry, policy, str(said["message_id"]), KEEP_LOCK)
        done = self._run("schedule_send", job.name, job.rule, _said(handled), _said(tick), known, *parts)
        if isinstance(done, list):
            return Outcome(sent=False, because_of=done[0].decode(), state=done[1].decode())
        return bool(done)


def read(client: redis.Redis, namespace: str = "dramatiq") -> Known:
    """Return what Redis holds of all jobs.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    with asking(), client.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hgetall(f"{namespace}:__dramaturg__.schedule")
        (seconds, microseconds), found = answer(pipeline.execute())
    handled, sent = dict[tuple[str, str], datetime](), dict[str, Sent]()
    for name, value in found.items():
        kind, _, of = name.decode("utf-8", "replace").partition("\n")
        rule, _, job = of.partition("\n")
        try:
            if kind == "tick":
                handled[job, rule] = moment(value)
            elif kind == "sent":
                at, _, said = value.partition(b" ")
                last = json.loads(said)
                sent[job] = Sent(moment(last["tick"]), moment(at), str(last["message_id"]), str(last["by"]))
        except (ValueError, KeyError, TypeError, OverflowError, OSError):
            # Whoever wrote it, it is not there for us.
            continue
    return Known(datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds), handled, sent)


def moment(milliseconds: bytes | str | float) -> datetime:
    """Return a time that Redis keeps, in milliseconds since 1970."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=int(milliseconds))


def _said(tick: datetime) -> str:
    return str((tick - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1))
