"""Runs a replay in the foreground, or looks on while another process does, until it runs no more."""

from __future__ import annotations

import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final
from uuid import UUID

from dramatiq import Broker
from dramatiq.errors import ConnectionClosed
from rich.console import Console
from rich.text import Text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from db.replays import runs
from db.replays.runs import IllegalChange, Replay
from worker.cli.common import fail
from worker.cli.failed.exits import NOTHING
from worker.cli.failed.options import Access
from worker.cli.replays.progress import shown
from worker.cli.replays.words import command
from worker.redis_client import make_redis
from worker.replay.making import make_runner
from worker.replay.runner import Runner
from worker.settings import Settings
from worker.text import short

#: Seconds between two looks at a replay that another process runs; within which one must have taken it; and for which
#: Redis or Postgres may be away.
LOOK_EVERY: Final = 0.5
TAKEN_WITHIN = 20.0
AWAY_AT_MOST = 60.0


@contextmanager
def runner_here(work: Access, broker: Broker | None, interrupted: threading.Event) -> Iterator[Runner | None]:
    """Give a runner of this process; none to whoever is bound to a tenant, and cannot read what is to be sent."""
    if work.tenant_id is not None or broker is None:
        yield None
        return
    settings = Settings.load()
    name = f"{socket.gethostname()}/command/{uuid.uuid4()}"
    with make_redis(settings) as client:
        yield make_runner(settings, broker, client, name, interrupted.wait, knows_all=True)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Give what is set by the first Ctrl-C; the second ends the command."""
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def follow(replay_id: UUID, work: Access, broker: Broker | None, *, by: str) -> Replay:
    """Run a replay, or look on, until it runs no more; Ctrl-C pauses it.

    Arguments:
      replay_id: Which.
      work: Whose.
      broker: With every actor imported; None where this process is not to run it.
      by: Who pauses it.

    Returns:
      How it stands: still ``running`` only where nobody takes it.
    """
    with (
        interruptible() as interrupted,
        runner_here(work, broker, interrupted) as runner,
        shown("Ctrl-C pauses it") as progress,
    ):
        return _Following(replay_id, work, runner, interrupted, progress, by).to_its_end()


class _Following:
    """Looks at a replay over and over."""

    def __init__(
        self,
        replay_id: UUID,
        work: Access,
        runner: Runner | None,
        interrupted: threading.Event,
        progress: Callable[[Replay], object],
        by: str,
    ) -> None:
        self._replay_id = replay_id
        self._work = work
        self._runner = runner
        self._interrupted = interrupted
        self._progress = progress
        self._by = by
        #: Since when nobody runs it, and something is away.
        self._alone: float | None = None
        self._away: float | None = None

    def to_its_end(self) -> Replay:
        while True:
            try:
                replay = self._look()
            except (ConnectionClosed, OperationalError, InterfaceError) as e:
                self._wait_for_it(e)
                continue
            self._away = None
            if replay.state != "running" or self._nobody_runs(replay):
                return replay
            self._interrupted.wait(LOOK_EVERY)

    def _look(self) -> Replay:
        if self._runner is not None and not self._interrupted.is_set():
            # It is another's where this returns at once: then we look on.
            self._runner.run_to_end(self._replay_id, self._progress)
        with self._work.begin() as session:
            if self._interrupted.is_set():
                self._pause(session)
            replay = runs.get(session, self._replay_id)
        if replay is None:
            fail(f"replay {self._replay_id} is gone", NOTHING)
        self._progress(replay)
        return replay

    def _pause(self, session: Session) -> None:
        # It may have ended by itself.
        with suppress(IllegalChange):
            runs.pause(session, self._replay_id, by=self._by, why="Ctrl-C")

    def _nobody_runs(self, replay: Replay) -> bool:
        """Tell whether nobody has taken it for long."""
        if replay.runner is not None:
            self._alone = None
            return False
        self._alone = self._alone or time.monotonic()
        return time.monotonic() - self._alone > TAKEN_WITHIN

    def _wait_for_it(self, error: Exception) -> None:
        """Wait a moment for Redis or Postgres to come back.

        Raises:
          Exception: ``error``, when that has lasted for too long, or somebody does not want to wait.
        """
        now = time.monotonic()
        if self._away is None:
            self._away = now
            name = "Redis" if isinstance(error, ConnectionClosed) else "Postgres"
            Console(stderr=True).print(Text(f"{name} is away: trying for {AWAY_AT_MOST:.0f} s", "yellow"))
        if self._interrupted.is_set() or now - self._away > AWAY_AT_MOST:
            ident = short(self._replay_id)
            fail(
                f"replay {ident} could not go on: {type(error).__name__}. Nothing is lost: what was sent goes on, and "
                f"a worker that consumes housekeeping runs the rest, or {command(self._work, f'resume {ident}')}",
                2,
            )
        self._interrupted.wait(1.0)
