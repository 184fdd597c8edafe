"""The table ``worker_outbox``: messages that were sent inside a transaction, until Redis is known to have them.

It is the one place that reads and writes it. A message is kept as originals are, sealed where ``FAILED_JOB_KEYS`` is
set: see :mod:`db.failed.originals`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from psycopg.errors import UndefinedColumn, UndefinedTable
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from db.errors import ConfigurationError

TABLE: Final = "worker_outbox"


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message to be written.

    Attributes:
      tenant_id: The message's.
      queue: In Redis, that of delayed messages included.
      redis_id: Under which Redis is to have it; 100 characters at most.
      message: As it is kept.
    """

    tenant_id: UUID | None
    queue: str
    redis_id: str
    message_id: str
    actor: str
    message: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Waiting(Parcel):
    """A message that waits.

    Attributes:
      id: In the order of sending, within a transaction.
      age: Seconds since it was written, on Postgres' clock.
    """

    id: int = 0
    written_at: datetime | None = None
    age: float = 0.0


# The tenant of each row is the one that Postgres is told of when it is about to check that row, so that one statement
# does for messages of several.
_INSERT: Final = f"INSERT INTO {TABLE} (tenant_id, queue, redis_id, message_id, actor, message)"
_WRITE = text(
    f"""
    {_INSERT}
    SELECT
        CAST(NULLIF(set_config('app.current_tenant_id', given.tenant, true), '') AS uuid),
        given.queue, given.redis_id, given.message_id, given.actor, given.message
    FROM unnest(
        CAST(:tenants AS text[]), CAST(:queues AS text[]), CAST(:redis_ids AS text[]), CAST(:message_ids AS text[]),
        CAST(:actors AS text[]), CAST(:messages AS bytea[])
    ) AS given (tenant, queue, redis_id, message_id, actor, message)
    RETURNING id
    """
)
# The same of a single one, which most transactions send; it costs half as much.
_WRITE_ONE = text(
    f"""
    {_INSERT} VALUES (
        CAST(NULLIF(set_config('app.current_tenant_id', :tenant, true), '') AS uuid),
        :queue, :redis_id, :message_id, :actor, :message
    )
    RETURNING id
    """
)
_TELL_TENANT = text("SELECT set_config('app.current_tenant_id', :tenant, true)")


def write(connection: Connection, bound: UUID | None, parcels: Sequence[Parcel]) -> list[int]:
    """Write messages in their order, in one statement, and return their ids in the same order.

    Arguments:
      connection: In a transaction.
      bound: The tenant that Postgres was told of in it, as it is again afterwards.
      parcels: Of any tenants.

    Raises:
      ConfigurationError: When there is no such table.
      sqlalchemy.exc.DBAPIError: For any other error of Postgres.
    """
    tenants = [str(parcel.tenant_id or "") for parcel in parcels]
    values: dict[str, Any]
    if len(parcels) == 1:
        statement, only = _WRITE_ONE, parcels[0]
        values = {
            "tenant": tenants[0],
            "queue": only.queue,
            "redis_id": only.redis_id,
            "message_id": only.message_id,
            "actor": only.actor,
            "message": only.message,
        }
    else:
        statement = _WRITE
        values = {
            "tenants": tenants,
            "queues": [parcel.queue for parcel in parcels],
            "redis_ids": [parcel.redis_id for parcel in parcels],
            "message_ids": [parcel.message_id for parcel in parcels],
            "actors": [parcel.actor for parcel in parcels],
            "messages": [parcel.message for parcel in parcels],
        }
    try:
        written = connection.execute(statement, values)
    except ProgrammingError as e:
        raise _without_table(e) from e
    ids = sorted(written.scalars())
    if any(tenant != str(bound or "") for tenant in tenants):
        # For constraints that are checked at COMMIT.
        connection.execute(_TELL_TENANT, {"tenant": str(bound or "")})
    return ids


def _without_table(error: ProgrammingError) -> Exception:
    if isinstance(error.orig, UndefinedTable | UndefinedColumn):
        return ConfigurationError(
            f"the table {TABLE}, which keeps what is sent inside a transaction, is not there as it should be: run "
            "`worker migrate`, or set OUTBOX=no, with which such messages are sent at once"
        )
    return error


# Whether this user sees every row, as an operator: it is the role, or the owner with the variable set.
_SEES_ALL = text(
    """
    SELECT
        pg_has_role(current_user, relowner, 'USAGE')
        OR NOT row_security_active(oid)
        OR coalesce(
            (SELECT pg_has_role(current_user, role.oid, 'USAGE') FROM pg_roles role WHERE rolname = 'app_operator'),
            false
        )
    FROM pg_class WHERE oid = to_regclass(:table)
    """
)


