"""A process' lease on what it holds, and the end of other processes' leases."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from dramatiq.errors import ConnectionClosed
from loguru import logger

from middleware.lua_scripts import Scripts
from middleware.tally import Tally


def _now() -> float:
    # A clock that goes on while the machine sleeps, where there is one.
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _name(gone: bytes) -> str:
    """Return what a process that is gone called itself, or else its broker id."""
    try:
        return str(json.loads(gone)["worker"])
    except (ValueError, KeyError, TypeError):
        return gone.decode("utf-8", "replace")


#: The part of the time between two signs of life after which what is asked goes with the next one, now.
EARLY = 0.75


class Heartbeat:
    """Renews the lease of this process from a thread of its own, and gives back what silent processes held.

    All on the server's clock and under keys of our own: stock Dramatiq's ``__heartbeats__`` goes by the clock of
    whoever enqueues, so a producer whose clock is ahead takes messages away from workers that live.

    Arguments:
      run: The scripts.
      broker_id: Whose lease.
      lease: Milliseconds of silence after which a process is given up.
      grace: Milliseconds that all get to come back in when nobody could beat for half a lease: Redis was away.
      interval: Seconds between two signs of life.
      facts: Gives what this process says of itself, as JSON, for those who find it gone.
      running: Gives what runs in this process, as ``queue:id``, and since when in milliseconds since 1970.
      tally: What ended in this process, of which each sign of life tells.
      on_missing: Told when Redis had not been told of a start.
      on_spool: Told with each of them how many failures wait in the spool.
      on_suspects: Told with each of them which queues have messages that were running when a worker was lost.
      on_due: Told with each of them of each delay queue in which something is due within a lease, and in how many
        seconds.
      on_given_back: Told of each queue of a process that was lost, how many messages went back, and how many of these
        were running.

    Attributes:
      epoch: Which lease this is, as Redis numbers them: another once this process was given up. What it fetched
        before is somebody else's.
    """

    def __init__(
        self,
        run: Scripts,
        broker_id: str,
        *,
        lease: int,
        grace: int,
        interval: float,
        facts: Callable[[], str] = lambda: "{}",
        running: Callable[[], Mapping[bytes, int]] = dict,
        tally: Tally | None = None,
        on_missing: Callable[[], object] = lambda: None,
        on_spool: Callable[[int], object] = lambda _: None,
        on_suspects: Callable[[set[str]], object] = lambda _: None,
        on_given_back: Callable[[str, int, int], object] = lambda _queue, _count, _running: None,
        on_due: Callable[[str, float], object] = lambda _queue, _seconds: None,
    ) -> None:
        self._run = run
        self._facts = facts
        self._running = running
        self._tally = Tally() if tally is None else tally
        self._on_missing = on_missing
        self._left = False
        self._on_spool = on_spool
        self._on_suspects = on_suspects
        self._on_given_back = on_given_back
        self._on_due = on_due
        self._beating = threading.Lock()
        self._beaten_at = float("-inf")
        # As of then: Redis' clock less ours, in milliseconds; and whether no other process lives.
        self._ahead, self._is_alone = 0.0, False
        self.epoch = 0
        self._broker_id = broker_id
        self._lease = lease
        self._grace = grace
        self._interval = interval
        self._queues: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beaten = False

    def cover(self, queue_name: str) -> None:
        """Take the lease for another queue, now; and keep it from now on.

        Raises:
          ConnectionClosed: When Redis cannot be asked; nothing may be fetched then.
        """
        self._queues.add(queue_name)
        asked = _now()
        with self._lock:
            self._left = False
            # All queues of a process begin at the same time: a beat that began since then was for this one, too.
            if self._beaten_at < asked:
                self.beat()
            if self._thread is None:
                self._stop.clear()
                self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
                self._thread.start()

    def beat(self) -> None:
        """Renew the lease once, unless it was ended."""
        self._beat("")

    def ask_turn(self, who: str, milliseconds: int) -> list[int]:
        """As :meth:`LosslessBroker.ask_turn`."""
        if self._thread is not None and _now() - self._beaten_at > EARLY * self._interval:
            turn = self._beat(f"{who} {milliseconds}")
            if turn is not None:
                return [self._redis_time(), turn]
        elif self._is_alone and self.is_fresh():
            # Nobody else asks, and who begins meanwhile does no harm.
            return [self._redis_time(), 1]
        found: list[int] = self._run("relay_turn", who, milliseconds, milliseconds)
        return found

    def _redis_time(self) -> int:
        return int(self._ahead + _now() * 1000)

    def _beat(self, asks: str) -> int | None:
        """Renew the lease, and return 1 where it is the turn of who ``asks``, else 0; nothing where it was ended."""
        with self._beating:
            if self._left:
                return None
            before = _now()
            running = self._running()
            with self._telling() as counts:
                said = self._run(
                    "beat",
                    self._broker_id,
                    self._lease,
                    self._grace,
                    self._facts(),
                    asks,
                    len(running),
                    *(part for entry in running.items() for part in entry),
                    len(counts),
                    *(part for entry in counts.items() for part in entry),
                    *sorted(self._queues),
                )
            known, self.epoch, spooled, suspected, missing, wrong, due, (redis_time, turn, alive), *given_back = said
            if self._beaten and not known:
                logger.error(
                    "this process was given up after {} ms of silence, or Redis forgot it: what it held runs elsewhere",
                    self._lease,
                )
            self._beaten = True
            # Not when the answer came: Redis counts from a moment between the two.
            self._beaten_at = before
            self._ahead, self._is_alone = redis_time - before * 1000, alive == 1
        if missing:
            self._on_missing()
        for problem in wrong:
            logger.error("what another worker left cannot be given back: {}", problem.decode())
        self._on_spool(spooled)
        self._on_suspects({queue.decode() for queue in suspected})
        for queue, milliseconds in zip(due[::2], due[1::2], strict=True):
            self._on_due(queue.decode(), milliseconds / 1000)
        for gone, queue, count, suspects in zip(*(given_back[n::4] for n in range(4)), strict=True):
            self._on_given_back(queue.decode(), count, suspects)
            logger.warning(
                "worker {} is gone: {} messages are back in queue {}, of which {} were running",
                _name(gone),
                count,
                queue.decode(),
                suspects,
            )
        return int(turn)

    @contextmanager
    def _telling(self) -> Iterator[Mapping[str, int]]:
        """Give what is to be told of what has ended; it is told later where the ``with`` block raises."""
        counts = self._tally.take()
        try:
            yield counts
        except ConnectionClosed:
            self._tally.put_back(counts)
            raise

    def refresh(self) -> None:
        """Renew the lease now, unless it surely stands.

        Raises:
          ConnectionClosed: When Redis had to be asked, and could not be.
        """
        if not self.is_fresh():
            self.beat()

    def is_fresh(self) -> bool:
        """Tell, without asking, whether the lease surely stands at this moment."""
        return _now() - self._beaten_at < self._lease / 2000

    def stands_for(self) -> float:
        """Return for how many seconds, from this moment on, the lease surely stands; less than 0 if it may not."""
        return self._lease / 1000 - (_now() - self._beaten_at)

    def holds(self, epoch: int) -> bool:
        """Tell whether what was fetched in ``epoch`` is still this process'.

        Raises:
          ConnectionClosed: When Redis had to be asked, and could not be.
        """
        if self._left:
            return False
        self.refresh()
        return epoch == self.epoch

    def _keep(self) -> None:
        pause = self._interval
        while not self._stop.wait(pause):
            # Somebody may have asked something meanwhile.
            pause = self._interval - (_now() - self._beaten_at)
            if pause > 0:
                continue
            pause = self._interval
            try:
                self.beat()
            except ConnectionClosed as e:
                # The lease goes on meanwhile.
                pause = self._interval / 4
                logger.warning("the lease could not be renewed: {}", e)
            except Exception:  # noqa: BLE001 - without this thread the process would be given up
                logger.opt(exception=True).critical("the lease could not be renewed")

    def stop(self) -> bool:
        """End the lease, and with it what is still held goes back; tell whether Redis knows, as :meth:`leave`."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is None:
            return False
        thread.join()
        return self.leave()

    def leave(self) -> bool:
        """Give back what is still held, and tell whether it is. How it ends here counts for nothing from now on."""
        with self._beating:
            self._left = True
            self._beaten_at = float("-inf")
        try:
            with self._telling() as counts:
                self._run("goodbye", self._broker_id, *(part for entry in counts.items() for part in entry))
        except ConnectionClosed as e:
            logger.warning("what this process held goes back when its lease ends: {}", e)
            return False
        return True
