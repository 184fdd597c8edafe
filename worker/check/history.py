"""Whether every change of a failed job is noted, and whether its text is found by an index."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from db.models import TEXT_INDEX
from worker.check.findings import Finding, error, ok, warning
from worker.check.postgres import rows
from worker.check.tables import CANONICAL

NAME = "postgres.history"
TRIGGERS = ("worker_failed_jobs_added", "worker_failed_jobs_changed", "worker_failed_jobs_removed")


def check_history(connection: Connection) -> Iterator[Finding]:
    """Look for the triggers and the text index of the canonical table; nothing is said where there is no such table."""
    if not rows(connection, "SELECT WHERE to_regclass(:name) IS NOT NULL", {"name": CANONICAL}):
        return
    found = {
        str(name)
        for (name,) in rows(
            connection,
            "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(:name) AND NOT tgisinternal"
            " AND tgenabled IN ('O', 'A')",
            {"name": CANONICAL},
        )
    }
    missing = [name for name in TRIGGERS if name not in found]
    if missing:
        yield error(
            NAME,
            f"{CANONICAL} lacks the trigger {', '.join(missing)}, or it is disabled: changes of failed jobs are not "
            "noted, and groups count wrongly",
            f"ALTER TABLE {CANONICAL} ENABLE TRIGGER USER; where it was dropped: worker migrate --down 0003, then "
            "worker migrate, which counts again",
        )
    else:
        yield ok(NAME, "every change of a failed job is noted")
    if not rows(
        connection,
        "SELECT FROM pg_index WHERE indexrelid = to_regclass(:name) AND indisvalid",
        {"name": TEXT_INDEX},
    ):
        yield warning(
            "postgres.text-index",
            f"there is no index {TEXT_INDEX}: text in many failed jobs is searched row by row",
            "As somebody who may: CREATE EXTENSION pg_trgm, then worker migrate --down 0003 and worker migrate. It was "
            "left out on purpose? Then all is well.",
        )
