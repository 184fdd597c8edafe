"""Database sessions in which Postgres knows the tenant.

``with transaction() as session`` gives a :class:`sqlalchemy.orm.Session` in one transaction; ``async with``
an :class:`~sqlalchemy.ext.asyncio.AsyncSession`. BEGIN and the settings travel in one string, so a tenant costs no
round trip more than a bare transaction. The driver connection is in autocommit mode for that: psycopg then sends no
BEGIN of its own, and COMMIT and ROLLBACK still end what ours began. Times that Python does not have, such as
``infinity``, are the nearest that it has: see :mod:`db.times`.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary, ref

from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.pool import PoolProxiedConnection

from db import configuration, connecting, deadline, round_trips
from db.configuration import Config
from db.configuration import configure as configure
from db.dialect_hooks import Hooks
from db.errors import ConfigurationError, TenantRequired
from db.fair_pool import FairPool
from db.open_transaction import OpenTransaction
from db.outgoing import Outgoing
from db.round_trips import RoundTripCursor
from db.statement_watchdog import StatementWatchdog
from db.tenancy import current_correlation_id, current_tenancy, current_tenant

Scope = Literal["worker", "operator"]

_SCOPE_OPTION = "dramaturg_scope"
#: Among what SQLAlchemy keeps with a connection: scope and lock timeout of its transactions until it is back in its
#: pool; what leaves with the one on it; and on behalf of whom it is watched.
_NEXT, _OUTGOING, _WATCHED = "dramaturg_next", "dramaturg_outgoing", "dramaturg_watched"


class _Leaving(NamedTuple):
    outgoing: Outgoing
    # The pool holds this: it would never get a connection back that somebody has dropped.
    connection: ref[Connection]


@dataclass(slots=True)
class _State:
    config: Config | None = None
    #: Whether no transaction may begin any more.
    closed: bool = False
    engines: dict[str, Engine] = field(default_factory=dict)
    #: The same engines, told in which scope they are used.
    scoped: dict[Scope, Engine] = field(default_factory=dict)
    # An async connection belongs to the event loop it was opened on.
    async_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncEngine]] = field(
        default_factory=WeakKeyDictionary
    )

    def dispose(self, *, close: bool = True) -> None:
        """Forget the engines, and close their pooled connections unless they are another process'."""
        engines = list(self.engines.values())
        self.engines.clear()
        self.scoped.clear()
        for engine in engines:
            engine.dispose(close=close)


_state = _State(*configuration.heed(lambda config: _use(config)))
_watchdog = StatementWatchdog()


