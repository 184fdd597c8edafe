"""What a tenant costs a transaction: round trips and time, over a Unix socket and over TCP.

Against the same session without a tenant, and with the tenant set by a statement of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from uuid import UUID

from rich.console import Console
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from db import session
from db.deadline import set_deadline
from db.tenancy import tenant_context
from tests.benchmarks.report import interleave, show
from tests.servers import Cluster, running_cluster
from tests.wire import Wire

TRANSACTIONS = 2_000
ROUNDS = 7
TENANT = UUID(int=0xA)
SELECT = text("SELECT 1")
SET = text("SELECT set_config('app.current_tenant_id', :tenant_id, true)")


def variants(url: str, stack: ExitStack) -> dict[str, Callable[[], None]]:
    """Return one transaction of each kind."""
    bare = create_engine(
        url.replace("postgresql://", "postgresql+psycopg://"), connect_args={"prepare_threshold": None}
    )
    stack.callback(bare.dispose)
    session.configure(url)
    stack.callback(session.dispose)

    def without() -> None:
        with Session(bare) as s:
            s.execute(SELECT)
            s.commit()

    def ours() -> None:
        with tenant_context(TENANT), session.transaction() as s:
            s.execute(SELECT)

    def ours_in_a_job() -> None:
        set_deadline(60)
        ours()
        set_deadline(None)

    def statement() -> None:
        with Session(bare) as s:
            s.execute(SET, {"tenant_id": str(TENANT)})
            s.execute(SELECT)
            s.commit()

    return {"bare": without, "ours": ours, "ours, in a job": ours_in_a_job, "set_config as a statement": statement}


def microseconds(transaction: Callable[[], None]) -> float:
    """Return what one takes."""
    transaction()
    start = time.perf_counter()
    for _ in range(TRANSACTIONS):
        transaction()
    return (time.perf_counter() - start) / TRANSACTIONS * 1e6


def round_trips(cluster: Cluster) -> None:
    """Count on the wire and print."""
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(cluster.admin_url))
        for name, transaction in variants(wire.url, stack).items():
            transaction()
            before = wire.turns
            transaction()
            Console().print(f"round trips, {name}: {wire.turns - before}")


def main() -> None:
    """Measure and print."""
    with running_cluster() as cluster:
        round_trips(cluster)
        tcp = cluster.admin_url
        urls = {"TCP": tcp}
        if cluster.socket_folder:
            host, _, rest = tcp.rpartition("@")[2].partition("/")
            user = tcp.rpartition("@")[0]
            urls["Unix socket"] = f"{user}@/{rest}?host={cluster.socket_folder}&port={host.rpartition(':')[2]}"
        for name, url in urls.items():
            with ExitStack() as stack:
                runs = {kind: partial(microseconds, run) for kind, run in variants(url, stack).items()}
                figures = interleave(runs, ROUNDS)
            show(f"A transaction of one SELECT over {name}", "µs", figures, against="bare")


if __name__ == "__main__":
    main()
