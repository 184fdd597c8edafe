"""Runs replays in worker processes: those of people who are bound to a tenant, and those whose process is gone."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dramatiq import Broker, Worker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from loguru import logger

from db import glance
from middleware.lossless_broker import LosslessBroker
from middleware.process_facts import process_name
from worker.queues import Queue

if TYPE_CHECKING:
    # A process imports them when there is a replay.
    from db.failed.actions import Begin
    from worker.replay.runner import Runner

#: Seconds between two looks for replays that nobody runs, for which one is run before the next, and between two
#: warnings of the same.
EVERY: Final = 5.0
SLICE: Final = 5.0
SAY_EVERY: Final = 300.0
#: Replays that are looked at in turn.
AT_A_TIME: Final = 50


class Replayer(Middleware):
    """Runs replays that no other process runs, in turn, in a thread of a process that consumes ``housekeeping``.

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
        self._said: dict[str, float] = {}

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
        runner: Runner | None = None
        more = False
        while not self._stop.wait(0 if more else EVERY):
            more = False
            try:
                if runner is None and not self._may_have_work(broker):
                    continue
                runner = runner or self._make_runner(broker, name, self._stop.wait)
                more = self.look(runner)
            except ConnectionClosed as e:
                self._say(f"replays wait for Redis: {e}")
            except Exception as e:  # noqa: BLE001 - Postgres is away, or behind: this thread must live whatever it is
                # Not its text: Postgres quotes what it does not take.
                state = getattr(getattr(e, "orig", None), "sqlstate", None)
                self._say(f"replays wait: {type(e).__name__}{f', SQLSTATE {state}' if state else ''}")

    def _may_have_work(self, broker: LosslessBroker) -> bool:
        """Tell whether there may be any, before all that is imported which does it."""
        return glance.may_be_there(_MAY_HAVE_WORK) or bool(broker.run("removed_replays", 1))

    def _say(self, what: str) -> None:
        """Warn of what lasts, once in a while: where migrations are behind, or rights are missing, for ever."""
        now = time.monotonic()
        if now - self._said.get(what, float("-inf")) >= SAY_EVERY:
            self._said[what] = now
            logger.warning("{}", what)

    def look(self, runner: Runner) -> bool:
        """Run what nobody runs, each for a while, and tell whether there is more to do at once.

        One whose jobs wait long for their retries keeps no other from going on.
        """
        from sqlalchemy import text
        from sqlalchemy.exc import InterfaceError, OperationalError

        from db.replays import claims, runs

        with self._begin() as session:
            found = runs.waiting(session, AT_A_TIME)
            for replay_id in claims.moved(session, AT_A_TIME):
                # Of those that are cancelled, for one; whoever runs one does it at its end.
                claims.follow_the_moved(session, replay_id)
            tidy = session.execute(text(_TO_LET_GO)).scalar_one()
        if tidy:
            runner.tidy()
        runner.release_removed()
        for replay_id in found:
            if self._stop.is_set():
                return False
            try:
                runner.run_to_end(replay_id, at_most=SLICE)
            except (ConnectionClosed, OperationalError, InterfaceError):
                # Redis or Postgres is away, for all of them.
                raise
            except Exception as e:  # noqa: BLE001 - whatever one holds, the others go on
                self._say(f"replay {replay_id} does not go on: {type(e).__name__}")
        return bool(found)


# More than there is work for: what is left alone here is looked at in no other way.
_MAY_HAVE_WORK: Final = """
    SELECT FROM worker_replays
    WHERE state IN ('running', 'paused', 'stopped')
       OR (state = 'cancelled' AND finished_at > now() - interval '31 days')
    UNION ALL SELECT FROM worker_failed_jobs WHERE status = 'in_progress'
"""
# Cheap, for it is asked for ever.
_TO_LET_GO: Final = """
    SELECT EXISTS (
        SELECT FROM worker_replays replay JOIN worker_replay_items item ON item.replay_id = replay.id
        WHERE item.state = 'claimed' AND (
            replay.state IN ('paused', 'stopped')
            OR (replay.state = 'cancelled' AND replay.finished_at > now() - interval '30 days')
        )
    )
    """
