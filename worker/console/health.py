"""``/health``: for whoever watches, without a login. Nothing in it is secret, or a tenant's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, Final, Generic, TypeVar
from uuid import UUID

import redis
from alembic.script import ScriptDirectory
from anyio import CapacityLimiter, to_thread
from dramatiq.errors import ConnectionClosed
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session

from db.errors import ConfigurationError
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from worker.check.findings import Status
from worker.check.migrations import VERSION_TABLE, judge_revisions
from worker.migrate import script_location
from worker.probe import AT_MOST, Probe, Probed
from worker.queues import Queue
from worker.replay.making import consumed_queues
from worker.settings import Settings

router = APIRouter()

T = TypeVar("T")

#: Seconds for which whoever asks gets what the last one got, and that all of it may take.
READY_FOR: Final = 2.0
PROBED_FOR: Final = 5.0
READY_WITHIN: Final = 8.0
#: Seconds to wait for a probe, if nobody says; milliseconds that a statement may take.
PROBE_WITHIN: Final = 5.0
_STATEMENT: Final = 2_000


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that the console needs, and how it is; None where that cannot be told, which is no harm."""

    ok: bool | None
    detail: str


class Shared(Generic[T]):
    """An answer that is made once for all who ask meanwhile, and for whoever asks within some seconds after.

    Arguments:
      make: Makes it; whoever asks may go away, and it is made all the same.
      seconds: For which it holds.
    """

    def __init__(self, make: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._made: asyncio.Future[T] | None = None
        self._until = 0.0

    async def get(self, within: float) -> T:
        """Return it.

        Raises:
          TimeoutError: When it takes longer than ``within`` seconds; the next who asks waits for the same.
        """
        if self._made is None or (self._made.done() and time.monotonic() > self._until):
            self._made = asyncio.ensure_future(self._make())
            self._made.add_done_callback(self._hold)
        return await asyncio.wait_for(asyncio.shield(self._made), within)

    def _hold(self, made: asyncio.Future[T]) -> None:
        self._until = time.monotonic() + self._seconds
        if not made.cancelled():
            # Looked at, so that nobody is told of what nobody waited for.
            made.exception()


class Health:
    """Asks Postgres and Redis how they are, and queues, however many want to know.

    Arguments:
      settings: Of the console.
      client: To Redis, with a short time to answer.
    """

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self._settings = settings
        self._client = client
        # Its own threads, so that whoever asks takes none of a page's.
        self._threads = CapacityLimiter(4)
        self.ready = Shared(self._ready, READY_FOR)
        self.queues = Shared(lambda: self._in_thread(self._queues), PROBED_FOR)
        self._probes: dict[str, _Flight] = {}

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)

    async def _ready(self) -> dict[str, Part]:
        (postgres, migrations), redis_ = await asyncio.gather(self._in_thread(_postgres), self._in_thread(self._redis))
        return {"postgres": postgres, "migrations": migrations, "redis": redis_}

    def _redis(self) -> Part:
        try:
            self._client.ping()
        except (redis.RedisError, OSError) as e:
            return Part(False, f"does not answer: {type(e).__name__}")
        return Part(True, "answers")

    def _queues(self) -> frozenset[str]:
        declared = {*(queue.value for queue in Queue), *self._settings.extra_queues}
        # Those that an application registered in its code are known where it runs.
        return frozenset(declared | consumed_queues(self._client, self._settings.redis_namespace))

    async def probe(self, queue: str, within: float) -> Probed:
        """Probe a queue, or wait for the probe that is under way.

        Raises:
          ConnectionClosed: When Redis cannot be asked.
        """
        while True:
            flight = self._probes.get(queue)
            if flight is None or flight.is_over():
                probe = Probe(self._client, queue, within, namespace=self._settings.redis_namespace)
                # Probes that wait take threads of their own, one a queue: each is asked about one at a time.
                running = asyncio.ensure_future(to_thread.run_sync(probe.run, limiter=CapacityLimiter(1)))
                flight = self._probes[queue] = _Flight(probe, running)
            found = await flight.wait(within)
            if found is not None and (found.state != "late" or found.seconds >= within):
                return found
            if found is None:
                return Probed("late", within)
            # It was given up sooner than this one waits.
            flight.holds = False


class _Flight:
    """A probe that is under way, or has just been."""

    def __init__(self, probe: Probe, running: asyncio.Future[Probed]) -> None:
        self._probe = probe
        self._running = running
        self._began = time.monotonic()
        self._until = float("inf")
        self.holds = True
        running.add_done_callback(self._end)

    def _end(self, running: asyncio.Future[Probed]) -> None:
        self._until = time.monotonic() + PROBED_FOR
        if not running.cancelled():
            running.exception()

    def is_over(self) -> bool:
        """Tell whether its answer does not hold any more."""
        return self._running.done() and (not self.holds or time.monotonic() > self._until)

    async def wait(self, within: float) -> Probed | None:
        """Return what became of it within so many seconds since it was sent; None where nothing did yet."""
        self._probe.extend(within)
        left = max(0.0, self._began + within - time.monotonic())
        await asyncio.wait([self._running], timeout=left)
        return self._running.result() if self._running.done() else None


