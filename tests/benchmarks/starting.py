"""What a worker process costs before it has done anything: the time from its command to the first job, which waits in
Redis already, the processor time until then, and the memory of all its processes while nothing is to do.

``dramatiq app --processes 1 --threads 8``, against stock Dramatiq with its ``RedisBroker``, each in an environment with
nothing else in it: redis-py alone imports OpenTelemetry where that is installed. Bytecode is compiled already.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import redis

from tests.benchmarks.peers.environments import programs_of
from tests.benchmarks.peers.peers import PEERS, Peer
from tests.benchmarks.report import interleave, show
from tests.processes import children_of
from tests.servers import running_cluster, running_redis
from worker import migrate

PEERS_FOLDER = Path(__file__).parent / "peers"
ROOT = Path(__file__).parents[2]
ROUNDS = 5
#: Seconds until a worker counts as idle, and that a start may take.
IDLE_AFTER, WITHIN = 5.0, 60.0
#: What is measured of ours is this checkout; its environment has what it depends on.
VARIANTS = {
    peer.name: peer if peer.environment else replace(peer, environment="dramaturg", packages=("-e", str(ROOT)))
    for peer in PEERS
    if peer.name in {"Dramatiq", "Dramaturg"}
}


@dataclass
class Memory:
    """MiB of one process: what is its own, with its share of what it has in common; and all that it has in memory."""

    pss: float
    rss: float


@dataclass
class Start:
    """One start.

    Attributes:
      seconds: From the command to the first job.
      processor: Seconds of processor time that all its processes had taken by then.
      memory: Of each process of the idle worker, by what it is.
    """

    seconds: float
    processor: float
    memory: dict[str, Memory]


def _processes(main: int) -> dict[str, int]:
    """Return the processes of a ``dramatiq`` command by what they are."""
    found = {"main": main}
    for child in children_of(main):
        below = children_of(child)
        if below:
            found["keeper"], found["worker"] = child, below[0]
        else:
            found["worker"] = child
    return found


def _processor_time(pid: int) -> float:
    """Return seconds of all threads of a process, to the nanosecond; those that have ended are not in it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _memory_of(pid: int) -> Memory:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    values = {name: int(value) / 1024 for name, value in re.findall(r"^(Pss|Rss): +(\d+) kB", text, re.MULTILINE)}
    return Memory(values["Pss"], values["Rss"])


@contextmanager
def _started(peer: Peer, programs: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [str(programs / peer.worker[0]), *peer.worker[1:]],
            env=variables,
            cwd=PEERS_FOLDER,
            stdout=log,
            stderr=log,
        )
        try:
            yield worker
        except BaseException:
            log.seek(0)
            print(log.read().decode())
            raise
        finally:
            worker.terminate()
            worker.wait(30)


def start(peer: Peer, programs: Path, environment: Mapping[str, str], idle_after: float = IDLE_AFTER) -> Start:
    """Send one job, start the worker, and look at it when the job has run, and again some seconds later."""
    with tempfile.TemporaryDirectory() as folder:
        # A pipe: whoever reads from it wakes up when the job has run, and takes no processor time until then.
        ran = Path(folder) / "ran"
        os.mkfifo(ran)
        variables = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            **environment,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{PEERS_FOLDER}:{ROOT}",
        }
        with redis.Redis.from_url(environment["REDIS_URL"]) as client:
            client.flushall()
        subprocess.run(
            [str(programs / "python"), "-c", f"import {peer.app} as app; app.send_all(1)"],
            env=variables,
            cwd=PEERS_FOLDER,
            check=True,
        )
        reader = os.open(ran, os.O_RDONLY | os.O_NONBLOCK)
        try:
            began = time.monotonic_ns()
            with _started(peer, programs, {**variables, "RAN": str(ran)}) as worker:
                if not select.select([reader], [], [], WITHIN)[0]:
                    raise TimeoutError(f"{peer.name} ran no job within {WITHIN:.0f} s")
                processes = _processes(worker.pid)
                processor = sum(map(_processor_time, processes.values()))
                ended = int(os.read(reader, 100).split()[1])
                time.sleep(idle_after)
                processes = _processes(worker.pid)
                memory = {name: _memory_of(pid) for name, pid in processes.items()}
        finally:
            os.close(reader)
    return Start((ended - began) / 1e9, processor, memory)


def _of(starts: Mapping[str, list[Start]], figure: Callable[[Start], float]) -> dict[str, list[float]]:
    return {name: [figure(one) for one in of_peer] for name, of_peer in starts.items()}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.starting")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--idle-after", type=float, default=IDLE_AFTER, help="seconds before memory is measured")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "dramaturg-peers")
    asked = parser.parse_args()
    starts: dict[str, list[Start]] = {name: [] for name in VARIANTS}
    with running_cluster() as cluster, running_redis() as redis_url, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        environment = {**database.environment(), "REDIS_URL": redis_url}

        def run(peer: Peer) -> float:
            programs = programs_of(peer, asked.folder)
            if programs is None:
                raise SystemExit(f"{peer.name} cannot be installed here")
            starts[peer.name].append(start(peer, programs, environment, asked.idle_after))
            return starts[peer.name][-1].seconds

        variants = {name: partial(run, peer) for name, peer in VARIANTS.items()}
        # Once, so that whatever is imported is compiled, and read from the disk.
        interleave(variants, 1)
        for of_peer in starts.values():
            of_peer.clear()
        interleave(variants, asked.rounds)
    against = "Dramatiq"
    show("From the command to the first job", "s", _of(starts, lambda one: one.seconds), against=against, digits=3)
    show("Processor time until then", "s", _of(starts, lambda one: one.processor), against=against, digits=3)
    everything = {
        "PSS": _of(starts, lambda one: sum(memory.pss for memory in one.memory.values())),
        "RSS": _of(starts, lambda one: sum(memory.rss for memory in one.memory.values())),
    }
    for what, figures in everything.items():
        show(f"{what} of all processes of an idle worker", "MiB", figures, against=against, digits=1)
    for name, of_peer in starts.items():
        by_process = (f"{what} {one.pss:.1f} / {one.rss:.1f}" for what, one in of_peer[-1].memory.items())
        print(f"{name}, PSS / RSS in MiB by process:", ", ".join(by_process))


if __name__ == "__main__":
    main()