def normalise_url(url: str) -> str:
    """Return ``url`` with the driver that SQLAlchemy needs; hosts say ``postgres://`` or ``postgresql://``.

    Raises:
      ConfigurationError: When it is no Postgres URL. The message does not repeat it: it may hold a password.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError("not a database URL; expected postgres://user:password@host:port/name") from None
    if parsed.drivername not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise ConfigurationError(f"the URL's scheme must be postgres:// or postgresql://, not {parsed.drivername}://")
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def _use(config: Config) -> None:
    global _state
    # Replaced whole: a transaction that begins at this moment finds a configuration and the engines made for it.
    before, _state = _state, _State(config)
    before.dispose()


def dispose() -> None:
    """Close pooled connections; the next transaction opens new ones. Async code has :func:`dispose_async`."""
    _state.dispose()


async def dispose_async() -> None:
    """Close the pooled connections of the running event loop. Only that loop can: call it before the loop ends."""
    for engine in _state.async_engines.pop(asyncio.get_running_loop(), {}).values():
        await engine.dispose()


def running_statements(job: object) -> Callable[[], None] | None:
    """Return what cancels the statements that run now for ``job``, if any, and none of a later transaction.

    Each takes two seconds where Postgres does not answer.

    Arguments:
      job: As given to :func:`db.deadline.set_deadline`.
    """
    return _watchdog.running(job)


def close_for_good(within: float) -> None:
    """Let no transaction begin in this process any more, which is about to exit, and cancel all that runs.

    Postgres goes on with a statement whose client is gone, until there is something to send.

    Arguments:
      within: Seconds that it may take, whether Postgres answers or not.
    """
    _state.closed = True
    end = time.monotonic() + within
    while (left := end - time.monotonic()) > 0:
        cancel = _watchdog.running()
        if cancel is None:
            return
        # It takes longer than that where Postgres does not answer.
        cancelling = threading.Thread(target=cancel, name="cancel", daemon=True)
        cancelling.start()
        cancelling.join(left)
        time.sleep(0.02)


def _forget_after_fork() -> None:
    global _state, _watchdog
    # The parent still uses these sockets.
    _state.dispose(close=False)
    _state = _State(_state.config)
    _watchdog = StatementWatchdog()


os.register_at_fork(after_in_child=_forget_after_fork)


def _engine_arguments(config: Config) -> dict[str, Any]:
    return {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": config.pool_size,
        "max_overflow": config.max_overflow,
        "pool_timeout": config.pool_timeout,
        "pool_recycle": 1800,
        # A statement's values would otherwise stand in the text of every database error, and so in logs and rows.
        "hide_parameters": True,
        "connect_args": configuration.connect_arguments(config),
    }


def _make_engine(url: str, config: Config) -> Engine:
    arguments = _engine_arguments(config)
    arguments["connect_args"] = {"cursor_factory": RoundTripCursor, **arguments["connect_args"]}
    engine = create_engine(normalise_url(url), poolclass=FairPool, **arguments)
    _listen(engine, config)
    return engine


def _listen(engine: Engine, config: Config) -> None:
    event.listen(engine, "connect", connecting.set_up(config.prepare_threshold))
    if config.prepare_threshold is not None:
        event.listen(engine, "handle_error", connecting.drop_prepared)
    _hooks.install(engine.dialect)


def _url(config: Config, scope: Scope) -> str:
    return config.operator_database_url if scope == "operator" else config.database_url


def _bind(scope: Scope, lock_timeout_ms: int | None = None) -> Engine:
    state = _state
    bound = state.scoped.get(scope) if lock_timeout_ms is None else None
    if bound is not None:
        return bound
    config = configuration.checked(state.config)
    url = _url(config, scope)
    engine = state.engines.get(url)
    if engine is None:
        # Two threads may both get here: all must use the one that is kept.
        engine = state.engines.setdefault(url, _make_engine(url, config))
    # It hears what the engine hears, be that from an application's instrumentation.
    bound = engine.execution_options(**{_SCOPE_OPTION: scope})
    if lock_timeout_ms is not None:
        return _tell(bound, scope, lock_timeout_ms)
    return state.scoped.setdefault(scope, _tell(bound, scope, config.lock_timeout_ms))


def _async_bind(scope: Scope, lock_timeout_ms: int | None = None) -> AsyncEngine:
    state = _state
    config = configuration.checked(state.config)
    url = _url(config, scope)
    engines = state.async_engines.setdefault(asyncio.get_running_loop(), {})
    engine = engines.get(url)
    if engine is None:
        engine = engines[url] = create_async_engine(normalise_url(url), **_engine_arguments(config))
        _listen(engine.sync_engine, config)
    bound = engine.execution_options(**{_SCOPE_OPTION: scope})
    _tell(bound.sync_engine, scope, config.lock_timeout_ms if lock_timeout_ms is None else lock_timeout_ms)
    return bound


def _tell(engine: Engine, scope: Scope, lock_timeout_ms: int) -> Engine:
    """Have each connection of ``engine`` say what its next transaction is to be."""
    connect = engine.connect

    def connect_and_tell() -> Connection:
        connection = connect()
        connection.info[_NEXT] = scope, lock_timeout_ms
        return connection

    engine.connect = connect_and_tell  # type: ignore[method-assign]
    return engine


def _tenant_id(scope: Scope) -> UUID | None:
    return current_tenant() if scope == "worker" else None


def _tenancy_settings(scope: Scope) -> str:
    of_tenant = f"SET LOCAL app.current_tenant_id = '{_tenant_id(scope) or ''}'"
    return f"{of_tenant}; SET LOCAL app.correlation_id = '{current_correlation_id() or ''}'"


def begin_statement(scope: Scope, lock_timeout_ms: int) -> str:
    """Return the string that begins a transaction for the binding and deadline of this context.

    Every value in it is a UUID, an integer or a word of ours, so nothing needs escaping.
    """
    # All three, also where they are empty: code may have said SET without LOCAL on this connection before.
    parts = [f"BEGIN; SET LOCAL app.execution_context = '{scope}'", _tenancy_settings(scope)]
    left = deadline.remaining_ms()
    if left is not None:
        parts.append(f"SET LOCAL statement_timeout = {left}")
        lock_timeout_ms = min(lock_timeout_ms, left)
    parts.append(f"SET LOCAL lock_timeout = {lock_timeout_ms}")
    return "; ".join(parts)


def rebind(session: Session) -> None:
    """Bind the rest of an open transaction to the tenant that is current now, for a batch of several tenants' rows."""
    connection = session.connection()
    scope: Scope = connection.get_execution_options()[_SCOPE_OPTION]
    connection.exec_driver_sql(_tenancy_settings(scope), execution_options={"no_parameters": True})


def tenant_of(session: Session) -> UUID | None:
    """Return the tenant that an open session is bound to; ``None`` for an operator's, and for work of no tenant."""
    return _tenant_id(session.connection().get_execution_options().get(_SCOPE_OPTION, "worker"))


