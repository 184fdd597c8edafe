"""How Alembic runs our revisions: in one transaction, one release at a time, a version table of our own."""

from __future__ import annotations

import logging
from typing import Any

from alembic import context
from alembic.util import CommandError
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from db.models import TEXT_INDEX, Base
from db.session import normalise_url

#: The application's own history sits in ``alembic_version``, with revisions that are unknown here.
VERSION_TABLE = "dramaturg_version"
#: Names the advisory lock; any number nobody else uses.
LOCK_KEY = 0x6472616D61747572
#: How long a release waits for another one to finish. Another one may be building indexes.
WAIT_FOR_ANOTHER_RELEASE = "5min"
#: Seconds to wait for a table. While a migration waits, every statement that comes after it waits too.
LOCK_TIMEOUT = 5.0


def _url() -> str:
    given = context.config.attributes.get("url")
    if given is not None:
        return normalise_url(given)
    # Here `alembic` itself was called, so nobody has set up logging or read the settings.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)-5.5s [%(name)s] %(message)s")
    logging.getLogger("alembic").setLevel(logging.INFO)
    from worker.settings import Settings  # not needed where a URL was given

    return normalise_url(Settings.load().migration_url)


def _is_ours(name: str | None, kind: str, parents: Any) -> bool:  # noqa: ARG001 - Alembic's signature
    """Keep autogenerate from proposing to drop the application's tables, and an index that needs an extension."""
    return name in Base.metadata.tables if kind == "table" else name != TEXT_INDEX


def _one_release_at_a_time(connection: Connection) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    # A timestamp without a zone, where one is found, is UTC whatever the role's setting says.
    connection.execute(text("SET LOCAL timezone = 'UTC'"))
    # What our triggers write for a row that a revision changes is not the owner's to write otherwise.
    connection.execute(text("SET LOCAL app.execution_context = 'operator'"))
    connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_FOR_ANOTHER_RELEASE}'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    timeout = context.config.attributes.get("lock_timeout", LOCK_TIMEOUT)
    connection.execute(text(f"SET LOCAL lock_timeout = {max(1, int(timeout * 1000))}"))


def _migrate(connection: Connection) -> None:
    _one_release_at_a_time(connection)
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        include_name=_is_ours,
        compare_server_default=True,
    )
    context.run_migrations()
    migrations = context.get_context()
    if not migrations.get_current_heads():
        # Back at base: nothing of ours stays behind that nobody needs.
        connection.execute(text(f"DROP TABLE IF EXISTS {VERSION_TABLE}"))
    elif connection.execute(text("SELECT 1 FROM pg_roles WHERE rolname = 'app_operator'")).first():
        # Operators make backups, and pg_dump takes all tables or none.
        connection.execute(text(f"GRANT SELECT ON {VERSION_TABLE} TO app_operator"))


def run() -> None:
    """Run what Alembic was asked for."""
    if context.is_offline_mode():
        raise CommandError("these migrations look at what the database holds, so they cannot be printed with --sql")
    engine = create_engine(
        _url(),
        poolclass=NullPool,
        # What another release did while this one waited for it must be visible.
        isolation_level="READ COMMITTED",
        hide_parameters=True,
        connect_args={
            "prepare_threshold": None,
            "connect_timeout": 10,
            "application_name": "dramaturg-migrate",
        },
    )
    try:
        with engine.begin() as connection:
            _migrate(connection)
    except DBAPIError as e:
        if isinstance(e.orig, LockNotAvailable):
            statement = " ".join((e.statement or "").split())
            raise CommandError(
                "another transaction holds a lock that this migration needs: it gave up and changed nothing; "
                f"run it again when that transaction has ended (it waited at: {statement:.120})"
            ) from e
        raise


run()
