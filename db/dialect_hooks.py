"""Has something done as transactions begin and end on the connections of an engine, by its dialect.

SQLAlchemy's events are made for this, and would make each statement of a transaction a quarter dearer, for which
SQLAlchemy then looks through all its events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.pool.base import _AdhocProxiedConnection


class Pooled(Protocol):
    def __call__(self, connection: PoolProxiedConnection, /) -> None: ...


class Named(Protocol):
    def __call__(self, connection: Connection, name: str, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Hooks:
    """What is called; each raises nothing but what SQLAlchemy's own may raise there.

    Attributes:
      begin: Begins a transaction, which psycopg does not on a connection in autocommit mode.
      before_commit: May still write. What it raises keeps the commit from happening.
      commit: Commits.
      before_rollback: Called for a connection that goes back to its pool, too; as the next.
      rollback: Rolls back.
      savepoint: With its name, before there is one; as the next two.
      roll_back_to: Called before it happens.
      release: Called before it happens.
    """

    begin: Pooled
    before_commit: Pooled
    commit: Pooled
    before_rollback: Pooled
    rollback: Pooled
    savepoint: Named
    roll_back_to: Named
    release: Named

    def install(self, dialect: Dialect) -> None:
        """Have them called by ``dialect``, which is one engine's."""

        def commit(connection: PoolProxiedConnection) -> None:
            try:
                self.before_commit(connection)
            except BaseException:
                # SQLAlchemy takes it for ended now, and would leave it open in the pool.
                rollback(connection)
                raise
            self.commit(connection)

        def rollback(connection: PoolProxiedConnection) -> None:
            # A new one that SQLAlchemy asks about the server has nothing of ours.
            if not isinstance(connection, _AdhocProxiedConnection):
                self.before_rollback(connection)
            self.rollback(connection)

        _replace(dialect, "do_begin", self.begin)
        _replace(dialect, "do_commit", commit)
        _replace(dialect, "do_rollback", rollback)
        _precede(dialect, "do_savepoint", self.savepoint)
        _precede(dialect, "do_rollback_to_savepoint", self.roll_back_to)
        _precede(dialect, "do_release_savepoint", self.release)


def _replace(dialect: Any, name: str, by: Any) -> None:
    # An upgrade that renames it must not leave transactions without a tenant.
    getattr(dialect, name)
    setattr(dialect, name, by)


def _precede(dialect: Any, name: str, hook: Named) -> None:
    then = getattr(dialect, name)

    def both(connection: Connection, savepoint: str) -> None:
        hook(connection, savepoint)
        then(connection, savepoint)

    setattr(dialect, name, both)
