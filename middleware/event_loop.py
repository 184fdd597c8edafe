"""Dramatiq's event loop for async actors, which none of them ends, and which knows when a coroutine has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from dramatiq import Broker, Worker
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.middleware import AsyncIO as DramatiqAsyncIO
from dramatiq.threading import Interrupt
from loguru import logger

#: Seconds that the loop may take to start. Dramatiq allows one, and goes on without a loop on a machine that is busy.
START_WITHIN = 30.0

R = TypeVar("R")


class AsyncIO(DramatiqAsyncIO):
    """Dramatiq's, with an :class:`EventLoop`."""

    def before_worker_boot(self, broker: Broker, worker: Worker) -> None:
        loop = EventLoop(self.logger)
        loop.start(timeout=START_WITHIN)
        set_event_loop_thread(loop)


class EventLoop(EventLoopThread):
    """Dramatiq's thread, with three differences.

    ``SystemExit`` and ``KeyboardInterrupt`` fail the job that raises them, as in an actor that is not async; asyncio
    ends the loop at them, and with it every other job's coroutine. A stop of the loop by anybody else does not end it.
    And after an interrupt the job has ended when its coroutine has: Dramatiq waits for a second, and then counts as
    failed what still runs.
    """

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._stopped = False

    @property
    def died(self) -> bool:
        """Whether it has ended without having been told to."""
        return self.ident is not None and not self.is_alive() and not self._stopped

    def run(self) -> None:
        try:
            while not self._stopped:
                try:
                    self.loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as e:
                    # Of a task that a job has started; whoever awaits it gets the exception, too.
                    logger.error("a task of an async actor raised {!r}; the event loop goes on", e)
                except Exception:  # noqa: BLE001 - whoever looks after the process sees that it has died
                    logger.opt(exception=True).critical("the event loop has died")
                    return
        finally:
            self.loop.close()

    def stop(self) -> None:
        self._stopped = True
        super().stop()

    def run_coroutine(self, coro: Awaitable[R]) -> R:
        """Run a coroutine on the loop and return its result once it has ended.

        Raises:
          RuntimeError: When the loop does not run.
          Interrupt: That came meanwhile, after the coroutine has ended, which was cancelled.
        """
        if not self.loop.is_running():
            raise RuntimeError("Event loop is not running.")
        job = _Job(coro)
        interrupt: Interrupt | None = None
        start = job.start
        while True:
            try:
                self.loop.call_soon_threadsafe(start)
                # Interrupts come between two waits.
                while not job.done.wait(self.interrupt_check_ival):
                    pass
                break
            except Interrupt as e:
                interrupt = interrupt or e
                # It may have come before the loop was told to start it.
                start = job.start_cancelled
        try:
            if interrupt is not None:
                raise interrupt
            if job.error is not None:
                raise job.error
            result: R = job.result
            return result
        finally:
            # An exception holds its frames, and they would hold it.
            del job, interrupt


class _Job:
    """A coroutine on its way through the loop; its methods are called there."""

    def __init__(self, coro: Awaitable[Any]) -> None:
        self._coro = coro
        self._task: asyncio.Task[None] | None = None
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def start(self) -> None:
        if self._task is not None:
            return
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            # Before its first step, by whoever that was.
            self.error = asyncio.CancelledError()
        if isinstance(self._coro, Coroutine):
            # Cancelled before its first step it would be said never to have been awaited.
            self._coro.close()
        self.done.set()

    def start_cancelled(self) -> None:
        """Start it, if it was not, so that it can end; and have it end."""
        self.start()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            self.result = await self._coro
        except BaseException as e:  # noqa: BLE001 - it is raised where the coroutine is waited for
            self.error = e