def sees_all(session: Session | Connection) -> bool:
    """Tell whether an operator's session sees the messages of every tenant, as it does where its credential may.

    Raises:
      ConfigurationError: When there is no such table.
    """
    found = session.execute(_SEES_ALL, {"table": TABLE}).scalar()
    if found is None:
        raise ConfigurationError(f"there is no table {TABLE}: run `worker migrate`")
    return bool(found)


# Some at a time, and at least one however large it is. Always from the first: of a transaction that is committed
# meanwhile the first messages may have come before what was read last.
_WAITING = text(
    f"""
    SELECT tenant_id, queue, redis_id, message_id, actor, message, id, written_at, age FROM (
        SELECT
            *,
            extract(epoch FROM clock_timestamp() - written_at) AS age,
            sum(octet_length(message)) OVER (ORDER BY id) - octet_length(message) AS bytes_before
        FROM (
            SELECT * FROM {TABLE}
            WHERE written_at <= clock_timestamp() - make_interval(secs => :grace)
              AND NOT id = ANY(CAST(:but AS bigint[]))
            ORDER BY id LIMIT :limit
        ) first
    ) each
    WHERE bytes_before < :bytes ORDER BY id
    """
)


def waiting(session: Session, *, grace: float, but: Collection[int] = (), limit: int, bytes_: int) -> list[Waiting]:
    """Return the first messages that wait, of whom the session sees.

    Arguments:
      grace: Seconds for which they have waited at least.
      but: Ids to leave out.
      limit: Messages at most.
      bytes_: Bytes after which no more are read.
    """
    found = session.execute(_WAITING, {"grace": grace, "but": list(but), "limit": limit, "bytes": bytes_})
    return [Waiting(**{**row, "message": bytes(row["message"]), "age": float(row["age"])}) for row in found.mappings()]


_REMOVE = text(f"DELETE FROM {TABLE} WHERE id = ANY(CAST(:ids AS bigint[])) RETURNING id")


def remove(session: Session, ids: Collection[int]) -> set[int]:
    """Remove messages, of which those that somebody else has removed are none, and return which it did."""
    return set(session.execute(_REMOVE, {"ids": list(ids)}).scalars())


_HAS_UP_TO = text(f"SELECT EXISTS (SELECT FROM {TABLE} WHERE id <= :id)")


def has_up_to(session: Session, last: int) -> bool:
    """Tell whether a message waits that was written no later than ``last``."""
    return bool(session.execute(_HAS_UP_TO, {"id": last}).scalar())


@dataclass(frozen=True, slots=True)
class InQueue:
    """What waits for one queue: how many messages, and for how many seconds the oldest has."""

    queue: str
    count: int
    oldest: float


def by_queue(
    session: Session | Connection,
    *,
    queue: str | None = None,
    tenant_id: UUID | None = None,
    actor: str | None = None,
) -> list[InQueue]:
    """Return what waits, delayed messages among those of their queue. It reads every row; as a rule there is none.

    Arguments:
      queue, tenant_id, actor: As for :func:`find`.
    """
    return [InQueue(*row) for row in session.execute(_BY_QUEUE, _values(queue, tenant_id, actor))]


def find(
    session: Session,
    *,
    queue: str | None = None,
    tenant_id: UUID | None = None,
    actor: str | None = None,
    limit: int = 1_000,
) -> list[tuple[int, str, str]]:
    """Return the first messages of a queue, a tenant and an actor, of any where it is None, as id, Redis id and queue.

    Arguments:
      queue: Delayed messages included.
      actor: Its name; with a dot at its beginning, of all whose names end so.
      limit: Messages at most.
    """
    values = {**_values(queue, tenant_id, actor), "limit": limit}
    return [(row[0], row[1], row[2]) for row in session.execute(_FIND, values)]


def _values(queue: str | None, tenant_id: UUID | None, actor: str | None) -> dict[str, Any]:
    return {"queue": queue, "tenant_id": tenant_id, "actor": actor}


_MEANT: Final = """
    WHERE (CAST(:queue AS text) IS NULL OR queue IN (:queue, CAST(:queue AS text) || '.DQ'))
      AND (CAST(:tenant_id AS uuid) IS NULL OR tenant_id = :tenant_id)
      AND (
          CAST(:actor AS text) IS NULL OR actor = :actor
          OR (starts_with(:actor, '.') AND right(actor, length(:actor)) = :actor)
      )
"""
_FIND = text(
    f"""
    SELECT id, redis_id, regexp_replace(queue, '\\.DQ$', '') FROM {TABLE} {_MEANT}
    ORDER BY id LIMIT :limit
    """
)
_BY_QUEUE = text(
    f"""
    SELECT
        regexp_replace(queue, '\\.DQ$', '') AS name, count(*),
        CAST(extract(epoch FROM clock_timestamp() - min(written_at)) AS double precision)
    FROM {TABLE} {_MEANT} GROUP BY 1 ORDER BY 1
    """
)
