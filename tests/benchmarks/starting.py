"""What a worker process costs before it has done anything: the time from its command to the first job, which waits in
Redis already, the processor time until then, and the memory of all its processes while nothing is to do, no job having
used the database: that imports more. The row ``starting`` of ``tests.benchmarks.peers`` has both.

``dramatiq app --processes 1 --threads 8`` on one queue, against stock Dramatiq with its ``RedisBroker``, each in an
environment with nothing else in it: redis-py alone imports OpenTelemetry where that is installed. Bytecode is compiled
already.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import redis

from tests.benchmarks.report import interleave, show
from tests.processes import children_of
from tests.servers import running_cluster, running_redis
from worker import migrate

ROOT = Path(__file__).parents[2]
ROUNDS = 5
#: Seconds until a worker counts as idle, and that a start may take.
IDLE_AFTER, WITHIN = 10.0, 60.0
#: What each environment holds; of ours, what this checkout depends on.
PACKAGES = {"Dramatiq": ["dramatiq[redis]==2.2.1"], "Dramaturg": ["-e", str(ROOT)]}
#: The module of each: an actor that does nothing but say that it ran. One queue, as an entry of the Procfile has.
_ACTOR = """
import os, time

def noop():
    os.write(os.open(os.environ["RAN"], os.O_WRONLY), b"%d" % time.monotonic_ns())
"""
APPS = {
    "Dramatiq": """
import dramatiq
from dramatiq.brokers.redis import RedisBroker
dramatiq.set_broker(RedisBroker(url=os.environ["REDIS_URL"]))
send = dramatiq.actor(noop).send
""",
    "Dramaturg": """
from dramatiq import actor
from worker.broker import broker
send = actor(noop, broker=broker, queue_name="attribution", tenant_scoped=False).send
""",
}
COMMAND = {
    "Dramatiq": ["dramatiq", "app", "--processes", "1", "--threads", "8"],
    "Dramaturg": ["dramatiq", "app", "--processes", "1", "--threads", "8", "--queues", "attribution"],
}


def programs_of(name: str, folder: Path) -> Path:
    """Return the folder of an environment's programs, which is made where it is not."""
    made = folder / name.lower()
    if not (made / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(made)], check=True)
        pip = [str(made / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *PACKAGES[name]]
        subprocess.run(pip, check=True, capture_output=True)
        (made / "complete").touch()
    return made / "bin"


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
def _started(command: list[str], folder: str, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log)
        try:
            yield worker
        except BaseException:
            log.seek(0)
            print(log.read().decode())
            raise
        finally:
            worker.terminate()
            worker.wait(30)


def start(name: str, programs: Path, environment: Mapping[str, str], idle_after: float = IDLE_AFTER) -> Start:
    """Send one job, start the worker, and look at it when the job has run, and again some seconds later."""
    with tempfile.TemporaryDirectory() as folder, redis.Redis.from_url(environment["REDIS_URL"]) as client:
        client.flushall()
        (Path(folder) / "app.py").write_text(_ACTOR + APPS[name])
        # A pipe: whoever reads from it wakes up when the job has run, and takes no processor time until then.
        ran = Path(folder) / "ran"
        os.mkfifo(ran)
        variables = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            **environment,
            "RAN": str(ran),
            "PYTHONPATH": f"{folder}:{ROOT}",
        }
        subprocess.run(
            [str(programs / "python"), "-c", "import app; app.send()"], cwd=folder, env=variables, check=True
        )
        reader = os.open(ran, os.O_RDONLY | os.O_NONBLOCK)
        try:
            began = time.monotonic_ns()
            program, *arguments = COMMAND[name]
            with _started([str(programs / program), *arguments], folder, variables) as worker:
                if not select.select([reader], [], [], WITHIN)[0]:
                    raise TimeoutError(f"{name} ran no job within {WITHIN:.0f} s")
                processor = sum(map(_processor_time, _processes(worker.pid).values()))
                ended = int(os.read(reader, 100))
                time.sleep(idle_after)
                memory = {what: _memory_of(pid) for what, pid in _processes(worker.pid).items()}
        finally:
            os.close(reader)
    return Start((ended - began) / 1e9, processor, memory)


def _of(starts: Mapping[str, list[Start]], figure: Callable[[Start], float]) -> dict[str, list[float]]:
    return {name: [figure(one) for one in of_one] for name, of_one in starts.items()}


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.starting")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--idle-after", type=float, default=IDLE_AFTER, help="seconds before memory is measured")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "dramaturg-starting")
    asked = parser.parse_args()
    starts: dict[str, list[Start]] = {name: [] for name in COMMAND}
    programs = {name: programs_of(name, asked.folder) for name in COMMAND}
    with running_cluster() as cluster, running_redis() as redis_url, cluster.database() as database:
        migrate.upgrade(database.owner_url)
        environment = {**database.environment(), "REDIS_URL": redis_url}

        def run(name: str) -> float:
            starts[name].append(start(name, programs[name], environment, asked.idle_after))
            return starts[name][-1].seconds

        variants = {name: partial(run, name) for name in COMMAND}
        # Once, so that whatever is imported is compiled, and read from the disk.
        interleave(variants, 1)
        for of_one in starts.values():
            of_one.clear()
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
    for name, of_one in starts.items():
        by_process = (f"{what} {one.pss:.1f} / {one.rss:.1f}" for what, one in of_one[-1].memory.items())
        print(f"{name}, PSS / RSS in MiB by process:", ", ".join(by_process))


if __name__ == "__main__":
    main()
