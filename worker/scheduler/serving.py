"""``worker scheduler`` as a process: until it is told to stop, and then at once."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Final
from uuid import uuid4

from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.lossless_broker import LosslessBroker
from middleware.lua_scripts import Scripts
from middleware.process_facts import process_name
from middleware.tracing import Tracing
from worker.logs.setup import configure_process
from worker.redis_client import make_redis
from worker.scheduler.jobs import Job
from worker.scheduler.process import Scheduler
from worker.scheduler.state import State
from worker.settings import Settings

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds that saying goodbye may take.
_LEAVE_WITHIN: Final = 2.0


class _ToldToStop(BaseException):
    """Raised wherever the process is when it is told to stop: it may end between any two steps."""


def serve(settings: Settings, broker: LosslessBroker, jobs: Sequence[Job]) -> None:
    """Send jobs when their time comes, until the process is told to stop.

    Arguments:
      settings: Of the deployment.
      broker: Which knows every actor.
      jobs: All of them.
    """
    configure_process(settings)
    scheduler_id, name = str(uuid4()), process_name(settings.worker_name)
    facts = {"name": name, "host": socket.gethostname(), "pid": os.getpid()}
    state = State(broker.run, scheduler_id)
    scheduler = Scheduler(broker, jobs, state, facts, _wait)
    tracing = next((one for one in broker.middleware if isinstance(one, Tracing)), None)
    if tracing is not None:
        # What it sends begins a trace.
        tracing.start()
    with suppress(_ToldToStop):
        for number in _STOP_SIGNALS:
            signal.signal(number, _stop)
        _introduce(jobs)
        scheduler.run()
    # Nothing is logged any more: that may be what was interrupted, and holds a lock.
    goodbye = threading.Thread(target=_leave, args=(scheduler, settings, scheduler_id), daemon=True)
    goodbye.start()
    if tracing is not None:
        tracing.flush()
    goodbye.join(_LEAVE_WITHIN)


def _leave(scheduler: Scheduler, settings: Settings, scheduler_id: str) -> None:
    with suppress(ConnectionClosed), make_redis(settings, answers_within=_LEAVE_WITHIN / 2) as client:
        scheduler.leave(State(Scripts(client, settings.redis_namespace), scheduler_id))


def _introduce(jobs: Sequence[Job]) -> None:
    if not jobs:
        logger.info("no actor has a schedule: there is nothing to do")
    for job in jobs:
        logger.info("{}: {}", job.name, f"{job.cron.expression} ({job.cron.timezone})" if job.on else "off")


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in _STOP_SIGNALS:
        # The first counts.
        signal.signal(number, signal.SIG_IGN)
    raise _ToldToStop


def _wait(seconds: float) -> None:
    time.sleep(seconds)
