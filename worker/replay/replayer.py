"""Runs replays in worker processes: those of people who are bound to a tenant, and those whose process is gone."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Final

from dramatiq import Broker, Worker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from loguru import logger
from sqlalchemy import text

from db.failed.actions import Begin
from db.replays import runs
from middleware.lossless_broker import LosslessBroker
from middleware.process_facts import process_name
from worker.queues import Queue
from worker.replay.runner import Runner

#: Seconds between two looks for replays that nobody runs.
EVERY: Final = 5.0


class Replayer(Middleware):
    """Runs replays that no other process runs, one at a time, in a thread of a process that consumes ``housekeeping``.

    Arguments:
      begin: An operator's transactions.
      make_runner: Makes a runner for this process: its name, and what waits and tells whether to stop.
    """

    def __init__(
        self, begin: Begin, make_runner: Callable[[LosslessBroker, str, Callable[[float], bool]], Runner]
    ) -> None:
        self._begin = begin
        self._make_runner = make_runner
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if isinstance(broker, LosslessBroker) and Queue.HOUSEKEEPING in worker.consumers:
            self._stop.clear()
            self._thread = threading.Thread(target=self._keep, args=(broker,), name="replays", daemon=True)
            self._thread.start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._stop.set()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(2.0)

    def _keep(self, broker: LosslessBroker) -> None:
        name = f"{process_name(None)}/{uuid.uuid4()}"
        runner = self._make_runner(broker, name, self._stop.wait)
        while not self._stop.wait(EVERY):
            try:
                self._look(runner)
            except ConnectionClosed as e:
                logger.warning("replays wait for Redis: {}", e)
            except Exception as e:  # noqa: BLE001 - Postgres is away, or behind: this thread must live whatever it is
                logger.warning("replays wait: {}", type(e).__name__)

    def _look(self, runner: Runner) -> None:
        with self._begin() as session:
            waiting = session.execute(_WAITING).scalar_one()
        if not waiting:
            return
        runner.tidy()
        with self._begin() as session:
            found = [replay.id for replay in runs.find(session, states=["running"]) if replay.runner is None]
        for replay_id in reversed(found):
            if self._stop.is_set():
                return
            runner.run_to_end(replay_id)


# Cheap, for it is asked for ever.
_WAITING = text(
    """
    SELECT EXISTS (
        SELECT FROM worker_replays
        WHERE state = 'running' AND (runner_until IS NULL OR runner_until < now())
    ) OR EXISTS (
        SELECT FROM worker_replays replay JOIN worker_replay_items item ON item.replay_id = replay.id
        WHERE replay.state = 'cancelled' AND replay.created_at > now() - interval '30 days' AND item.state = 'claimed'
    )
    """
)
