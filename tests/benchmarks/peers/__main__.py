"""``python -m tests.benchmarks.peers``: makes the environments, starts servers, runs everybody in turn, prints a table,
and writes JSON.

No-op jobs, one worker process with 8 threads, or 8 at once where there are no threads; everybody's defaults but for
what their names say. A rate is from the first job that ran to the last, so that starting does not count.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import redis
from rich.console import Console
from rich.table import Table

from tests.benchmarks.peers.environments import programs_of, versions_of
from tests.benchmarks.peers.peers import PEERS, Peer
from tests.benchmarks.peers.running import Incomplete, Run, run
from tests.servers import running_cluster, running_redis
from worker import migrate

HERE = Path(__file__).parent


def prepare(peer: Peer, programs: Path, environment: dict[str, str]) -> None:
    """Make a peer's tables."""
    if peer.prepare:
        command = [environment.get(part[1:], part) if part.startswith("$") else part for part in peer.prepare]
        variables = {**environment, "PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": str(HERE)}
        subprocess.run([str(programs / command[0]), *command[1:]], env=variables, cwd=HERE, check=True)


def machine() -> str:
    """Return what this was measured on, in words."""
    cores = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")]
    return f"{len(cores)} cores of {platform.machine()}, {platform.system()} {platform.release().split('-')[0]}"


def measure(chosen: list[Peer], folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """Return each peer's runs, and the versions of what ran."""
    runs: dict[str, list[Run]] = {}
    versions: dict[str, dict[str, str]] = {}
    with running_cluster() as cluster, running_redis() as redis_url, cluster.database() as ours:
        migrate.upgrade(ours.owner_url)
        with psycopg.connect(ours.admin_url) as admin:
            (server,) = admin.execute("SHOW server_version").fetchone() or ("",)
        with redis.Redis.from_url(redis_url) as client:
            information = client.info("server")
            valkey = str(information.get("valkey_version") or information["redis_version"])
        for _ in range(rounds):
            for peer in chosen:
                programs = programs_of(peer, folder)
                if programs is None:
                    Console().print(f"{peer.name}: left out, no Python {peer.python[0]}.{peer.python[1]} here")
                    continue
                with redis.Redis.from_url(redis_url) as client:
                    client.flushall()
                with cluster.database() as theirs:
                    environment = {**ours.environment(), "REDIS_URL": redis_url, "PGDSN": theirs.owner_url}
                    prepare(peer, programs, environment)
                    try:
                        one = run(peer, programs, environment, count)
                    except Incomplete as e:
                        Console().print(str(e), markup=False)
                        continue
                Console().print(f"{peer.name}: {one.rate:,.0f} a second", markup=False)
                runs.setdefault(peer.name, []).append(one)
                versions[peer.name] = versions_of(programs)
    packages = {name.split("[")[0].split("==")[0] for peer in chosen for name in peer.packages} | {"dramaturg", "redis"}
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "postgres": server,
        "valkey": valkey,
        "jobs": count,
        "runs": {name: [asdict(one) for one in of_peer] for name, of_peer in runs.items()},
        "versions": {
            name: {package: version for package, version in found.items() if package in packages}
            for name, found in versions.items()
        },
    }


def show(measured: dict[str, Any]) -> None:
    """Print medians, least and most, and each peer's share of ours."""
    medians = {name: median(one["rate"] for one in runs) for name, runs in measured["runs"].items()}
    ours = medians.get("Dramaturg")
    table = Table("", "jobs a second", "least", "most", "Dramaturg to it", "enqueued", "to first job", "MiB", "again")
    for name in sorted(medians, key=medians.__getitem__, reverse=True):
        runs = measured["runs"][name]
        rates = [one["rate"] for one in runs]
        table.add_row(
            name,
            *(f"{figure:,.0f}" for figure in (medians[name], min(rates), max(rates))),
            f"{ours / medians[name]:.2f} x" if ours else "",
            f"{median(one['enqueued'] for one in runs):,.0f}",
            f"{median(one['first'] for one in runs):.2f} s",
            f"{median(one['memory'] for one in runs):.0f}",
            str(sum(one["again"] for one in runs)),
        )
    table.title = (
        f"{measured['jobs']:,} no-op jobs; {measured['machine']}, Python {measured['python']}, "
        f"PostgreSQL {measured['postgres']}, Valkey {measured['valkey']}"
    )
    Console(width=150).print(table)


def main() -> None:
    """Measure whom the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "dramaturg-peers")
    parser.add_argument("--json", type=Path, default=None, help="write what was measured here")
    parser.add_argument("peers", nargs="*", help="parts of names; all by default")
    asked = parser.parse_args()
    chosen = [p for p in PEERS if not asked.peers or any(part.lower() in p.name.lower() for part in asked.peers)]
    measured = measure(chosen, asked.folder, asked.rounds, asked.jobs)
    show(measured)
    if asked.json:
        asked.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
