"""Ends a worker process that cannot do its work any more, so that its host starts another."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dramatiq import Broker, MessageProxy, Worker
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.middleware import Middleware
from loguru import logger

from db.loaded import close_for_good
from middleware.deliveries import Delivery
from middleware.dramatiq_internals import dead_threads, say_booted, stop_taking
from middleware.event_loop import EventLoop
from middleware.log_context import lines_of
from middleware.lossless_broker import LosslessBroker
from middleware.time_limit import time_limit_of

#: Milliseconds beyond its time limit that a job gets to end.
OVERTIME = 60_000
#: Seconds between two looks.
INTERVAL = 1.0
#: Seconds between two looks by which it is plain that nothing ran here.
FROZEN = 5.0
#: Seconds that the threads which fetch get to end, and that cancelling statements may take.
STOP_WITHIN, CANCEL_WITHIN = 3.0, 1.0
#: What the process exits with. Not 0: Dramatiq's main process would pass that on as if all were well.
EXIT_CODE = os.EX_SOFTWARE


@dataclass(slots=True, eq=False)
class _Running:
    message: MessageProxy
    thread: str
    due: float


class Supervision(Middleware):
    """Looks every second, in a process that the ``dramatiq`` command started, whether all its threads live, and whether
    a job runs on past its time limit: in C code, or because it swallows the interrupt. Neither mends itself.

    Then it logs what is wrong, gives back what the process holds, and exits. A job past its limit is not given back: it
    goes back when the lease of the process ends, as one whose process died of it.

    Dramatiq's main process then ends the other processes, and exits with the same status: what starts it again is the
    host.

    Arguments:
      time_limit: Milliseconds, for actors and messages that do not say; the same as ``TimeLimit``'s.
      overtime: Milliseconds, see :data:`OVERTIME`.
      exit_process: Ends this process at once, with a status.
    """

    def __init__(
        self, *, time_limit: float, overtime: float = OVERTIME, exit_process: Callable[[int], object] = os._exit
    ) -> None:
        self.time_limit = time_limit
        self.overtime = overtime
        self._exit_process = exit_process
        self._running: dict[int, _Running] = {}
        self._supervised = False
        self._stop = threading.Event()

    def after_process_boot(self, broker: Broker) -> None:
        self._supervised = True

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if self._supervised:
            say_booted()

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        if self._supervised:
            self._stop.clear()
            threading.Thread(target=self._keep, args=(broker, worker), name="supervision", daemon=True).start()

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        # From here on threads end as they should, and the process does in any case.
        self._stop.set()

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        limit = time_limit_of(broker, message, self.time_limit)
        if not math.isinf(limit):
            due = time.monotonic() + (limit + self.overtime) / 1000
            self._running[threading.get_ident()] = _Running(message, threading.current_thread().name, due)

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        self._running.pop(threading.get_ident(), None)

    def after_skip_message(self, broker: Broker, message: MessageProxy) -> None:
        self._running.pop(threading.get_ident(), None)

    def _keep(self, broker: Broker, worker: Worker) -> None:
        looked = time.monotonic()
        parent = os.getppid()
        while not self._stop.wait(INTERVAL):
            now = time.monotonic()
            if os.getppid() != parent:
                # Nobody reads what it logs, and nobody would end it at the next deploy.
                logger.critical("its parent process is gone: this process stops")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            every = list(self._running.values())
            if now - looked > FROZEN:
                # The process was stopped, and its jobs with it: they may heed their limit yet.
                for running in every:
                    running.due = max(running.due, now + self.overtime / 1000)
            looked = now
            overdue = [running for running in every if running.due <= now]
            dead, loop = dead_threads(worker), get_event_loop_thread()
            if isinstance(loop, EventLoop) and loop.died:
                dead.append(loop)
            if (overdue or dead) and not self._stop.is_set():
                self._end(broker, worker, overdue, dead)
                return

    def _end(self, broker: Broker, worker: Worker, overdue: list[_Running], dead: list[threading.Thread]) -> None:
        for running in overdue:
            with lines_of(running.message):
                logger.critical(
                    "message {} for actor {} runs on in thread {}, {:.0f} seconds past its time limit, which it does "
                    "not heed: this process exits with status {}",
                    running.message.message_id,
                    running.message.actor_name,
                    running.thread,
                    self.overtime / 1000,
                    EXIT_CODE,
                )
        for thread in dead:
            logger.critical("thread {} has died: this process exits with status {}", thread, EXIT_CODE)
        try:
            self._give_back(broker, worker, overdue)
        except BaseException:  # noqa: BLE001 - the process must end, whatever it is
            logger.opt(exception=True).critical("what this process holds goes back when its lease ends")
        self._exit_process(EXIT_CODE)

    def _give_back(self, broker: Broker, worker: Worker, overdue: list[_Running]) -> None:
        end = time.monotonic() + STOP_WITHIN
        while not stop_taking(worker) and time.monotonic() < end:
            time.sleep(0.05)
        for running in list(self._running.values()):
            if running not in overdue and isinstance(running.message, Delivery):
                # It does not fail because its statement is cancelled.
                running.message.interrupted = True
        close_for_good(CANCEL_WITHIN)
        if isinstance(broker, LosslessBroker):
            broker.give_back_all(but=[one.message.redis_id for one in overdue if isinstance(one.message, Delivery)])
