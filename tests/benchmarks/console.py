"""The console over 1,000,000 failed jobs: milliseconds and bytes of each page, and what 50 people who look at the
overview cost Postgres.

``python -m tests.benchmarks.console``; ``--keep FOLDER`` keeps the data for the next time, the same as that of
``tests.benchmarks.understanding`` (8 GB; they take minutes to load), ``--only WORD`` asks for pages whose name has it.
The console is a process of its own; what is measured is a request over loopback, from its first byte to the answer's
last.
"""

from __future__ import annotations

import argparse
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from urllib.parse import quote
from uuid import UUID

import psycopg
from rich.console import Console
from rich.table import Table

from tests.benchmarks.failed_jobs_data import BIG, TEXTS, loaded
from tests.servers import Database, free_port, running_redis
from tests.waiting import eventually
from worker.console_tokens import make_token

ROUNDS = 25
TARGET = 150.0
VIEWERS, LOOK_EVERY, LOOK_FOR = 50, 5.0, 60.0


def pages(database: Database, tenant_id: UUID | None) -> dict[str, str]:
    """Return the address of each page, by name."""
    with psycopg.connect(database.admin_url) as connection:
        (job_id, correlation_id, actor), *_ = connection.execute(
            "SELECT id, correlation_id, task_name FROM worker_failed_jobs"
            " WHERE CAST(%(t)s AS uuid) IS NULL OR tenant_id = %(t)s ORDER BY failed_at DESC LIMIT 1",
            {"t": tenant_id},
        ).fetchall()
        (fingerprint,), *_ = connection.execute(
            "SELECT fingerprint FROM worker_failed_job_groups WHERE CAST(%(t)s AS uuid) IS NULL OR tenant_id = %(t)s"
            " ORDER BY failures DESC LIMIT 1",
            {"t": tenant_id},
        ).fetchall()
    found = {
        "overview": "/",
        "overview, 24 hours": "/?hours=24",
        "groups": "/groups",
        "groups of a queue": "/groups?queue=llm",
        "groups, since": "/groups?since=2h",
        "group, the largest": f"/groups/{fingerprint}",
        "failures": "/failures",
        "failures, all": "/failures?status=all",
        "failures of an actor": f"/failures?status=all&actor={actor}",
        "failures of a group": f"/failures?status=all&fingerprint={fingerprint}",
        "failures, since": "/failures?status=all&since=2h",
        "failures, since and kind": "/failures?status=all&since=7d&error_type=timeout",
        "failures of one work": f"/failures?status=all&correlation_id={correlation_id}",
        "failures, rare text": f"/failures?status=all&text={quote(TEXTS['rare, 3 rows'])}",
        "failures, common text": f"/failures?status=all&text={quote(TEXTS['common, a third'])}",
        "failure": f"/failures/{job_id}",
        "failure of a list": f"/failures/{job_id}?from={quote(f'actor={actor}')}",
        "close, all": "/failures/close?status=all",
        "close, a group": f"/failures/close?fingerprint={fingerprint}",
        "close, since": "/failures/close?status=all&since=7d",
        "close, common text": f"/failures/close?status=all&text={quote(TEXTS['common, a third'])}",
        "replays": "/replays",
        "replay, to be made": f"/replays/new?fingerprint={fingerprint}",
        "audit": "/audit",
    }
    return found if tenant_id else {**found, "tenants": "/tenants"}


@contextmanager
def serving(database: Database) -> Iterator[tuple[int, dict[str, str], int]]:
    """Give the port of a console, tokens by whose they are, and its process."""
    made = {"operator": make_token("operator", "operator"), "big tenant": make_token("tenant", "operator", BIG)}
    port = free_port()
    with running_redis() as redis_url:
        environment = {
            **os.environ,
            **database.environment(),
            "REDIS_URL": redis_url,
            "CONSOLE_TOKENS": " ".join(str(kept) for _, kept in made.values()),
            "LOG_LEVEL": "WARNING",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "worker", "console", "--port", str(port)],
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        try:
            eventually(lambda: answers(port), seconds=60)
            yield port, {who: said for who, (said, _) in made.items()}, process.pid
        finally:
            process.terminate()
            process.wait(20)


