"""How sessions reach Postgres.

It is said here, because :mod:`db.session` imports SQLAlchemy, which takes longer than all else that a worker process
imports: a worker imports that when something first needs it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from db.errors import ConfigurationError

_DRIVERS = {"postgres", "postgresql", "postgresql+psycopg"}
#: Up to the port, as SQLAlchemy reads it: a password may hold anything but an ``@``.
_URL = re.compile(r"(?P<driver>[\w+]+)://([^:/]*(:[^@]*)?@)?(\[[^/?]+\]|[^/:?]+)?(:(?P<port>[^/?]*))?")


@dataclass(frozen=True, slots=True)
class Config:
    """What :func:`configure` was given."""

    database_url: str = field(repr=False)
    operator_database_url: str = field(repr=False)
    pool_size: int
    max_overflow: int
    pool_timeout: float
    connect_timeout: int
    lock_timeout_ms: int
    prepare_threshold: int | None


class _State:
    def __init__(self) -> None:
        self.config: Config | None = None
        #: Whether no transaction may begin any more.
        self.closed = False
        #: Told of another configuration.
        self.heed: Callable[[Config], object] = lambda _: None


_state = _State()


def check_url(url: str) -> None:
    """Say what is wrong with a Postgres URL.

    Raises:
      ConfigurationError: When it is none. The message does not repeat it: it may hold a password.
    """
    found = _URL.match(url)
    try:
        if found is None or (found["port"] is not None and int(found["port"]) < 0):
            raise ValueError
    except ValueError:
        raise ConfigurationError("not a database URL; expected postgres://user:password@host:port/name") from None
    if found["driver"] not in _DRIVERS:
        raise ConfigurationError(f"the URL's scheme must be postgres:// or postgresql://, not {found['driver']}://")


def configure(
    database_url: str,
    *,
    operator_database_url: str | None = None,
    pool_size: int = 8,
    max_overflow: int = 4,
    pool_timeout: float = 30.0,
    connect_timeout: int = 5,
    lock_timeout_ms: int = 30_000,
    prepare_threshold: int | None = None,
) -> None:
    """Say how sessions reach Postgres. Connects to nothing; engines are made when first used.

    Arguments:
      database_url: The tenant-bound role's, as hosts give it (``postgres://``, ``?sslmode=``).
      operator_database_url: The role's that works across tenants; ``database_url`` where there is only one credential.
      pool_size, max_overflow: Connections kept, and opened beyond them under load, for each of the two URLs.
      pool_timeout: Seconds to wait for a free connection.
      connect_timeout: Seconds to wait for a new connection.
      lock_timeout_ms: Milliseconds a statement may wait for a lock; never more than its job has left.
      prepare_threshold: Executions after which a statement is prepared, as psycopg has it; ``None`` for never. None is
        where Postgres is reached through a pooler, such as PgBouncer. Not by default, because Postgres may keep one
        plan for a prepared statement, a generic one, and run it for every tenant: it estimates how many rows the
        policy's ``current_setting`` leaves with the tenant that is bound when it makes the plan, and the best plan for
        a small tenant may take a large one thousands of times as long. A statement without parameters always gets a
        generic plan, whatever ``plan_cache_mode`` says.

    Raises:
      ConfigurationError: When a URL is not a Postgres one.
      ValueError: When ``prepare_threshold`` is less than 1.
    """
    if prepare_threshold is not None and prepare_threshold < 1:
        # psycopg prepares at first sight then, also what may not be.
        raise ValueError(f"prepare_threshold must be None or at least 1, not {prepare_threshold!r}")
    operator_database_url = operator_database_url or database_url
    for url in (database_url, operator_database_url):
        check_url(url)
    _state.config = config = Config(
        database_url,
        operator_database_url,
        pool_size,
        max_overflow,
        pool_timeout,
        connect_timeout,
        lock_timeout_ms,
        prepare_threshold,
    )
    _state.closed = False
    _state.heed(config)


def heed(other: Callable[[Config], object]) -> tuple[Config | None, bool]:
    """Have ``other`` told of each configuration from now on; return the one of now, and whether sessions are closed."""
    _state.heed = other
    return _state.config, _state.closed


def checked(config: Config | None) -> Config:
    """Return ``config``.

    Raises:
      ConfigurationError: When there is none.
    """
    if config is None:
        raise ConfigurationError(
            "db.session is not configured: import worker.broker with DATABASE_URL set, or call db.session.configure()"
        )
    return config


def current() -> Config:
    """Return what was configured last.

    Raises:
      ConfigurationError: When nothing was.
    """
    return checked(_state.config)


def libpq_url(url: str) -> str:
    """Return a URL that was checked as libpq reads it."""
    return f"postgresql://{url.partition('://')[2]}"


def connect_arguments(config: Config) -> dict[str, Any]:
    """Return what every connection of ours is opened with, for psycopg."""
    return {
        # Until it is known what is at the other end: db.connecting.
        "prepare_threshold": None,
        "connect_timeout": config.connect_timeout,
        "application_name": "dramaturg",
        # A server whose host is gone says nothing; without these its silence lasts minutes, or two hours.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 10_000,
    }


def close() -> None:
    """Let no transaction begin in this process any more, where :mod:`db.session` is not imported yet."""
    _state.closed = True
