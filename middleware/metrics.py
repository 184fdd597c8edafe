"""Tells Redis what a process has counted, every two seconds, from a thread of its own.

Prometheus asks one place, which sums up what all processes have told: whoever ends takes nothing with him, and no
process needs a port, or a file. What one that is killed had not told is lost: two seconds of it at most. A batch whose
answer is lost is told again under its number, which counts once. While Redis is away it waits here, and grows with the
number of series, not of messages.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection
from typing import Final
from uuid import uuid4

from dramatiq import Broker, Worker
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Middleware
from loguru import logger

from middleware.job_metrics import Counts, JobMetrics, Series
from middleware.lossless_broker import LosslessBroker
from middleware.lua_scripts import Argument, Scripts
from middleware.metric_families import (
    JOBS,
    OUTCOMES,
    QUARANTINES,
    REDELIVERIES,
    REPLAYS,
    RUNNING,
    SPOOLED,
    VERSION,
    WAITING,
)
from middleware.tally import FAILED, SUCCEEDED

#: Seconds between two batches, that the last may take, and between two complaints that Redis takes none.
TELL_EVERY, END_WITHIN, COMPLAIN_EVERY = 2.0, 2.0, 60.0
#: Seconds after which what there may be to count is told again though nothing was: Redis may have been emptied.
INTRODUCE_EVERY: Final = 1_800.0
#: Days after which a series that nobody tells makes room for others, where there is none.
FORGOTTEN_AFTER: Final = 30


class Teller:
    """Tells Redis what was counted, one batch after the other.

    Arguments:
      counts: What was.
      run: The scripts.
    """

    def __init__(self, counts: Counts, run: Scripts) -> None:
        self._counts = counts
        self._run = run
        # Its own: of two on one broker, one after the other, each numbers its batches from 1.
        self._id = str(uuid4())
        self._number = 0
        self._batch: dict[Series, list[int]] = {}
        self._complained = float("-inf")

    def tell(self) -> bool:
        """Tell everything, and return whether Redis has it. Raises nothing; what it has not is told the next time."""
        try:
            while self._next():
                self._run("tell", self._id, self._number, VERSION, FORGOTTEN_AFTER, *_arguments(self._batch))
                self._batch = {}
        except Exception as e:  # noqa: BLE001 - whatever it is, jobs go on
            if time.monotonic() - self._complained > COMPLAIN_EVERY:
                self._complained = time.monotonic()
                said = str(e) if isinstance(e, ConnectionClosed) else type(e).__name__
                logger.warning("metrics wait to be told: {}", said)
            return False
        return True

    def _next(self) -> bool:
        """Have a batch, and tell whether there is anything in it: the one that may not have been told, or the next."""
        if not self._batch:
            self._batch = self._counts.take()
            self._number += 1
        return bool(self._batch)


def _arguments(batch: dict[Series, list[int]]) -> list[Argument]:
    return [
        part
        for (family, labels), values in batch.items()
        for part in (
            family.name,
            family.at_most,
            json.dumps(labels),
            json.dumps(family.other(labels)),
            " ".join(map(str, values)),
        )
    ]


class Metrics(Middleware):
    """Tells what a :class:`LosslessBroker` counts, in every worker process; idle on others.

    Arguments:
      but: Actors that nobody wants to see.
    """

    def __init__(self, but: Collection[str] = ()) -> None:
        self._but = frozenset(but)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if not isinstance(broker, LosslessBroker) or broker.metrics is None:
            return
        self._stop.clear()
        arguments = (broker, broker.metrics, worker)
        self._thread = threading.Thread(target=self._keep, args=arguments, name="metrics", daemon=True)
        self._thread.start()

    def after_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        # By now everything has ended that will.
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(END_WITHIN)

    def _keep(self, broker: LosslessBroker, metrics: JobMetrics, worker: Worker) -> None:
        teller, again = Teller(metrics, broker.run), float("-inf")
        ended = False
        while not ended:
            if time.monotonic() > again:
                again = time.monotonic() + INTRODUCE_EVERY
                self._introduce(broker, metrics, worker)
            teller.tell()
            ended = self._stop.wait(TELL_EVERY)
        teller.tell()

    def _introduce(self, broker: LosslessBroker, metrics: JobMetrics, worker: Worker) -> None:
        """Count none of what this process may count: of a series that begins with 1 Prometheus sees no increase."""
        for actor in list(broker.actors.values()):
            if actor.queue_name in worker.consumers and actor.actor_name not in self._but:
                for outcome in OUTCOMES:
                    metrics.add(JOBS, actor.queue_name, actor.actor_name, outcome, n=0)
        for queue in sorted({name.removesuffix(".DQ") for name in list(worker.consumers)}):
            for family in (QUARANTINES, SPOOLED):
                metrics.add(family, queue, n=0)
            for state in (RUNNING, WAITING):
                metrics.add(REDELIVERIES, queue, state, n=0)
            for outcome in (SUCCEEDED, FAILED):
                metrics.add(REPLAYS, queue, outcome, n=0)