def _postgres() -> tuple[Part, Part]:
    """Return how Postgres is, asked as pages ask it, and whether its tables are those of this code."""
    try:
        # Any tenant: the worker's credential is asked, which sees none of this one's rows.
        with tenant_context(UUID(int=0)), transaction() as session:
            _quickly(session).execute(text("SELECT 1"))
        with operator_transaction() as session:
            found = _revisions(_quickly(session))
    except DBAPIError as e:
        state = getattr(e.orig, "sqlstate", None)
        said = f"refuses: SQLSTATE {state}" if state else "does not answer"
        return Part(False, said), Part(None, "cannot be told")
    except (SQLAlchemyError, ConfigurationError) as e:
        return Part(False, f"does not answer: {type(e).__name__}"), Part(None, "cannot be told")
    heads, known = _of_code()
    judged = judge_revisions(found, set(heads), set(known))
    ok = {Status.OK: True, Status.WARNING: None, Status.ERROR: False}[judged.status]
    return Part(True, "answers"), Part(ok, judged.found)


def _quickly(session: Session) -> Session:
    session.connection().exec_driver_sql(
        f"SET LOCAL statement_timeout = {_STATEMENT}", execution_options={"no_parameters": True}
    )
    return session


def _revisions(session: Session) -> set[str] | None:
    may_look = session.execute(
        text("SELECT has_table_privilege(to_regclass(:name), 'SELECT') WHERE to_regclass(:name) IS NOT NULL"),
        {"name": VERSION_TABLE},
    ).scalar()
    if may_look is None:
        return set()
    if not may_look:
        return None
    return set(session.scalars(text(f"SELECT version_num FROM {VERSION_TABLE}")))


@cache
def _of_code() -> tuple[frozenset[str], frozenset[str]]:
    scripts = ScriptDirectory(str(script_location()))
    return frozenset(scripts.get_heads()), frozenset(one.revision for one in scripts.walk_revisions())


def _health(request: Request) -> Health:
    found: Health = request.app.state.health
    return found


@router.api_route("/health/live", methods=["GET", "HEAD"])
async def live() -> JSONResponse:
    """Say that the process answers, and ask nobody else."""
    return JSONResponse({"status": "live"})


@router.api_route("/health/ready", methods=["GET", "HEAD"])
async def ready(request: Request) -> JSONResponse:
    """Say whether pages can be answered: 200, or 503 with what is wrong."""
    try:
        parts = await _health(request).ready.get(READY_WITHIN)
    except TimeoutError:
        parts = {"postgres": Part(False, f"no answer within {READY_WITHIN:g} seconds")}
    return _answer(not any(part.ok is False for part in parts.values()), "ready", "not ready", parts=parts)


@router.api_route("/health/worker", methods=["GET", "HEAD"])
async def worker(
    request: Request,
    queue: Annotated[str, Query(max_length=100)] = Queue.HOUSEKEEPING.value,
    timeout: Annotated[float, Query(ge=0.1, le=AT_MOST)] = PROBE_WITHIN,
) -> JSONResponse:
    """Say whether a message gets through a queue to a worker and back in time: 200, also where the queue is paused; or
    503."""
    health = _health(request)
    try:
        known = await health.queues.get(READY_WITHIN)
        if queue not in known:
            raise LookupError(f"there is no queue {queue!r}; there is {', '.join(sorted(known))}")
        found = await health.probe(queue, timeout)
    except (ConnectionClosed, TimeoutError):
        return _answer(False, "", "unknown", queue=queue, detail="Redis does not answer")
    late = found.state == "answered" and found.seconds > timeout
    detail = {
        "answered": f"a message took {found.seconds:.3f} seconds to a worker and back",
        "late": f"a message did not come back within {timeout:g} seconds",
        "paused": "the queue is paused, so no worker takes anything from it",
        "unconsumed": "no worker that lives consumes the queue",
    }["late" if late else found.state]
    seconds = round(found.seconds, 3) if found.state == "answered" else None
    good = found.state == "paused" or (found.state == "answered" and not late)
    return _answer(good, found.state, "late" if late else found.state, queue=queue, detail=detail, seconds=seconds)


def _answer(good: bool, status: str, otherwise: str, **more: Any) -> JSONResponse:
    body = {"status": status if good else otherwise, **{name: _plain(value) for name, value in more.items()}}
    return JSONResponse(body, 200 if good else 503)


def _plain(value: Any) -> Any:
    return {name: asdict(part) for name, part in value.items()} if isinstance(value, dict) else value
