"""What the overview shows: each part made once for all who look, and said in its own place where it cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Generic, TypeVar
from uuid import UUID

import redis
from dramatiq.errors import ConnectionClosed
from psycopg.errors import QueryCanceled
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db.failed import Filter, Group, Standing, failures_per_minute, find_groups, standing
from db.outbox import InQueue, by_queue
from db.replays import runs
from db.replays.runs import Replay
from middleware.relay import LATE
from worker.console.access import Work
from worker.console.charts import COLOURS, Chart, stacked_bars
from worker.console.problems import problem_of
from worker.console.shared import Shared, TakesTooLong
from worker.failed.asked import OPEN
from worker.live import (
    DepthSamples,
    SchedulerState,
    SpoolState,
    Throughput,
    WorkerState,
    depth_samples,
    list_workers,
    scheduler_state,
    spool_state,
    throughput,
)
from worker.queue_admin import QueueState, list_queues
from worker.queue_admin.keys import asking
from worker.queue_admin.lives import server_time
from worker.settings import Settings
from worker.tenants import tenant_names
from worker.text import counted, one_line, short

T = TypeVar("T")

#: Hours that the chart can be of, and bars that it has at most: each of a minute for three hours, of ten for a day.
HOURS: Final = (1, 3, 12, 24)
BARS: Final = 182
#: What is listed of each kind, and messages that a worker runs.
GROUPS, REPLAYS, QUEUES, WORKERS, RUNNING = 6, 6, 40, 25, 5
#: Minutes of a queue's line.
MINUTES: Final = 60


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """What was found out, or else why it could not be."""

    value: T | None = None
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class Failures:
    """What is open, the groups to look at first, and what waits to reach Redis."""

    standing: Standing
    groups: list[Group]
    outbox: list[InQueue]


@dataclass(frozen=True, slots=True)
class Live:
    """What goes on in Redis; times are its server's."""

    now: datetime
    queues: list[QueueState]
    ended: Mapping[str, Throughput]
    depths: Mapping[str, DepthSamples]
    workers: list[WorkerState]
    spool: SpoolState
    scheduler: SchedulerState

    def waited(self, queue: str) -> tuple[int, ...]:
        """How many messages waited in a queue, minute by minute within the hour. Where there is no sample it is what
        the one before says; before the first there is nothing, and nothing where there are not two."""
        of_queue, found = self.depths.get(queue), list[int]()
        for depth in of_queue.waiting if of_queue is not None else ():
            if depth is not None or found:
                found.append(found[-1] if depth is None else depth)
        return tuple(found) if len(found) > 1 else ()

    @property
    def running(self) -> int:
        """Messages that workers run."""
        return sum(len(worker.running) + worker.more for worker in self.workers)

    @property
    def paused(self) -> int:
        """Queues that are paused."""
        return sum(queue.pause is not None for queue in self.queues)

    @property
    def idle(self) -> bool:
        """Whether there is nothing at all: no worker, no message, and none has ended in an hour."""
        return not self.workers and all(queue.empty for queue in self.queues) and not self.succeeded + self.failed

    @property
    def succeeded(self) -> int:
        """Messages that ended well within the hour."""
        return sum(sum(one.succeeded) for one in self.ended.values())

    @property
    def failed(self) -> int:
        """Messages that failed for good within the hour."""
        return sum(sum(one.failed) for one in self.ended.values())


