"""Runs the ledger: ``python -m tests.chaos --seconds 100 --messages 2000 --seed 1``.

Ends with status 1 if a message had not exactly one ending, ran for another tenant or more often than it may, or if
something was left in Redis. ``--stock`` runs stock Dramatiq under the same plan, prints what it loses, and ends with 0.
Needs Linux, and the embedded servers.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path

import redis
from loguru import logger
from rich.console import Console
from rich.table import Table

from tests.chaos import plan
from tests.chaos.ending import end_cleanly_when_told, keep_logs
from tests.chaos.entries import entries
from tests.chaos.faults import Faults
from tests.chaos.ledger import Ledger, Verdict
from tests.chaos.plan import PlannedFault
from tests.chaos.residue import GRACE, kept, residue, settle
from tests.chaos.world import World, running_world
from tests.servers import temporary_folder
from tests.supervisor import Supervisor, supervised
from worker.queue_admin import share

COLUMNS = ("accepted", "unsure", "succeeded", "row", "lost", "stuck", "both", "two rows", "early", "crossed")
#: Violations told with their history.
TOLD = 12


def main() -> int:
    """Run it, print the table, and return the status to end with."""
    arguments = _arguments()
    end_cleanly_when_told()
    # Each connection is two sockets of a wire.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with temporary_folder() as folder, running_world(folder, stock=arguments.stock) as world:
        os.environ.update(world.environment())
        logger.remove()
        began = time.time()
        with supervised(world.environment(), folder, entries()) as supervisor:
            faults, ledger, left = _run(arguments, world, supervisor)
        verdict = ledger.judge()
        _show(arguments, verdict, faults, ledger, left, supervisor, time.time() - began)
        if arguments.logs is not None:
            keep_logs(folder, arguments.logs)
        return 1 if not arguments.stock and (verdict.violations or left or faults.errors) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="for messages and faults, and most of their endings")
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stock", action="store_true", help="stock Dramatiq, for comparison")
    parser.add_argument("--every", type=float, default=4, help="seconds between faults, on average")
    parser.add_argument("--no-faults", action="store_true", help="to see that the ledger itself finds nothing")
    parser.add_argument("--logs", type=Path, help="a folder for the logs of the workers and the book")
    parser.add_argument("--history", action="append", default=[], help="tell of this message, too")
    found = parser.parse_args()
    if not 10 <= found.seconds <= 7_200:
        parser.error(f"--seconds must be from 10 to 7200, not {found.seconds}")
    if not 0.1 <= found.every <= 3_600:
        parser.error(f"--every must be from 0.1 to 3600, not {found.every}")
    if not 1 <= found.messages <= 1_000_000:
        parser.error(f"--messages must be from 1 to 1000000, not {found.messages}")
    return found


def _run(arguments: argparse.Namespace, world: World, supervisor: Supervisor) -> tuple[Faults, Ledger, Counter[str]]:
    # Settings are read at import.
    from tests.chaos.actors import broker
    from tests.chaos.producer import Producer

    producer, faults = Producer(world, broker), Faults(world, supervisor)
    if not arguments.stock:
        queue, tenant, limit = plan.LIMITED
        with world.redis() as client:
            share(client, queue, tenant, limit=limit, by="the ledger")
    planned = list(plan.messages(arguments.seed, arguments.messages, arguments.seconds))
    if not arguments.no_faults:
        planned += plan.faults(arguments.seed, arguments.seconds, arguments.every)  # type: ignore[arg-type]
    start = time.monotonic()
    try:
        for event in sorted(planned, key=lambda event: event.at):
            time.sleep(max(0.0, start + event.at - time.monotonic()))
            if isinstance(event, PlannedFault):
                faults.begin(event)
            else:
                producer.send(event)
    finally:
        faults.finish()
    with world.redis() as client:
        left = settle(lambda: _left(world, client), start + arguments.seconds + GRACE)
        in_redis = kept(client)
    return (
        faults,
        Ledger(
            producer.accounts,
            world.book.read(),
            world.rows(),
            in_redis,
            faults.done,
            supervisor.ended,
            world.committed(),
        ),
        left,
    )


def _left(world: World, client: redis.Redis) -> Counter[str]:
    return residue(client) + Counter({"worker_outbox": world.waiting()})


def _show(
    arguments: argparse.Namespace,
    verdict: Verdict,
    faults: Faults,
    ledger: Ledger,
    left: Counter[str],
    supervisor: Supervisor,
    seconds: float,
) -> None:
    console = Console(width=160)
    columns = (*COLUMNS, "over budget")
    table = Table("kind", *columns, title=f"{'stock Dramatiq' if arguments.stock else 'ours'}, seed {arguments.seed}")
    total: Counter[str] = Counter()
    for kind, count in sorted(verdict.table.items()):
        table.add_row(kind, *(str(count[name] or "") for name in columns))
        total += count
    table.add_section()
    table.add_row("all", *(str(total[name]) for name in columns))
    console.print(table)
    done = Counter(fault.kind for fault in faults.done)
    console.print("faults:", ", ".join(f"{n} x {kind}" for kind, n in sorted(done.items())) or "none")
    runs = sum(map(len, ledger.executions.values()))
    console.print(
        f"{runs} executions; {supervisor.started} starts of {len(supervisor.entries)} entries; {seconds:.0f} seconds; "
        f"send() raised for {sum(verdict.unsure.values())}, of which {verdict.unsure['sent']} were sent; "
        f"{len(verdict.rerun)} rows after an unacknowledged success; {len(verdict.repeated)} ran again after a success "
        f"in a process that no fault had hit; {len(verdict.condemned)} condemned by faults"
    )
    for what, found in (("left in Redis", left), ("faults that failed", faults.errors)):
        if found:
            console.print(f"{what}: {found}")
    told = [(rule, message_id) for rule, message_id in verdict.violations if not arguments.stock][:TOLD]
    for rule, message_id in [*told, *(("asked for", message_id) for message_id in arguments.history)]:
        console.print(f"\n{rule}: {message_id}", *ledger.history(message_id), sep="\n  ", markup=False, highlight=False)
    console.print(f"{len(verdict.violations)} violations" + (": " if verdict.violations else ""), end="")
    console.print(dict(Counter(rule for rule, _ in verdict.violations)) if verdict.violations else "")


if __name__ == "__main__":
    sys.exit(main())
