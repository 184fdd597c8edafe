"""Runs replays in a thread of the console, so that what somebody starts there begins at once.

Nothing depends on it: what it does not get to, or leaves when the process ends, workers that consume ``housekeeping``
run.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from dramatiq.errors import ConnectionClosed
from loguru import logger
from sqlalchemy.exc import SQLAlchemyError

from db.errors import ConfigurationError
from worker.replay.replayer import SLICE
from worker.replay.runner import Runner

#: Replays that are run in turn, and as many that wait for that.
AT_A_TIME: Final = 50
#: Seconds after which one is tried again that another process has, or while a server is away; and how often: longer
#: than a process that has died keeps it.
AGAIN_AFTER: Final = 5.0
TRIES: Final = 5
#: Seconds that it may take to stop.
STOPS_WITHIN: Final = 10.0


@dataclass(slots=True)
class _Turn:
    """When a replay is due, and how often in a row it could not be run."""

    due: float
    misses: int = 0


class Running:
    """Runs what it is given, each for a while in turn, until it runs no more.

    Arguments:
      make_runner: Makes the runner, when it is first needed: from what waits, and tells whether to stop. It raises
        ``ConfigurationError`` where there can be none here.
    """

    def __init__(self, make_runner: Callable[[Callable[[float], bool]], Runner]) -> None:
        self._make_runner = make_runner
        self._given: queue.Queue[UUID | None] = queue.Queue(AT_A_TIME)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._turns: dict[UUID, _Turn] = {}

    def add(self, replay_id: UUID) -> bool:
        """Run a replay soon; tell whether it is, for otherwise a worker does."""
        with self._lock:
            if self._stop.is_set():
                return False
            try:
                self._given.put_nowait(replay_id)
            except queue.Full:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="replays", daemon=True)
                self._thread.start()
            return True

    def stop(self) -> None:
        """Leave every replay to others, and return when that is done, or takes too long."""
        with self._lock:
            self._stop.set()
            with suppress(queue.Full):
                # For it may wait for the next.
                self._given.put_nowait(None)
            thread = self._thread
        if thread is not None:
            thread.join(STOPS_WITHIN)

    def _keep(self) -> None:
        try:
            runner = self._make_runner(self._stop.wait)
        except ConfigurationError as e:
            logger.warning("replays are left to workers that consume housekeeping: {}", e)
            self._forget()
            return
        while not self._stop.is_set():
            self._gather()
            for replay_id, turn in list(self._turns.items()):
                if self._stop.is_set():
                    return
                if turn.due <= time.monotonic():
                    self._take_turn(runner, replay_id, turn)

    def _forget(self) -> None:
        """Let go of what it was given, so that the next is tried anew."""
        with self._lock:
            self._thread = None
            with suppress(queue.Empty):
                while True:
                    self._given.get_nowait()

    def _gather(self) -> None:
        """Wait until there is something to do, and take on what was given."""
        wait: float | None = None
        if self._turns:
            wait = max(0.0, min(turn.due for turn in self._turns.values()) - time.monotonic())
        with suppress(queue.Empty):
            while len(self._turns) < AT_A_TIME:
                replay_id = self._given.get(block=wait != 0, timeout=wait or None)
                wait = 0
                if replay_id is not None:
                    self._turns[replay_id] = _Turn(time.monotonic())
            self._stop.wait(wait or 0)

    def _take_turn(self, runner: Runner, replay_id: UUID, turn: _Turn) -> None:
        try:
            replay = runner.run_to_end(replay_id, at_most=SLICE)
        except (ConnectionClosed, SQLAlchemyError) as e:
            # Not its text: Postgres quotes what it does not take.
            logger.warning("replay {} waits: {}", replay_id, type(e).__name__)
            replay = None
        except Exception as e:  # noqa: BLE001 - the others are to go on
            logger.error("replay {} cannot be run here: {}", replay_id, type(e).__name__)
            del self._turns[replay_id]
            return
        if replay is not None and replay.state == "running":
            turn.due, turn.misses = time.monotonic(), 0
        elif replay is None and turn.misses < TRIES:
            # Another process runs it, or had it and has died.
            turn.due, turn.misses = time.monotonic() + AGAIN_AFTER, turn.misses + 1
        else:
            del self._turns[replay_id]