@dataclass(frozen=True, slots=True)
class Concern:
    """Something that somebody should look at: ``bad`` or ``warn``, in words, and where one goes for it."""

    kind: str
    text: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Glance:
    """Everything that the overview shows.

    Attributes:
      live: None for whoever sees one tenant alone: queues and workers are of all of them.
      names: Of the tenants whose messages run.
    """

    hours: int
    failures: Part[Failures]
    chart: Part[Chart]
    replays: Part[list[Replay]]
    live: Part[Live] | None
    names: Mapping[UUID, str]

    @property
    def first_run(self) -> bool:
        """Whether nothing has ever failed, and nobody works."""
        never = self.failures.value is not None and not self.failures.value.standing.groups
        return never and (self.live is None or (self.live.value is not None and self.live.value.idle))

    @property
    def concerns(self) -> list[Concern]:
        """What somebody should look at, the worst first: servers that are away, what is stuck, then what failed."""
        redis, postgres = list(self._of_redis() if self.live is not None else ()), list(self._of_postgres())
        away = [Concern("bad", _sentence(wrong)) for wrong in self._wrong_of_postgres()]
        return [
            *away,
            *(concern for concern in (*redis, *postgres) if concern.kind == "bad"),
            *(concern for concern in (*postgres, *redis) if concern.kind != "bad"),
        ]

    @property
    def level(self) -> str:
        """The worst of it: ``bad``, ``warn`` or ``good``."""
        return next((concern.kind for concern in self.concerns), "good")

    def _wrong_of_postgres(self) -> Iterable[str]:
        return dict.fromkeys(part.wrong for part in (self.failures, self.chart, self.replays) if part.wrong)

    def _of_postgres(self) -> Iterator[Concern]:
        if self.failures.value is not None:
            standing = self.failures.value.standing
            if standing.regressed_groups:
                are = "group is back after it was resolved" if standing.regressed_groups == 1 else None
                yield Concern(
                    "bad",
                    f"{standing.regressed_groups:,} {are or 'groups are back after they were resolved'}.",
                    "/groups",
                )
            if standing.open:
                of = "is open" if standing.open == 1 else f"are open, in {counted(standing.open_groups, 'group')}"
                yield Concern("warn", f"{counted(standing.open, 'failure')} {of}.", "/failures")
            if any(one.oldest > LATE for one in self.failures.value.outbox):
                waits = counted(sum(one.count for one in self.failures.value.outbox), "message")
                yield Concern("bad", f"{waits} of transactions that are committed did not reach Redis yet.", "#queues")
        for replay in self.replays.value or ():
            if replay.state in {"stopped", "paused"}:
                why = f": {one_line(replay.why)}" if replay.why else ""
                bad, how = ("bad", "stopped by itself") if replay.state == "stopped" else ("warn", "is paused")
                yield Concern(bad, f"Replay {short(replay.id)} {how}{why}.", f"/replays/{replay.id}")

    def _of_redis(self) -> Iterator[Concern]:
        assert self.live is not None  # noqa: S101 - the caller asked
        live = self.live.value
        if live is None:
            yield Concern("bad", f"{_sentence(self.live.wrong or '')} What queues hold and who works is not known.")
            return
        for queue in live.queues:
            if is_stranded(queue):
                held = counted(queue.waiting + queue.delayed + queue.running + queue.suspects, "message")
                yield Concern("bad", f"Queue {one_line(queue.name)} holds {held}, and nobody consumes it.", "#queues")
            if queue.pause is not None:
                why = f": {one_line(queue.pause.reason)}" if queue.pause.reason else ""
                yield Concern(
                    "warn", f"Queue {one_line(queue.name)} is paused by {one_line(queue.pause.by)}{why}.", "#queues"
                )
            if queue.suspects:
                waiting = f"{counted(queue.suspects, 'message')} of queue {one_line(queue.name)}"
                yield Concern("warn", f"{waiting} ran when a worker was lost, and will run again, alone.", "#queues")
        if live.scheduler.wrong:
            what = "is late with" if live.scheduler.lives else "is gone, which sent"
            yield Concern(
                "bad", f"The scheduler {what} {counted(live.scheduler.jobs, 'job')} by the clock.", "#workers"
            )
        if live.spool.size:
            waits = "failure waits" if live.spool.size == 1 else "failures wait"
            yield Concern("bad", f"{live.spool.size:,} {waits} in Redis for Postgres to take them.", "#workers")


