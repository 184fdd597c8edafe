"""What commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn
from uuid import UUID

import psycopg
import typer
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from db import session
from db.errors import ConfigurationError, InvalidTenant
from db.tenancy import parse_uuid
from worker.postgres_words import explain
from worker.settings import Settings
from worker.text import printable

console = Console()


def fail(message: str, status: int = 1) -> NoReturn:
    """Say what is wrong on standard error and exit with ``status``."""
    sys.stderr.write(f"worker: {printable(message)}\n")
    raise typer.Exit(status)


def warn(message: str) -> None:
    """Say on standard error what a command had to do without."""
    sys.stderr.write(f"worker: {printable(message)}\n")


#: Seconds that a page waits for a free connection, instead of as long as a router waits for the page.
PAGE_WAITS: Final = 5.0


def configure_sessions(*, serves: bool = False) -> Settings:
    """Configure ``db.session`` from the environment; a command needs no broker for that.

    Arguments:
      serves: Whether the command is no person's, but answers many at the same time.

    Raises:
      ConfigurationError: When a variable is wrong or missing.
    """
    settings = Settings.load()
    if settings.database_url is None:
        raise ConfigurationError("DATABASE_URL: required (postgres://user:password@host:port/name)")
    pool: dict[str, Any] = {"pool_size": 1}
    if serves:
        pool = {
            "pool_size": settings.db_pool_size,
            "max_overflow": settings.db_max_overflow,
            "pool_timeout": PAGE_WAITS,
        }
    session.configure(
        settings.database_url,
        operator_database_url=settings.operator_database_url,
        lock_timeout_ms=settings.db_lock_timeout,
        **pool,
    )
    return settings


@contextmanager
def explained() -> Iterator[None]:
    """Turn what a user can mend into one line and an exit status: 1 for input, 2 for the deployment."""
    try:
        yield
    except ConfigurationError as e:
        fail(str(e), 2)
    except DBAPIError as e:
        fail(explain(e.orig), 2)
    except psycopg.Error as e:
        fail(explain(e), 2)
    except BrokenPipeError:
        # Whoever read this has seen enough, as in `| head`.
        raise
    except (ValueError, OSError) as e:
        fail(str(e))


def tenant_argument(value: str) -> UUID:
    """Parse ``--tenant``."""
    try:
        return parse_uuid("--tenant", value)
    except InvalidTenant as e:
        raise typer.BadParameter(str(e)) from None
