"""Profiles our own drain, transactions and failures, and prints tables for the README."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.peers import servers
from tests.benchmarks.peers.environments import programs_of
from tests.benchmarks.peers.peers import OURS
from tests.benchmarks.peers.profiling.costs import Cost, commandstats, forget_statements, of_postgres, of_redis
from tests.benchmarks.peers.profiling.folding import Folded, fold
from tests.benchmarks.peers.profiling.sampling import sampled, sampler
from tests.benchmarks.peers.reckoning import check
from tests.benchmarks.peers.running import Stage, staged

#: Jobs and how many of them, for a few seconds of each.
JOBS = {"noop": 80_000, "transaction": 10_000, "fail": 8_000}
_SETTINGS = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "on"}


def run(stage: Stage, job: str, count: int) -> tuple[Folded, list[Cost], list[Cost], float]:
    """Return the profile, what Redis and Postgres spent, and the processor time of Redis a job, all while jobs ran."""
    stage.send("all", count, job)
    forget_statements(stage.database.admin_url)
    before, redis_before = commandstats(stage.redis_url), stage.redis_seconds()
    with stage.worker() as worker:
        worker.wait_for(count // 20, look_every=0.01)
        # Of the worker's processes the one that works.
        with sampled(stage.notes()[0].process) as stacks:
            worker.wait_for(count)
    redis_used = (stage.redis_seconds() - redis_before) / count * 1e6
    check([note.number for note in stage.notes()], range(count))
    costs = of_redis(before, commandstats(stage.redis_url), count)
    return fold(stacks), costs, of_postgres(stage.database.admin_url, count), redis_used


def show(title: str, folded: Folded, in_redis: list[Cost], in_postgres: list[Cost], redis_used: float) -> None:
    """Print it as the README's tables are."""
    print(f"\n{title}\n")
    if folded.samples:
        print(f"| share of the interpreter's time, {folded.samples:,} samples | |\n| --- | --- |")
        for name, share in folded.packages:
            print(f"| {name} | {share:.0%} |")
        print("\n| of which in | |\n| --- | --- |")
        for name, share in folded.functions:
            print(f"| `{name}` | {share:.1%} |")
    print(f"\nRedis: {redis_used:.0f} µs of processor a job, its answers and the wire included.\n")
    print("| command | calls a job | µs each | µs a job |\n| --- | --- | --- | --- |")
    for cost in in_redis[:10]:
        print(f"| `{cost.what}` | {cost.calls:.3f} | {cost.each:.1f} | {cost.a_job:.1f} |")
    statements = [cost for cost in in_postgres if cost.calls > 0.001][:10]
    if statements:
        print("\n| statement | calls a job | ms each | ms a job |\n| --- | --- | --- | --- |")
        for cost in statements:
            words = cost.what.replace("|", "\\|")
            words = words if len(words) <= 90 else f"{words[:89]}…"
            print(f"| `{words}` | {cost.calls:.3f} | {cost.each / 1000:.3f} | {cost.a_job / 1000:.3f} |")
        print("\nWhat a COMMIT syncs to disk comes after what is counted of it.")


def profile(folder: Path, scale: float) -> None:
    """Run them, and print where the time goes.

    Arguments:
      folder: Where environments are.
      scale: Which part of the jobs to run.
    """
    programs = programs_of(OURS, folder)
    assert programs is not None
    if sampler() is None:
        print("py-spy is not installed (pip install py-spy), so Python's part is left out")
    with servers.running(synced=True, settings=_SETTINGS) as running:
        for job, count in JOBS.items():
            jobs = max(100, round(count * scale))
            with staged(OURS, programs, running) as stage:
                show(f"{jobs:,} jobs of `{job}`, one process of 8 threads", *run(stage, job, jobs))