def answers(port: int) -> bool:
    """Tell whether somebody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/login")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def ask(connection: http.client.HTTPConnection, path: str, token: str) -> tuple[float, int, int]:
    """Return milliseconds, bytes and status."""
    began = time.perf_counter()
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    body = answer.read()
    return (time.perf_counter() - began) * 1000, len(body), answer.status


def measure_pages(port: int, token: str, addresses: dict[str, str], title: str) -> None:
    """Print a line for each page."""
    table = Table("page", "p50 ms", "p95 ms", "most ms", "KB", "status", title=title, title_justify="left")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for name, path in addresses.items():
        found = [ask(connection, path, token) for _ in range(ROUNDS + 1)]
        # The first fills the caches of Postgres, as somebody has on the day before.
        milliseconds = [one for one, _, _ in found[1:]]
        p95 = quantiles(milliseconds, n=20)[-1]
        table.add_row(
            name,
            f"{median(milliseconds):.0f}",
            f"[{'red' if p95 > TARGET else 'green'}]{p95:.0f}",
            f"{max(milliseconds):.0f}",
            f"{found[0][1] / 1000:.0f}",
            str(found[0][2]),
        )
    Console(width=110).print(table)


def processor_time(parent: int) -> float:
    """Return seconds of processor time of a process, its children, and those that it has waited for."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(") ")
        except OSError:
            continue
        fields = rest.split()
        pid = int(name.split(" ", 1)[0])
        if parent in {pid, int(fields[1])}:
            total += sum(map(int, fields[11:13] if pid != parent else fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return total


def postmaster(database: Database) -> int:
    """Return the process that is every backend's parent."""
    with psycopg.connect(database.admin_url) as connection:
        (backend,) = connection.execute("SELECT pg_backend_pid()").fetchone() or (0,)
        return int(Path(f"/proc/{backend}/stat").read_text().rpartition(") ")[2].split()[1])


def measure_viewers(database: Database, port: int, token: str, console: int) -> None:
    """Print what many who look at the overview cost."""
    stop = threading.Event()
    asked: list[float] = []

    def look(n: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        stop.wait(LOOK_EVERY * n / VIEWERS)
        while not stop.is_set():
            asked.append(ask(connection, "/", token)[0])
            stop.wait(LOOK_EVERY)

    server = postmaster(database)
    idle = processor_time(server)
    time.sleep(10)
    idle = (processor_time(server) - idle) / 10
    threads = [threading.Thread(target=look, args=(n,)) for n in range(VIEWERS)]
    before, before_console, began = processor_time(server), processor_time(console), time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(LOOK_FOR)
    took = time.monotonic() - began
    postgres = (processor_time(server) - before) / took
    own = (processor_time(console) - before_console) / took
    stop.set()
    for thread in threads:
        thread.join()
    table = Table(
        "what", "figure", title=f"{VIEWERS} people at the overview, live, {LOOK_FOR:.0f} s", title_justify="left"
    )
    table.add_row("looks a second; p95 of one, ms", f"{len(asked) / took:.1f}; {quantiles(asked, n=20)[-1]:.0f}")
    table.add_row("of a core, Postgres (idle before)", f"{postgres:.1%} ({idle:.1%})")
    table.add_row("of a core, the console", f"{own:.1%}")
    Console(width=110).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    with loaded(arguments.rows, arguments.keep) as database, serving(database) as (port, tokens, console):
        for who, tenant_id in (("operator", None), ("big tenant", BIG)):
            addresses = {n: p for n, p in pages(database, tenant_id).items() if arguments.only in n}
            measure_pages(port, tokens[who], addresses, f"{arguments.rows:,} failed jobs, as {who}")
        if not arguments.only:
            measure_viewers(database, port, tokens["operator"], console)


if __name__ == "__main__":
    main()
