"""Failures to look for: made at random from a seed, recorded as workers record them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from db import failed_jobs
from db.failures import Failure
from tests.integration.test_failed_jobs import A, B, a_failure
from tests.servers import Database

START = datetime(2026, 1, 1, tzinfo=UTC)
TENANTS = (A, B, None)
CAUSES = (
    # actor, queue, error type, exception, title
    ("shop.billing.charge", "billing", "upstream_error", "shop.errors.GatewayDown", "gateway did not answer for *"),
    ("shop.billing.charge", "billing", "validation_error", "ValueError", "bad card"),
    ("worker.attribution.recompute_window", "attribution", "validation_error", "ValueError", "bad window"),
    ("other.recompute_window", "attribution", "database_error", "sqlalchemy.exc.OperationalError", "lost connection"),
    ("worker.llm.ask", "llm", "timeout", "builtins_like.TimeoutError", "too long"),
)
MESSAGES = ("100% of it_failed", "C:\\temp\\file", 'it\'s "quoted"', "Not Found", "plain", "<b>[red]markup[/]</b>")


def seeded(seed: int) -> random.Random:
    """Return what gives the same at each run."""
    return random.Random(seed)  # noqa: S311 - no secrets


def fingerprint(cause: int) -> str:
    """Of a cause; all begin alike but for the fifth character."""
    return f"abcd{cause}" + "0" * 27


def a_random_failure(r: random.Random, **changes: Any) -> Failure:
    cause = r.randrange(len(CAUSES))
    actor, queue, error_type, exception, title = CAUSES[cause]
    message = r.choice(MESSAGES)
    values: dict[str, Any] = {
        "task_id": str(UUID(int=r.getrandbits(128))),
        "delivery_id": str(UUID(int=r.getrandbits(128))),
        "task_name": actor,
        "queue": queue,
        "error_type": error_type,
        "exception_class": exception,
        "tenant_id": r.choice(TENANTS),
        "error_message": f"{message} {r.randrange(5)}",
        "traceback": r.choice((None, f"Traceback of {r.choice(MESSAGES)}")),
        "task_args": r.choice((None, [r.randrange(100), "Arg_ument"])),
        "task_kwargs": r.choice((None, {"order": f"o-{r.randrange(20)}"})),
        "correlation_id": UUID(int=r.randrange(20)),
        # Many at one moment.
        "failed_at": START + timedelta(minutes=r.randrange(40)),
        "fingerprint": fingerprint(cause),
        "title": title,
        "place": f"{actor.rpartition('.')[0]}:run",
    }
    return a_failure(**{**values, **changes})


def record_at_random(database: Database, seed: int, number: int = 300) -> list[dict[str, Any]]:
    """Record failures, give them statuses, and return the rows as a superuser sees them."""
    r = seeded(seed)
    failed_jobs.record_all([a_random_failure(r) for _ in range(number)])
    with psycopg.connect(database.admin_url) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM worker_failed_jobs ORDER BY id")]
        for status in ("in_progress", "resolved", "abandoned"):
            some = [i for i in ids if r.random() < 0.2]
            connection.execute(
                "UPDATE worker_failed_jobs SET status = %s WHERE id = ANY(%s) AND status = 'pending'", [status, some]
            )
    return every_row(database)


def every_row(database: Database) -> list[dict[str, Any]]:
    """Every row with its fingerprint and all its text, newest first, as a superuser sees them."""
    with psycopg.connect(database.admin_url, row_factory=dict_row) as connection:
        return connection.execute(
            """
            SELECT job.*, details.fingerprint, concat_ws(
                ' ', error_message, coalesce(traceback, ''), coalesce(task_args::text, ''),
                coalesce(task_kwargs::text, '')
            ) AS searched
            FROM worker_failed_jobs job LEFT JOIN worker_failed_job_details details ON details.failed_job_id = job.id
            ORDER BY job.failed_at DESC, job.id DESC
            """
        ).fetchall()


def recounted(database: Database) -> dict[tuple[UUID | None, str], dict[str, int]]:
    """Count each group's rows anew, by status, as a superuser; groups without any are left out."""
    with psycopg.connect(database.admin_url, row_factory=dict_row) as connection:
        rows = connection.execute(
            """
            SELECT job.tenant_id, details.fingerprint, job.status, count(*) AS jobs
            FROM worker_failed_jobs job JOIN worker_failed_job_details details ON details.failed_job_id = job.id
            WHERE details.fingerprint IS NOT NULL GROUP BY 1, 2, 3
            """
        ).fetchall()
    counts: dict[tuple[UUID | None, str], dict[str, int]] = {}
    for row in rows:
        counts.setdefault((row["tenant_id"], row["fingerprint"]), {})[row["status"]] = row["jobs"]
    return counts


def group_counts(database: Database) -> dict[tuple[UUID | None, str], dict[str, int]]:
    """What groups say, in the form of :func:`recounted`."""
    with psycopg.connect(database.admin_url, row_factory=dict_row) as connection:
        rows = connection.execute("SELECT * FROM worker_failed_job_groups").fetchall()
    counts = {
        (row["tenant_id"], row["fingerprint"]): {
            s: row[s] for s in ("pending", "in_progress", "resolved", "abandoned") if row[s]
        }
        for row in rows
    }
    return {key: found for key, found in counts.items() if found}
