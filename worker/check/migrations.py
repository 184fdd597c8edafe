"""Whether the database is as far as the code."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import ProgrammingError

from worker.check.findings import Finding, error, ok, warning
from worker.check.postgres import rows
from worker.migrate import script_location

NAME = "postgres.migrations"
#: As ``migrations/env.py`` names it, which only Alembic can import.
VERSION_TABLE = "dramaturg_version"


def check_migrations(connections: Collection[Connection]) -> Iterator[Finding]:
    """Compare the database's revision with the newest here.

    Arguments:
      connections: One for each credential; the first that may read the revision tells.
    """
    scripts = ScriptDirectory(str(script_location()))
    known = {revision.revision for revision in scripts.walk_revisions()}
    found = None
    for connection in connections:
        found = _revisions(connection)
        if found is not None:
            break
    yield judge_revisions(found, set(scripts.get_heads()), known)


def _revisions(connection: Connection) -> set[str] | None:
    """Return what the version table holds, empty where there is none; None where it may not be read."""
    if not rows(connection, "SELECT FROM pg_class WHERE relname = :name AND relkind = 'r'", {"name": VERSION_TABLE}):
        return set()
    try:
        return {str(revision) for (revision,) in rows(connection, f"SELECT version_num FROM {VERSION_TABLE}")}
    except ProgrammingError:
        # No right to it, or to its schema: app_user has none.
        return None


def judge_revisions(found: set[str] | None, heads: set[str], known: set[str]) -> Finding:
    """Judge a database's revisions.

    Arguments:
      found: What it holds; None where that could not be read.
      heads: The newest here.
      known: All here.
    """
    if found is None:
        return warning(
            NAME,
            f"the revision in {VERSION_TABLE} could not be read with these credentials",
            "Set OPERATOR_DATABASE_URL or MIGRATION_DATABASE_URL.",
        )
    newest = ", ".join(sorted(heads))
    if found == heads:
        return ok(NAME, f"up to date ({newest})")
    if found - known:
        # No error: it would stop the release phase of who goes back to older code at night.
        return warning(
            NAME,
            f"the database is ahead: it is at {', '.join(sorted(found))}, which this code ({newest}) does not know",
            "Deploy the newer code, or go back with it first: worker migrate --down REVISION",
        )
    where = f"it is at {', '.join(sorted(found))}" if found else "nothing was migrated yet"
    return error(NAME, f"the database is behind: {where}, and this code needs {newest}", "worker migrate")