def is_stranded(queue: QueueState) -> bool:
    """Tell whether a queue holds messages that nobody will run, though nobody has paused it."""
    return not (queue.empty or queue.consumers or queue.stock_consumers or queue.pause)


def glance(work: Work, hours: int, *, shared: Shared, client: redis.Redis, settings: Settings) -> Glance:
    """Return what the overview shows to whoever asks.

    Arguments:
      hours: Of the chart.
      shared: What others have asked for already.
    """
    postgres = _Asking(shared, work)
    failures = postgres.ask("failures", lambda: _failures(work))
    chart = postgres.ask(("chart", hours), lambda: _chart(work, hours))
    replays = postgres.ask("replays", lambda: _replays(work))
    if work.tenant_id is not None:
        return Glance(hours, failures, chart, replays, None, {})
    live = _Asking(shared, work).ask("live", lambda: look(client, settings))
    running = [message for worker in (live.value.workers if live.value else ()) for message in worker.running]
    ids = frozenset(message.tenant_id for message in running if message.tenant_id is not None)
    names: Part[dict[UUID, str]] = postgres.ask(("names", ids), lambda: _names(work, ids)) if ids else Part()
    return Glance(hours, failures, chart, replays, live, names.value or {})


class _Asking:
    """Asks for parts, one after the other; not again whoever cannot be reached."""

    def __init__(self, shared: Shared, work: Work) -> None:
        self._shared = shared
        self._work = work
        self._away: str | None = None

    def ask(self, key: object, make: Callable[[], T]) -> Part[T]:
        """Return what ``make`` makes, for all who are bound to the same tenant, or to none."""
        if self._away is not None:
            return Part(wrong=self._away)
        try:
            return Part(self._shared.get((self._work.tenant_id, key), make))
        except (DBAPIError, PoolTimeout, ConnectionClosed, TakesTooLong) as e:
            problem = problem_of(e)
            wrong = problem.detail if problem is not None else type(e).__name__
            if not (isinstance(e, DBAPIError) and isinstance(e.orig, QueryCanceled)):
                self._away = wrong
            return Part(wrong=wrong)


def _failures(work: Work) -> Failures:
    with work.begin() as session:
        now = standing(session)
        groups, _ = find_groups(session, Filter(status=OPEN), limit=GROUPS) if now.open else ([], None)
        return Failures(now, groups, by_queue(session))


def _chart(work: Work, hours: int) -> Chart:
    with work.begin() as session:
        now = datetime.now(UTC)
        rates = failures_per_minute(session, since=now - timedelta(hours=hours), now=now, buckets=BARS, types=COLOURS)
    series = [(one.error_type, one.failures) for one in rates.series]
    # Nothing is a chart as wide as any other.
    return stacked_bars(series or [(None, (0,) * rates.buckets)], rates.since, rates.width)


def _replays(work: Work) -> list[Replay]:
    with work.begin() as session:
        found = runs.find(session, states=("running", "paused", "stopped"), limit=50)
    # What runs needs nobody.
    return sorted(found, key=lambda replay: ("stopped", "paused", "running").index(replay.state))


def _names(work: Work, ids: frozenset[UUID]) -> dict[UUID, str]:
    with work.begin() as session:
        return tenant_names(session, ids)


def look(client: redis.Redis, settings: Settings) -> Live:
    """Return what goes on in Redis.

    Raises:
      ConnectionClosed: For any error of Redis.
    """
    namespace = settings.redis_namespace
    with asking():
        now = server_time(client)
    queues = list_queues(client, settings.extra_queues, namespace=namespace)
    return Live(
        now=datetime.fromtimestamp(now / 1000, UTC),
        queues=queues,
        ended=throughput(client, MINUTES, queues=[queue.name for queue in queues], namespace=namespace),
        depths=depth_samples(client, MINUTES, namespace=namespace),
        workers=list_workers(client, namespace=namespace),
        spool=spool_state(client, namespace=namespace),
        scheduler=scheduler_state(client, namespace=namespace),
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?', '!')) else '.'}"
