"""The demo's story, step by step."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import UUID, uuid4

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import text

from db import session
from db.errors import ConfigurationError
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from worker import migrate
from worker.demo.procfile import Workers
from worker.embedded import EmbeddedServers, default_folder, free_port
from worker.events import load_events
from worker.recompute import Model, parse_window
from worker.tenants import add_tenant, list_tenants
from worker.windows import channel_totals

#: The query of the Celery system's evidence document, with the actor's new name.
EVIDENCE_QUERY = """
SELECT
    task_name,
    queue,
    tenant_id,
    error_type,
    exception_class,
    error_message,
    task_kwargs->>'window_start' as window_start,
    task_kwargs->>'window_end' as window_end,
    status,
    failed_at
FROM worker_failed_jobs
WHERE task_name = 'worker.attribution.recompute_window'
ORDER BY failed_at DESC
LIMIT 1
"""

MONTH = ("2025-01-01T00:00:00Z", "2025-02-01T00:00:00Z")
#: Seconds within which the workers must have done a step.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class _DemoTenant:
    name: str
    id: UUID


def run_demo(console: Console, folder: Path | None = None, *, keep: bool = False) -> None:
    """Run the main job from end to end and print what happened.

    Arguments:
      console: Where to print.
      folder: For data and logs; :func:`worker.embedded.default_folder` by default.
      keep: Leave everything running until interrupted.

    Raises:
      ConfigurationError: When a server or a worker does not start, or does not do its work in time.
    """
    folder = (folder or default_folder()).resolve()
    with _terminable(), EmbeddedServers(folder) as servers:
        console.print(f"Postgres and Valkey run on loopback; data and logs are in {escape(str(folder))}")
        environment = servers.environment()
        migrate.upgrade(environment["MIGRATION_DATABASE_URL"])
        console.print("The database is migrated.")
        os.environ.update(environment)
        session.configure(environment["DATABASE_URL"], operator_database_url=environment["OPERATOR_DATABASE_URL"])
        names = ["attribution", "llm", "maintenance", "housekeeping", "web"]
        # No tokens, so it is for this machine alone; and no port that the host gives it.
        local = {
            **environment,
            "LOG_FORMAT": "text",
            "CONSOLE_TOKENS": "",
            "PORT": "",
            "CONSOLE_PREFIX": "",
            "CONSOLE_HTTPS": "no",
        }
        port = free_port()
        with Workers(names, local, folder / "logs", {"web": f"--port {port}"}) as workers:
            console.print("The four workers of the Procfile have started, and the console.")
            tenants = [_load(console, name) for name in ("acme", "globex")]
            correlation_id = uuid4()
            _recompute(console, workers, tenants, correlation_id)
            for tenant in tenants:
                _print_allocations(console, tenant)
            _fail_on_purpose(console, workers, tenants[0])
            _visit_the_others(console, workers, tenants)
            _visit_the_console(console, workers, port, keep=keep)
            console.print("\nEvery job has ended: done, or one row in worker_failed_jobs.")
            if keep:
                _wait_for_interrupt(console, environment)
        session.dispose()


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that no server is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _load(console: Console, name: str) -> _DemoTenant:
    with operator_transaction() as s:
        known = {tenant.name: tenant.id for tenant in list_tenants(s)}
        tenant_id = known.get(name) or add_tenant(s, name)
    with tenant_context(tenant_id), transaction() as s:
        loaded = load_events(s, tenant_id, Path(__file__).parent / f"{name}.csv")
    console.print(
        f"Tenant {name} {tenant_id}: {loaded.rows} events in {name}.csv, {loaded.inserted} loaded, "
        f"{loaded.duplicates} there before"
    )
    return _DemoTenant(name, tenant_id)


def _windows() -> Iterator[tuple[str, str, Model]]:
    for model in Model:
        yield *MONTH, model
    day = datetime(2025, 1, 1, tzinfo=UTC)
    for n in range(31):
        yield (day + timedelta(days=n)).isoformat(), (day + timedelta(days=n + 1)).isoformat(), Model.LINEAR


def _recompute(console: Console, workers: Workers, tenants: list[_DemoTenant], correlation_id: UUID) -> None:
    # Imported late: the broker is made from the environment, which now names the servers.
    from worker.attribution import recompute_window

    windows = list(_windows())
    for tenant in tenants:
        with tenant_context(tenant.id, correlation_id):
            for start, end, model in windows:
                recompute_window.send(window_start=start, window_end=end, model=model.value)

    def done() -> int:
        with operator_transaction() as s:
            query = "SELECT count(*) FROM attribution_recompute_jobs WHERE correlation_id = :id"
            return int(s.execute(text(query), {"id": correlation_id}).scalar_one())

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    total = len(windows) * len(tenants)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("Recomputing windows", total=total)

        def all_done() -> bool:
            now = done()
            progress.update(bar, completed=now)
            return now == total

        _wait_until(all_done, workers, "the windows are recomputed")


def _fail_on_purpose(console: Console, workers: Workers, tenant: _DemoTenant) -> None:
    from worker.attribution import recompute_window

    correlation_id = uuid4()
    with tenant_context(tenant.id, correlation_id):
        recompute_window.send(window_start="2025-01-01T00:00:00Z", window_end="2025-01-31T23:59:59Z", fail=True)

        def recorded() -> bool:
            with transaction() as s:
                query = "SELECT 1 FROM worker_failed_jobs WHERE correlation_id = :id"
                return s.execute(text(query), {"id": correlation_id}).first() is not None

        _wait_until(recorded, workers, "the failure is recorded")
        with transaction() as s:
            row = s.execute(text(EVIDENCE_QUERY)).mappings().one()
    table = Table(title=f"The failed job, as tenant {tenant.name} sees it", title_justify="left", show_header=False)
    for name, value in row.items():
        table.add_row(str(name), escape(str(value)))
    console.print(table)


def _visit_the_others(console: Console, workers: Workers, tenants: list[_DemoTenant]) -> None:
    from worker.broker import broker
    from worker.housekeeping import ping
    from worker.llm import describe_window
    from worker.maintenance import verify_window

    for tenant in tenants:
        with tenant_context(tenant.id):
            verify_window.send(*MONTH)
            describe_window.send(*MONTH)
    ping.send()
    client: Any = broker.client  # type: ignore[attr-defined]
    queues = [a.queue_name for a in (verify_window, describe_window, ping)]
    _wait_until(
        lambda: not any(client.hlen(f"{broker.namespace}:{q}.msgs") for q in queues),  # type: ignore[attr-defined]
        workers,
        "maintenance, llm and housekeeping have done their jobs",
    )
    table = Table("queue", "said", title="The other three workers", title_justify="left")
    for name, module in (("maintenance", "maintenance"), ("llm", "llm"), ("housekeeping", "housekeeping")):
        for line in workers.log(name).read_text("utf-8", "replace").splitlines():
            if f"worker.{module}:" in line:
                table.add_row(name, escape(line.rpartition(" - ")[2]))
    console.print(table)


def _visit_the_console(console: Console, workers: Workers, port: int, *, keep: bool) -> None:
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            with urlopen(f"{address}/failures", timeout=5) as page:  # noqa: S310 - of our own
                return b"attribution recompute failure requested" in page.read()
        except OSError:
            return False

    _wait_until(answers, workers, "the console shows the failed job")
    stays = "look at it now" if keep else "worker demo --keep leaves it up"
    console.print(
        f"\nThe console shows the failed job, at {address}/failures: {stays}.", highlight=False, soft_wrap=True
    )


def _print_allocations(console: Console, tenant: _DemoTenant) -> None:
    window = parse_window(*MONTH)
    totals: dict[str, dict[str, int]] = {}
    with tenant_context(tenant.id), transaction() as s:
        for model in Model:
            for total in channel_totals(s, tenant.id, window, model, "1.0.0"):
                totals.setdefault(total.channel, {})[model.value] = total.cents
    table = Table("channel", title=f"{tenant.name}: January's revenue by channel", title_justify="left")
    for model in Model:
        table.add_column(model.value.replace("_", " "), justify="right")
    for channel in sorted(totals, key=lambda c: (-totals[c].get("linear", 0), c)):
        table.add_row(escape(channel), *(f"{totals[channel].get(m.value, 0) / 100:,.2f}" for m in Model))
    table.add_section()
    sums = (sum(t.get(m.value, 0) for t in totals.values()) for m in Model)
    table.add_row("all", *(f"{s / 100:,.2f}" for s in sums))
    console.print(table)


def _wait_until(condition: Callable[[], bool], workers: Workers, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        workers.check()
        if time.monotonic() > end:
            raise ConfigurationError(
                f"{what}: not within {PATIENCE:.0f} seconds; see the workers' output in {workers.log('x').parent}"
            )
        time.sleep(0.1)


def _wait_for_interrupt(console: Console, environment: dict[str, str]) -> None:
    console.print("\nEverything stays up until Ctrl-C. In another terminal:")
    for name, value in environment.items():
        # Plain text, to be copied whole.
        console.print(f"export {name}={value}", markup=False, highlight=False, soft_wrap=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("Stopping.")
