"""The deployment that is soaked: its servers, settings and tenants, and what Postgres notes of failed jobs."""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import redis
from psycopg.rows import dict_row
from sqlalchemy import text

from tests.chaos.book import Book
from tests.servers import free_port
from tests.supervisor import ROOT
from worker.embedded import EmbeddedServers
from worker.procfile import read_procfile

#: Tenants with events. What those were called with is forgotten after a minute; and what those failed, as well.
TENANTS = tuple(UUID(int=0x50AC0 + n) for n in range(4))
FORGETFUL, BROKE = TENANTS[3], UUID(int=0x50ACF)
#: Days with events, the last of them yesterday; visitors of a day.
DAYS, VISITORS = 5, 60
#: What the schedule is instead.
SCHEDULE = {
    "worker.attribution.recompute_day": "5 * * * * *",
    "worker.maintenance.apply_retention": "20 * * * * *",
    "worker.maintenance.adopt_dead_letters": "35 * * * * *",
}
CONSOLES = ("web", "web 2")

#: Rows of failed jobs go when their time is over; what is judged is what became of them until then.
_NOTES = """
CREATE TABLE soak_effects (message_id text NOT NULL);
GRANT INSERT ON soak_effects TO app_user;
CREATE TABLE soak_notes (
    n bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), what text NOT NULL,
    row_id uuid NOT NULL, task_id text NOT NULL, tenant_id uuid, error_type text, message text, before text, after text
);
CREATE FUNCTION soak_note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO soak_notes (what, row_id, task_id, tenant_id, error_type, message, before, after)
    SELECT TG_OP, job.id, job.task_id, job.tenant_id, job.error_type, job.error_message,
        CASE WHEN TG_OP <> 'INSERT' THEN OLD.status END, CASE WHEN TG_OP <> 'DELETE' THEN NEW.status END
    FROM (SELECT (CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END).*) job;
    RETURN NULL;
END $$;
CREATE TRIGGER soak_note AFTER INSERT OR DELETE ON worker_failed_jobs FOR EACH ROW EXECUTE FUNCTION soak_note();
CREATE TRIGGER soak_note_status AFTER UPDATE ON worker_failed_jobs FOR EACH ROW
    WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION soak_note();
"""


@dataclass
class World:
    """The deployment."""

    folder: Path
    servers: EmbeddedServers
    llm_url: str
    ports: dict[str, int] = field(default_factory=lambda: {name: free_port() for name in CONSOLES})

    def environment(self) -> dict[str, str]:
        """Return the settings of its processes."""
        return {
            **os.environ,
            **self.servers.environment(),
            "PYTHONPATH": str(ROOT),
            "SOAK_BOOK": str(self.folder / "book"),
            "MIN_BACKOFF": "200",
            "MAX_BACKOFF": "2000",
            "SCHEDULE": ";".join(f"{name}={expression}" for name, expression in SCHEDULE.items()),
            "LLM_BASE_URL": self.llm_url,
            "LLM_API_KEY": "sk-soak",
            "LLM_TIMEOUT": "2",
            "LLM_PRICE_INPUT": "15",
            "LLM_PRICE_OUTPUT": "60",
            "LLM_RATE": "600",
            "LLM_TENANT_RATE": "40",
            # The console is this machine's user's alone.
            "CONSOLE_TOKENS": "",
            "CONSOLE_PREFIX": "",
            "CONSOLE_HTTPS": "no",
            "PORT": "",
        }

    def entries(self) -> dict[str, str]:
        """Return the commands of what runs: the Procfile's, and each once more, which is never restarted."""
        procfile = read_procfile(ROOT / "Procfile")
        del procfile["release"]
        found = dict[str, str]()
        for name, command in procfile.items():
            if name == "web":
                found |= {console: f"{command} --port {self.ports[console]}" for console in CONSOLES}
            elif name == "scheduler":
                found |= dict.fromkeys((name, f"{name} 2"), f"{command} --module tests.soak.actors")
            else:
                ours = command.replace(f"worker.{name}", f"worker.{name} tests.soak.actors --queues {name}")
                found |= {name: ours, f"{name} 2": ours.replace("--processes 2", "--processes 1")}
        return found

    def release(self) -> None:
        """Do what a host does before it starts the others.

        Raises:
          subprocess.CalledProcessError: When it fails.
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        command = shlex.split(read_procfile(ROOT / "Procfile")["release"])
        environment = {**self.environment(), "PATH": path}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)

    def prepare(self) -> None:
        """Take notes, and make tenants, events and rules; this process is configured by now."""
        # Imported late: they read the settings.
        from db.failed import retention
        from db.session import operator_transaction, transaction
        from db.tenancy import tenant_context
        from worker.events import load_events
        from worker.tenants import add_tenant

        with psycopg.connect(self.superuser()) as connection:
            connection.execute(_NOTES)
        with operator_transaction() as session:
            for n, tenant in enumerate((*TENANTS, BROKE)):
                add_tenant(session, f"tenant {n}", tenant)
            session.execute(
                text("INSERT INTO worker_llm_budgets (tenant_id, monthly_cents, changed_by) VALUES (:id, 0, 'soak')"),
                {"id": BROKE},
            )
            for subject in ("resolved", "abandoned", "events"):
                retention.set_rule(session, subject, 0, by="soak")
            retention.set_rule(session, "payload", 0, by="soak", tenant_id=FORGETFUL)
            retention.set_rule(session, "answers", 0, by="soak", tenant_id=FORGETFUL)
            retention.set_rule(session, "pending", 0, by="soak", tenant_id=BROKE)
        for tenant in (*TENANTS, BROKE):
            path = self._events(tenant)
            with tenant_context(tenant), transaction() as session:
                load_events(session, tenant, path)

    def _events(self, tenant: UUID) -> Path:
        path = self.folder / f"{tenant}.csv"
        with path.open("w", newline="") as file:
            write = csv.writer(file).writerow
            write(["event_id", "event_type", "visitor_id", "channel", "revenue_cents", "occurred_at"])
            for n in range(DAYS * VISITORS):
                begin = first_day() + timedelta(days=n // VISITORS, minutes=n % VISITORS)
                for k, channel in enumerate(("email", "search", "social")):
                    write([f"t{n}.{k}", "touch", f"v{n}", channel, "", (begin + timedelta(hours=k)).isoformat()])
                write([f"c{n}", "conversion", f"v{n}", "", 1_000 + n, (begin + timedelta(hours=5)).isoformat()])
        return path

    def superuser(self) -> str:
        """Return the URL of who sees all."""
        return self.servers.postgres.url("superuser")

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Return rows as a superuser sees them."""
        with psycopg.connect(self.superuser(), row_factory=dict_row) as connection:
            return connection.execute(statement.encode()).fetchall()

    def redis(self) -> redis.Redis:
        """Return a client."""
        return redis.Redis.from_url(self.servers.redis_url)

    @property
    def book(self) -> Book:
        """What the processes say."""
        return Book(self.folder / "book")


def first_day() -> datetime:
    """Return when the first day with events begins."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=DAYS)


@contextmanager
def running_world(folder: Path, llm_url: str) -> Iterator[World]:
    """Start the servers, which end with the ``with`` block."""
    with EmbeddedServers(folder) as servers:
        yield World(folder, servers, llm_url)