def _begin(connection: PoolProxiedConnection) -> None:
    driver: Any = connection.driver_connection
    told: tuple[Scope, int] | None = connection.info.get(_NEXT)
    # Whoever takes a connection past us gets what sees least.
    scope, lock_timeout_ms = told or ("worker", configuration.checked(_state.config).lock_timeout_ms)
    statement = begin_statement(scope, lock_timeout_ms)
    if driver.pgconn.transaction_status != TransactionStatus.IDLE:
        # Somebody was interrupted, and SQLAlchemy took it for ended. What was done there is not to be committed with
        # this.
        connection.rollback()
    if not round_trips.say(driver, statement):
        # Without parameters psycopg uses the simple protocol, which alone takes several statements in one string. What
        # is wrong, if anything is, becomes SQLAlchemy's error.
        cursor = connection.cursor()
        try:
            cursor.execute(statement)
        finally:
            cursor.close()
    due, job = deadline.deadline(), deadline.job()
    if due is not None or job is not None:
        connection.info[_WATCHED] = ref(connection)
        _watchdog.watch(driver, due, job)
    else:
        _watchdog.unwatch(driver)


def _unwatch(connection: PoolProxiedConnection) -> None:
    watched: ref[PoolProxiedConnection] | None = connection.info.pop(_WATCHED, None)
    # Not where the garbage collector gives it back, which may run on the watchdog's own thread: the next BEGIN does.
    if watched is not None and watched() is connection:
        driver: Any = connection.driver_connection
        _watchdog.unwatch(driver)


def _before_committing(connection: PoolProxiedConnection) -> None:
    # Here and not in the session's events: whatever is sent while objects are flushed has been handed in by now.
    leaving: _Leaving | None = connection.info.pop(_OUTGOING, None)
    if leaving is not None:
        of_session = leaving.connection()
        assert of_session is not None  # noqa: S101 - it is committing
        leaving.outgoing.write(of_session)
    _unwatch(connection)


def _before_rolling_back(connection: PoolProxiedConnection) -> None:
    connection.info.pop(_NEXT, None)
    # Here, too, because hooks of the session are called before it knows.
    leaving: _Leaving | None = connection.info.pop(_OUTGOING, None)
    if leaving is not None and leaving.connection() is not None:
        leaving.outgoing.roll_back()
    _unwatch(connection)


def _savepoint(connection: Connection, _name: str) -> None:
    leaving: _Leaving | None = connection.info.get(_OUTGOING)
    if leaving is not None:
        leaving.outgoing.savepoint()


def _roll_back_to(connection: Connection, name: str) -> None:
    leaving: _Leaving | None = connection.info.get(_OUTGOING)
    if leaving is not None:
        leaving.outgoing.roll_back_to(name)


def _release(connection: Connection, name: str) -> None:
    leaving: _Leaving | None = connection.info.get(_OUTGOING)
    if leaving is not None:
        leaving.outgoing.end(name)


_hooks = Hooks(
    begin=_begin,
    before_commit=_before_committing,
    commit=round_trips.commit,
    before_rollback=_before_rolling_back,
    rollback=round_trips.roll_back,
    savepoint=_savepoint,
    roll_back_to=_roll_back_to,
    release=_release,
)


class _Session(Session):
    """A session that knows what leaves with its transaction."""

    opened: OpenTransaction


@event.listens_for(_Session, "after_begin")
def _after_begin(session: _Session, transaction: SessionTransaction, connection: Connection) -> None:
    if not transaction.nested:
        session.opened.outgoing.begin()
        connection.info[_OUTGOING] = _Leaving(session.opened.outgoing, ref(connection))


