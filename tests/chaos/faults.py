"""Does what the plan says goes wrong, and notes which processes it hit, and when."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.plan import PlannedFault
from tests.chaos.world import World
from tests.processes import children_of, workers_of
from tests.supervisor import Supervisor

LUA = Path(__file__).parents[2] / "middleware" / "lua"
#: Seconds in which a command has to come whose answer is to be lost.
LOSE_WITHIN = 10.0
#: What stands in stock Dramatiq's commands for each of our scripts.
STOCK_MARKERS = {
    "fetch": b"\r\nfetch\r\n",
    "fetch_due": b"\r\nfetch\r\n",
    "finish": b"\r\nack\r\n",
    "finish_many": b"\r\nack\r\n",
    "enqueue": b"\r\nenqueue\r\n",
    "beat": b"\r\nfetch\r\n",
    "relay": b"\r\nenqueue\r\n",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was done: from when to when, and which processes it hit; none if it was a server or a wire."""

    kind: str
    began: float
    ended: float
    pids: frozenset[int]


@dataclass
class Faults:
    """Does faults, several at a time if need be."""

    world: World
    supervisor: Supervisor
    done: list[Fault] = field(default_factory=list)
    #: What the faults themselves failed with; there should be nothing.
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="fault")
        self._lock = threading.Lock()
        self._wires = {"cut Redis": self.world.redis_wire, "cut Postgres": self.world.postgres_wire}

    def begin(self, fault: PlannedFault) -> None:
        """Do ``fault`` from now on."""
        self._pool.submit(self._do, fault)

    def finish(self) -> None:
        """Wait for all that has begun to be over."""
        self._pool.shutdown(wait=True)

    def _do(self, fault: PlannedFault) -> None:
        began = time.time()
        try:
            pids = self._hit(fault)
        except Exception as e:  # noqa: BLE001 - it is part of the verdict
            self.errors.append(f"{fault.kind}: {type(e).__name__}: {e}")
            return
        if pids is not None:
            with self._lock:
                self.done.append(Fault(fault.kind, began, time.time(), frozenset(pids)))

    def _hit(self, fault: PlannedFault) -> list[int] | None:
        """Do it; return which processes it hit, ``None`` if there was nothing to hit."""
        match fault.kind:
            case "stop Postgres":
                self.world.stop_postgres(fault.seconds)
            case "restart Redis":
                self.world.restart_redis(fault.seconds, kill=fault.detail == "by SIGKILL")
            case "cut Redis" | "cut Postgres":
                wire = self._wires[fault.kind]
                wire.down()
                time.sleep(fault.seconds)
                wire.up()
            case "lose an answer of Redis":
                return self._lose(self.world.redis_wire.lose_answer_to, fault.detail)
            case "lose a command to Redis":
                return self._lose(self.world.redis_wire.lose, fault.detail)
            case _:
                return self._hit_processes(fault)
        return []

    def _lose(self, lose: Callable[[bytes], None], script: str) -> list[int] | None:
        lost = self.world.redis_wire.lost
        lost.clear()
        lose(self._marker(script))
        return [] if lost.wait(LOSE_WITHIN) else None

    def _marker(self, script: str) -> bytes:
        if self.world.stock:
            return STOCK_MARKERS[script]
        return hashlib.sha1((LUA / f"{script}.lua").read_bytes()).hexdigest().encode()  # noqa: S324 - Redis' name for it

    def _hit_processes(self, fault: PlannedFault) -> list[int] | None:
        group = self.supervisor.group(fault.queue)
        keepers, workers = ([], []) if group is None else (children_of(group), workers_of(group))
        if group is None or not workers:
            return None
        one = workers[int(fault.which * len(workers))]
        match fault.kind:
            case "kill one process":
                _signal(one, signal.SIGKILL)
                return [one]
            case "kill a keeper":
                keeper = keepers[int(fault.which * len(keepers))]
                _signal(keeper, signal.SIGKILL)
                # Its worker is told to stop, and the others of the entry with it.
                return workers
            case "kill an entry":
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
                return workers
            case "terminate an entry":
                self.supervisor.terminate(fault.queue)
                return workers
            case _:
                frozen = [group, *keepers, *workers] if "entry" in fault.kind else [one]
                for pid in frozen:
                    _signal(pid, signal.SIGSTOP)
                time.sleep(fault.seconds)
                for pid in frozen:
                    _signal(pid, signal.SIGCONT)
                return frozen


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
