"""Stops a worker process in time, with everything that it does not finish back in its queues as it was."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from dramatiq import Broker, MessageProxy, Worker
from dramatiq.errors import BrokerConnectionError
from dramatiq.middleware import Shutdown, ShutdownNotifications
from loguru import logger

from db.loaded import close_for_good, running_statements
from middleware.deliveries import Delivery
from middleware.dramatiq_internals import give_back_waiting, stop_taking
from middleware.errors import NotStarted
from middleware.interrupts import interrupt, is_importing, take_back_interrupt
from middleware.log_context import lines_of
from middleware.lossless_broker import LosslessBroker
from middleware.stop_signals import StopSignals

#: Seconds before the end at which jobs are interrupted, and at which the process gives up those that run on. Dramatiq's
#: main process may take a second to notice that it has ended, and another one to end.
INTERRUPT_BEFORE, GIVE_UP_BEFORE = 8.0, 3.0
#: Seconds that cancelling their statements may take then, and giving everything back: neither server need answer.
CANCEL_WITHIN, GIVE_BACK_WITHIN = 0.5, 0.75
#: Seconds between two looks at what is left.
INTERVAL = 0.1
#: What the process exits with that gave up jobs: Dramatiq's "The process was killed".
EXIT_CODE = 1


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    message: MessageProxy
    notify: bool


class GracefulShutdown(ShutdownNotifications):
    """Dramatiq's ``ShutdownNotifications``, and an end to all other jobs. Last but for ``TimeLimit``.

    When a worker stops, actors with ``notify_shutdown`` are interrupted at once, and the statement they wait for is
    cancelled. In a process that the ``dramatiq`` command started, what waits there goes back at once, too; all other
    jobs may run on until eight seconds before the end, and are then interrupted likewise. Three seconds before the end
    the process gives back what still runs, and exits. ``Shutdown`` comes once to a job, which may catch it, clean up,
    and raise it again; to one that imports a module just then it comes once it has done that.

    A job that was interrupted and fails goes back to the head of its queue as it was: it has not failed. The same holds
    of ``Shutdown`` that an actor raises by itself while its worker stops.

    Arguments:
      stop_within: Seconds from the first signal until the process has ended.
      notify_shutdown: For actors and messages that do not say.
      exit_process: Ends this process at once, with a status.
    """

    def __init__(
        self,
        *,
        stop_within: float = 20.0,
        notify_shutdown: bool = False,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(notify_shutdown=notify_shutdown)
        self.stop_within = stop_within
        self._exit_process = exit_process
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}
        self._stopping = False
        self._worker: Worker | None = None

    def after_process_boot(self, broker: Broker) -> None:
        super().after_process_boot(broker)
        # A signal's handler may put something into this queue, whatever it interrupts.
        told: SimpleQueue[float] = SimpleQueue()
        threading.Thread(target=self._wait, args=(broker, told), name="shutdown", daemon=True).start()
        StopSignals(lambda: told.put(time.monotonic())).install()

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._stopping = False

    def after_worker_boot(self, broker: Broker, worker: Worker) -> None:
        self._worker = worker

    def before_worker_shutdown(self, broker: Broker, worker: Worker) -> None:
        self._stopping = True
        self._interrupt(lambda running: running.notify)

    def before_process_message(self, broker: Broker, message: MessageProxy) -> None:
        notify = self.should_notify(broker.get_actor(message.actor_name), message)
        with self._lock:
            if not self._stopping:
                self._running[threading.get_ident()] = _Running(message, notify)
                return
        if isinstance(message, Delivery):
            message.give_back = True
        raise NotStarted("this process is stopping")

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: Any = None,
        exception: BaseException | None = None,
    ) -> None:
        self._leave()
        if exception is None or not isinstance(message, Delivery):
            return
        if message.interrupted or (self._stopping and isinstance(exception, Shutdown)):
            message.give_back = True
            logger.warning(
                "message {} for actor {} was interrupted by the shutdown, and goes back to queue {}",
                message.message_id,
                message.actor_name,
                message.queue_name,
            )

    def after_skip_message(self, broker: Broker, message: MessageProxy, **_: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        """Note that this thread's job is over, and let no interrupt come after it."""
        while True:
            try:
                with self._lock:
                    if self._running.pop(threading.get_ident(), None) is not None:
                        take_back_interrupt()
            except Shutdown:
                continue
            return

    def _interrupt(self, which: Callable[[_Running], bool]) -> None:
        """Interrupt jobs, those that import a module just now once they have done that."""
        put_off = self._interrupt_now(which)
        if put_off:
            threading.Thread(target=self._interrupt_later, args=(put_off,), name="interrupt", daemon=True).start()

    def _interrupt_later(self, put_off: list[_Running]) -> None:
        while put_off:
            time.sleep(INTERVAL)
            put_off = self._interrupt_now(put_off.__contains__)

    def _interrupt_now(self, which: Callable[[_Running], bool]) -> list[_Running]:
        """Interrupt jobs, and return those that import a module just now, which are not."""
        cancel: list[Callable[[], None]] = []
        put_off: list[_Running] = []
        with self._lock:
            for thread_id, running in self._running.items():
                message = running.message
                if not which(running) or (isinstance(message, Delivery) and message.interrupted):
                    continue
                # Before its statements are looked for, too, which may wait for the import.
                if is_importing(thread_id):
                    put_off.append(running)
                    continue
                # Noted before: of what the job then does to clean up nothing is cancelled.
                statements = running_statements(message)
                if not interrupt(thread_id, Shutdown):
                    put_off.append(running)
                    continue
                if isinstance(message, Delivery):
                    message.interrupted = True
                if statements is not None:
                    cancel.append(statements)
                with lines_of(message):
                    logger.info("interrupting message {} for actor {}", message.message_id, message.actor_name)
        for one in cancel:
            # Each takes seconds if Postgres does not answer.
            threading.Thread(target=one, name="cancel", daemon=True).start()
        return put_off

    def _wait(self, broker: Broker, told: SimpleQueue[float]) -> None:
        began = told.get()
        if isinstance(broker, LosslessBroker):
            threading.Thread(target=broker.stops, name="stops", daemon=True).start()
        try:
            self._shut_down(broker, began)
        except BaseException:  # noqa: BLE001 - the process must end, whatever it is
            logger.opt(exception=True).critical("the shutdown went wrong")
            time.sleep(max(0, began + self.stop_within - GIVE_UP_BEFORE - time.monotonic()))
        self._give_up(broker)

    def _shut_down(self, broker: Broker, began: float) -> None:
        """Do what is to be done until the process ends, which this daemon thread does not keep it from doing."""
        interrupt_at = began + max(0.0, self.stop_within - INTERRUPT_BEFORE)
        give_up_at = began + self.stop_within - GIVE_UP_BEFORE
        taking, interrupted = True, False
        while time.monotonic() < give_up_at:
            if self._worker is not None and taking:
                if not self._stopping:
                    self.before_worker_shutdown(broker, self._worker)
                ended = stop_taking(self._worker)
                # Once more after no more can come.
                taking = not (self._give_back_waiting(self._worker) and ended)
            if not interrupted and time.monotonic() >= interrupt_at:
                interrupted = True
                self._interrupt(lambda _: True)
            time.sleep(INTERVAL)

    def _give_back_waiting(self, worker: Worker) -> bool:
        try:
            count = give_back_waiting(worker)
        except BrokerConnectionError as e:
            logger.warning("what waits here cannot be given back yet: {}", e)
            return False
        if count:
            logger.info("gave back {} messages that had not begun", count)
        return True

    def _give_up(self, broker: Broker) -> None:
        """Exit, with everything given back that Redis takes."""
        for running in list(self._running.values()):
            with lines_of(running.message):
                logger.warning(
                    "message {} for actor {} does not end: it is given back while it runs, and this process exits",
                    running.message.message_id,
                    running.message.actor_name,
                )
        close_for_good(CANCEL_WITHIN)
        if isinstance(broker, LosslessBroker):
            giving_back = threading.Thread(target=broker.give_back_all, name="exit", daemon=True)
            giving_back.start()
            giving_back.join(GIVE_BACK_WITHIN)
        self._exit_process(EXIT_CODE)