# A session makes a savepoint only with the first statement after begin_nested(), which may be long after it.
@event.listens_for(_Session, "after_transaction_create")
def _after_transaction_create(session: _Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        session.opened.outgoing.mark(transaction)
    elif transaction.parent is None:
        session.opened.outgoing.open()


@event.listens_for(_Session, "after_transaction_end")
def _after_transaction_end(session: _Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        session.opened.outgoing.end(transaction)


@event.listens_for(_Session, "before_commit")
def _before_commit(session: _Session) -> None:
    if session.opened.outgoing:
        # There must be a transaction to commit, also where the block has committed one before and done nothing since.
        session.connection()


@event.listens_for(_Session, "after_commit")
def _after_commit(session: _Session) -> None:
    if session.in_nested_transaction():
        return
    opened = session.opened
    opened.outgoing.commit()
    # In the middle of a block, whose end takes further what its own commit has.
    if not opened.leaving and opened.outgoing.is_committed:
        if isinstance(opened.session, Session):
            opened.outgoing.deliver()
        else:
            opened.outgoing.leave()


@event.listens_for(_Session, "after_rollback")
def _after_rollback(session: _Session) -> None:
    # Again, for where the connection was lost. Not in the next event, before which a hook may have begun another one.
    if not session.in_nested_transaction():
        session.opened.outgoing.roll_back()


@event.listens_for(_Session, "after_soft_rollback")
def _after_soft_rollback(session: _Session, previous: SessionTransaction) -> None:
    if previous.nested:
        session.opened.outgoing.roll_back_to(previous)


class _Transaction(AbstractContextManager[Session], AbstractAsyncContextManager[AsyncSession]):
    """One transaction, for ``with`` or for ``async with``."""

    def __init__(self, scope: Scope, lock_timeout_ms: int | None = None) -> None:
        self._scope = scope
        self._lock_timeout_ms = lock_timeout_ms
        self._session: Session | None = None
        self._async_session: AsyncSession | None = None
        self._opened: OpenTransaction | None = None

    def __enter__(self) -> Session:
        self._check()
        try:
            self._session = self._open()
        except DBAPIError as e:
            if not e.connection_invalidated:
                raise
            # A pooled connection that died while it was idle. Nothing was done on it yet, and the pool has dropped
            # its like, so a restart of Postgres costs no job.
            self._session = self._open()
        return self._session

    def _open(self) -> Session:
        session = _Session(_bind(self._scope, self._lock_timeout_ms), expire_on_commit=False)
        session.opened = opened = OpenTransaction(session, _tenant_id(self._scope))
        try:
            session.connection()
        except BaseException:
            opened.leave()
            session.close()
            raise
        self._opened = opened
        return session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        opened, committed = self._opened, False
        assert session is not None and opened is not None, "left without having been entered"  # noqa: S101, PT018
        opened.leaving = True
        try:
            if kind is None:
                session.commit()
                committed = True
        finally:
            opened.leave()
            # First: from then on another may record what this one had.
            opened.rolled_back = not committed
            # Rolls back what was not committed, whatever interrupted it.
            session.close()
        if opened.outgoing.is_committed:
            opened.outgoing.deliver()

    async def __aenter__(self) -> AsyncSession:
        self._check()
        try:
            self._async_session = await self._open_async()
        except DBAPIError as e:
            if not e.connection_invalidated:
                raise
            self._async_session = await self._open_async()
        return self._async_session

    async def _open_async(self) -> AsyncSession:
        session = AsyncSession(
            _async_bind(self._scope, self._lock_timeout_ms), expire_on_commit=False, sync_session_class=_Session
        )
        assert isinstance(session.sync_session, _Session)  # noqa: S101 - as it was just told
        session.sync_session.opened = opened = OpenTransaction(session, _tenant_id(self._scope))
        try:
            await session.connection()
        except BaseException:
            opened.leave()
            await session.close()
            raise
        self._opened = opened
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, self._async_session = self._async_session, None
        opened, committed = self._opened, False
        assert session is not None and opened is not None, "left without having been entered"  # noqa: S101, PT018
        opened.leaving = True
        try:
            if kind is None:
                await session.commit()
                committed = True
        finally:
            opened.leave()
            # First: from then on another may record what this one had.
            opened.rolled_back = not committed
            await session.close()
        if opened.outgoing.is_committed:
            # It waits for a server, which this event loop must not.
            await asyncio.to_thread(opened.outgoing.deliver)

    def _check(self) -> None:
        if _state.closed:
            raise RuntimeError("this process is exiting")
        if self._session is not None or self._async_session is not None:
            raise RuntimeError("this transaction is already open; call transaction() again for another")
        if self._scope == "worker" and current_tenancy() is None:
            raise TenantRequired(
                "transaction() needs a tenant: call it inside tenant_context(tenant_id) or from a tenant-scoped actor; "
                "tenant_context(None) is for rows that belong to no tenant, operator_transaction() for all tenants"
            )


def transaction(*, lock_timeout_ms: int | None = None) -> _Transaction:
    """Return a transaction bound to the current tenant, for ``with`` (a Session) or ``async with`` (an AsyncSession).

    Commits at the end of the block, rolls back when it raises. Each call is a transaction and a connection of its own.
    Inside a job its statements end when the job's time limit does.

    Arguments:
      lock_timeout_ms: Milliseconds a statement may wait for a lock; what :func:`configure` was told by default.

    Raises (on entering):
      TenantRequired: When nothing is bound; see :func:`db.tenancy.tenant_context`.
      ConfigurationError: When sessions were not configured.
      sqlalchemy.exc.OperationalError: When Postgres cannot be reached.
    """
    return _Transaction("worker", lock_timeout_ms)


def operator_transaction() -> _Transaction:
    """Return a transaction that sees every tenant, with ``OPERATOR_DATABASE_URL``; otherwise as :func:`transaction`.

    The bound tenant does not restrict it.
    """
    return _Transaction("operator")
