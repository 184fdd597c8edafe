"""Run the migrations from Python, as ``worker migrate`` and the tests do."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError

import db
from db.errors import ConfigurationError
from db.session import normalise_url

# Alembic keeps the migration at hand in a global of its own, so one process can run one at a time. Between
# processes the database decides.
_one_at_a_time = threading.Lock()


def script_location() -> Path:
    """Return the folder of the migrations: ``db/migrations`` as installed, ``migrations`` in a checkout.

    Raises:
      ConfigurationError: When there is neither.
    """
    package = Path(db.__file__).resolve().parent
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise ConfigurationError(f"the migrations are missing: neither beside nor inside {package}")


def config(url: str) -> Config:
    """Return Alembic's configuration for the database at ``url``.

    Raises:
      ConfigurationError: When ``url`` is no Postgres URL.
    """
    # Standard output is the caller's; whatever Alembic has to say is no answer to a command of ours.
    made = Config(stdout=sys.stderr)
    made.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    # Not an option of the file: a password may hold '%', which the parser would take for a reference.
    made.attributes["url"] = normalise_url(url)
    return made


def upgrade(url: str, revision: str = "head", *, lock_timeout: float = 5.0) -> None:
    """Bring the database at ``url`` up to ``revision``, all in one transaction.

    Arguments:
      url: The owner's, as hosts give it.
      revision: Where to; ``head`` is the newest.
      lock_timeout: Seconds to wait for a table that another transaction holds. Everybody else waits behind a
        migration that waits.

    Raises:
      ConfigurationError: When the database holds something that cannot be migrated, or a lock was not to be
        had. The database is then unchanged.
      sqlalchemy.exc.OperationalError: When Postgres cannot be reached.
    """
    _run(config(url), revision, lock_timeout, up=True)


def downgrade(url: str, revision: str = "base", *, lock_timeout: float = 5.0) -> None:
    """Take the database at ``url`` back to ``revision``; no table that holds a row is dropped, nor any role.

    Arguments and errors as for :func:`upgrade`.
    """
    _run(config(url), revision, lock_timeout, up=False)


def _run(configuration: Config, revision: str, lock_timeout: float, *, up: bool) -> None:
    configuration.attributes["lock_timeout"] = lock_timeout
    move = command.upgrade if up else command.downgrade
    try:
        with _one_at_a_time:
            move(configuration, revision)
    except CommandError as e:
        raise ConfigurationError(str(e)) from e
