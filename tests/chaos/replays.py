"""Counts what replays do while everything dies: ``python -m tests.chaos.replays --rows 400 --seed 1``.

Jobs of several tenants have failed. Two operators, and one person who is bound to a tenant, ask for the same replay at
once; what runs it, what runs the jobs, Postgres and Redis are killed meanwhile. Ends with status 1 unless each row was
sent once, ran no more often than the faults that hit it explain, and was closed as its last execution ended; and unless
nothing was left claimed, sent, in Redis, or counted wrongly. Needs Linux, and the embedded servers.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from loguru import logger
from psycopg.rows import dict_row
from rich.console import Console

from db.failed import Filter
from db.replays import runs
from db.replays.runs import ReplaySettings
from db.session import configure, operator_transaction, transaction
from db.tenancy import tenant_context
from tests.chaos import failed_before
from tests.chaos.accounts import Account
from tests.chaos.ending import end_cleanly_when_told, keep_logs
from tests.chaos.entries import entries
from tests.chaos.faults import Faults
from tests.chaos.ledger import Ledger
from tests.chaos.plan import TENANTS, PlannedFault, actor_name
from tests.chaos.residue import residue
from tests.chaos.world import World, running_world
from tests.servers import temporary_folder
from tests.supervisor import Supervisor, supervised

#: The lines of the Procfile that run replays; the second is another machine's.
REPLAYERS = ("housekeeping", "replayer")
WORKERS = ("attribution", "llm", "maintenance")
#: What the jobs are told when they are sent again: of ten, seven succeed, one at its second try, two fail again.
WORKS: Sequence[dict[str, Any]] = [
    *({"kind": "replayed", "asks": n == 0} for n in range(7)),
    {"kind": "replayed twice", "fails": 1, "max_retries": 1},
    *({"kind": "replayed in vain", "fails": 1_000} for _ in range(2)),
]
#: Every failure is to be told from the others: it does not stop.
SETTINGS = ReplaySettings(ramp=(1, 2, 5, 10, 20), threshold=1.0)
#: Seconds from the last fault until everything must have ended.
GRACE = 90.0


def planned(seed: int, seconds: float) -> Iterator[PlannedFault]:
    """Return the faults of a run, in order of time."""
    rng = random.Random(f"replays {seed}")  # noqa: S311 - to be repeated

    def fault(at: float, kind: str, queue: str, lasts: float = 0.0) -> PlannedFault:
        return PlannedFault(at * seconds, kind, lasts, queue, rng.random(), rng.choice(["gracefully", "by SIGKILL"]))

    # Whoever runs it is killed, and then whoever took over.
    for n in range(4):
        yield fault(0.1 + 0.2 * n + rng.uniform(0, 0.1), "kill an entry", REPLAYERS[n % 2])
        yield fault(0.12 + 0.2 * n + rng.uniform(0, 0.1), "kill one process", rng.choice(WORKERS))
    for kind, at in (("stop Postgres", 0.25), ("restart Redis", 0.5), ("stop Postgres", 0.7), ("restart Redis", 0.85)):
        yield fault(at + rng.uniform(0, 0.05), kind, "", rng.uniform(0.5, 3))
    yield fault(0.4, "cut Postgres", "", rng.uniform(1, 4))
    yield fault(0.6, "cut Redis", "", rng.uniform(0.5, 3))


def main() -> int:
    """Run it, say what came out, and return the status to end with."""
    arguments = _arguments()
    end_cleanly_when_told()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with temporary_folder() as folder, running_world(folder, stock=False) as world:
        environment = {**world.environment(), "LOG_LEVEL": "INFO"}
        logger.remove()
        # Past the wires: what asks is not under test.
        configure(world.postgres.url("app_user"), operator_database_url=world.postgres.url("app_operator"))
        os.environ.update(environment)
        failures = failed_before.failures(
            arguments.seed,
            arguments.rows,
            TENANTS,
            [(queue, actor_name(queue, "job")) for queue in WORKERS],
            [{"seconds": arguments.job, **work} for work in WORKS],
        )
        failed_before.record(failures)
        with supervised(environment, folder, entries({"replayer": "housekeeping"})) as supervisor:
            replays = start_all()
            faults = Faults(world, supervisor)
            wait(arguments, faults)
            ended = settle(world, replays)
            left = _residue(world)
        verdict = judge(world, faults, supervisor, {f.task_id: f for f in failures})
        verdict += [
            f"not finished: {replay_id} is {state}" for replay_id, state in ended.items() if state != "finished"
        ]
        verdict += [f"left in Redis: {name} {count}" for name, count in left.items()]
        verdict += [f"a fault failed: {error}" for error in faults.errors]
        show(arguments, world, faults, supervisor, verdict)
        if arguments.logs is not None:
            keep_logs(folder, arguments.logs)
        return 1 if verdict else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.replays", description=__doc__)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=25, help="in which things go wrong")
    parser.add_argument("--job", type=float, default=0.2, help="seconds that a job takes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-faults", action="store_true")
    parser.add_argument("--logs", type=Path, help="a folder for the logs of the workers and the book")
    found = parser.parse_args()
    if not 1 <= found.rows <= 100_000:
        parser.error(f"--rows must be from 1 to 100000, not {found.rows}")
    if not 1 <= found.seconds <= 3_600:
        parser.error(f"--seconds must be from 1 to 3600, not {found.seconds}")
    if not 0 <= found.job <= 60:
        parser.error(f"--job must be from 0 to 60, not {found.job}")
    return found


def start_all() -> list[UUID]:
    """Ask for the same replay twice at once, and once more for one tenant."""
    where, made = Filter(status=("pending",)), list[UUID]()
    barrier = threading.Barrier(3)

    def operator(n: int) -> None:
        barrier.wait()
        with operator_transaction() as session:
            made.append(runs.create(session, where, SETTINGS, by=f"operator {n}"))

    def tenant() -> None:
        barrier.wait()
        with tenant_context(TENANTS[0]), transaction() as session:
            made.append(runs.create(session, where, SETTINGS, by="a tenant's"))

    threads = [threading.Thread(target=operator, args=(n,)) for n in range(2)] + [threading.Thread(target=tenant)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return made


def wait(arguments: argparse.Namespace, faults: Faults) -> None:
    """Let go wrong what is to."""
    start = time.monotonic()
    try:
        for fault in sorted([] if arguments.no_faults else planned(arguments.seed, arguments.seconds), key=_at):
            time.sleep(max(0.0, start + fault.at - time.monotonic()))
            faults.begin(fault)
    finally:
        faults.finish()


def _at(fault: PlannedFault) -> float:
    return fault.at


def settle(world: World, replays: Sequence[UUID]) -> dict[UUID, str]:
    """Wait until all replays have ended and Redis is empty, and return their states."""
    until = time.monotonic() + GRACE
    while True:
        found = query(world, "SELECT id, state FROM worker_replays")
        states = {row["id"]: str(row["state"]) for row in found if row["id"] in replays}
        if time.monotonic() > until or (set(states.values()) == {"finished"} and not _residue(world)):
            return states
        time.sleep(0.5)


def _residue(world: World) -> Counter[str]:
    with world.redis() as client:
        return residue(client)


def query(world: World, statement: str) -> list[dict[str, Any]]:
    """Return rows as a superuser sees them."""
    with psycopg.connect(world.postgres.url("superuser"), row_factory=dict_row) as connection:
        return connection.execute(statement.encode()).fetchall()


def judge(
    world: World,
    faults: Faults,
    supervisor: Supervisor,
    failures: Mapping[str, Any],
) -> list[str]:
    """Return what is wrong."""
    ledger = Ledger({}, world.book.read(), [], {}, faults.done, supervisor.ended)
    rows = {row["task_id"]: row for row in world.rows()}
    wrong = [f"{len(world.rows())} rows of {len(failures)} jobs"] if len(world.rows()) != len(failures) else []
    of_row: dict[UUID, list[dict[str, Any]]] = defaultdict(list)
    for item in query(world, "SELECT * FROM worker_replay_items"):
        of_row[item["failed_job_id"]].append(item)
    for task_id, failure in failures.items():
        row = rows.get(task_id)
        if row is None:
            wrong.append(f"{task_id}: no row")
            continue
        for what in _judge_row(ledger, row, failure, of_row[row["id"]]):
            history = ledger.history(task_id) if task_id in ledger.accounts else []
            wrong.append("\n    ".join([f"{task_id}: {what}", *history]))
    for kind in (
        # A group's counts, and its rows'.
        "SELECT own.id FROM worker_failed_job_groups own LEFT JOIN worker_failed_job_details details"
        " ON details.fingerprint = own.fingerprint AND details.tenant_id IS NOT DISTINCT FROM own.tenant_id"
        " LEFT JOIN worker_failed_jobs job ON job.id = details.failed_job_id GROUP BY own.id HAVING"
        " (own.pending, own.in_progress, own.resolved, own.abandoned) IS DISTINCT FROM ("
        + ", ".join(
            f"count(job.id) FILTER (WHERE job.status = '{status}')"
            for status in ("pending", "in_progress", "resolved", "abandoned")
        )
        + ")",
        "SELECT failed_job_id AS id FROM worker_failed_job_details details JOIN worker_failed_jobs job"
        " ON job.id = failed_job_id WHERE details.status <> job.status",
    ):
        wrong += [f"counted wrongly: group or row {found['id']}" for found in query(world, kind)]
    return wrong


def _judge_row(
    ledger: Ledger, row: Mapping[str, Any], failure: Any, items: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    work = failure.task_args[0]
    max_retries = 1 if work["kind"] == "replayed twice" else 0
    account = Account(row["task_id"], work["kind"], row["queue"], str(failure.tenant_id), max_retries)
    ledger.accounts[row["task_id"]] = account
    ran = ledger.executions[row["task_id"]]
    ended = [item for item in items if item["state"] in {"succeeded", "failed"}]
    states = sorted(item["state"] for item in items)
    if any(item["state"] in {"claimed", "sent"} for item in items):
        yield f"left under way: {states}"
    if len(ended) != 1:
        yield f"sent {len(ended)} times: {states}"
        return
    if len({run.item for run in ran}) != 1 or str(ended[0]["id"]) != ran[0].item:
        yield f"ran for {[run.item for run in ran]}, and was sent as {ended[0]['id']}"
    if len(ran) > ledger.budget(account):
        yield f"ran {len(ran)} times, and may {ledger.budget(account)}"
    if any(run.bound != account.tenant or run.saw not in (None, account.tenant) for run in ran):
        yield "ran for another tenant"
    lost = row["error_type"] == "worker_lost"
    succeeded = ended[0]["state"] == "succeeded"
    if succeeded != (row["status"] == "resolved") or succeeded != (row["resolved_at"] is not None):
        yield f"its replay {ended[0]['state']}, and it is {row['status']}"
    if not succeeded and (row["status"] != "pending" or row["retry_count"] < 1 or row["last_retry_at"] is None):
        yield f"failed again, and is {row['status']}, retried {row['retry_count']} times"
    if not succeeded and not lost and (not ran or ran[-1].raised is None):
        yield "failed again, though its last execution did not"
    if succeeded and not any(run.ok for run in ran):
        yield "succeeded, though no execution did"
    if not lost and succeeded == (work["kind"] == "replayed in vain"):
        yield f"was to {'fail' if succeeded else 'succeed'}"


def show(
    arguments: argparse.Namespace, world: World, faults: Faults, supervisor: Supervisor, verdict: Sequence[str]
) -> None:
    """Say what came out."""
    console = Console(width=160)
    items = query(world, "SELECT state, count(*) AS n FROM worker_replay_items GROUP BY 1 ORDER BY 1")
    runners = query(world, "SELECT count(*) AS n FROM worker_replays WHERE runner IS NOT NULL")
    console.print(f"seed {arguments.seed}: {arguments.rows} rows; items:", {row["state"]: row["n"] for row in items})
    done = Counter(fault.kind for fault in faults.done)
    console.print("faults:", ", ".join(f"{n} x {kind}" for kind, n in sorted(done.items())) or "none")
    executions = sum(line.what == "began" for line in world.book.read())
    console.print(f"{executions} executions; {supervisor.started} starts; {runners[0]['n']} replays still held")
    for what in verdict[:20]:
        console.print(what, markup=False, highlight=False)
    console.print(f"{len(verdict)} violations")


if __name__ == "__main__":
    sys.exit(main())
