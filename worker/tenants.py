"""The tenants: add one, list them. For the command line, in an operator's transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID, uuid4

from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.errors import ConfigurationError
from db.tenancy import current_tenant, parse_uuid
from worker.arguments import check_text

#: Characters of a tenant's name.
NAME_LENGTH = 200


@dataclass(frozen=True, slots=True)
class TenantRow:
    """A tenant; ``name`` is None where the application's own ``tenants`` has none."""

    id: UUID
    name: str | None


@contextmanager
def naming_tenant(tenant_id: UUID) -> Iterator[None]:
    """Turn a refused write of a tenant's row into an error that names the tenant.

    The foreign key tells that a tenant is missing even where this role may not read the application's ``tenants``.

    Raises:
      ValueError: When there is no such tenant, or the transaction is bound to another one.
    """
    try:
        yield
    except (DBAPIError, errors.Error) as e:
        cause = e.orig if isinstance(e, DBAPIError) else e
        missing = isinstance(cause, errors.ForeignKeyViolation)
        bound = current_tenant()
        hidden = isinstance(cause, errors.InsufficientPrivilege) and bound is not None and bound != tenant_id
        if not (missing or hidden):
            raise
        raise no_tenant(tenant_id) from None


def no_tenant(tenant_id: UUID) -> ValueError:
    """Return the error that says so."""
    return ValueError(f"tenant_id: no tenant {tenant_id}")


def add_tenant(session: Session, name: str, tenant_id: UUID | None = None) -> UUID:
    """Add a tenant and return its id.

    Arguments:
      session: An operator's (:func:`db.session.operator_transaction`).
      name: What people call it: 1 to 200 characters. Names may repeat, ids tell tenants apart.
      tenant_id: Its id; a random one when omitted.

    Raises:
      ValueError: When the name is unusable or the id exists already; the message names it.
      ConfigurationError: When ``tenants`` is the application's own and a row of it needs more than a name.
    """
    check_text("name", name, NAME_LENGTH)
    chosen = uuid4() if tenant_id is None else parse_uuid("tenant_id", tenant_id)
    columns = _columns(session)
    if "name" not in columns:
        raise ConfigurationError(
            "table tenants has no column name: it is the application's own, so add tenants with the application"
        )
    needed = sorted(column for column, must in columns.items() if must and column not in {"id", "name"})
    if needed:
        raise ConfigurationError(
            f"table tenants is the application's own and needs a value for {', '.join(needed)}: "
            "add tenants with the application"
        )
    added = session.execute(
        text("INSERT INTO tenants (id, name) VALUES (:id, :name) ON CONFLICT (id) DO NOTHING RETURNING id"),
        {"id": chosen, "name": name},
    ).scalar()
    if added is None:
        raise ValueError(f"tenant_id: tenant {chosen} exists already")
    return chosen


def list_tenants(session: Session) -> list[TenantRow]:
    """Return every tenant the session sees, by name and id.

    Arguments:
      session: An operator's, to see them all; a tenant's own sees that one.

    Raises:
      ConfigurationError: When there is no table ``tenants``.
    """
    name = "CAST(name AS text)" if "name" in _columns(session) else "CAST(NULL AS text)"
    rows = session.execute(text(f"SELECT id, {name} AS name FROM tenants ORDER BY 2, 1"))
    return [TenantRow(id_, name) for id_, name in rows]


def _columns(session: Session) -> dict[str, bool]:
    """Return the columns of ``tenants``, and of each whether an insert must give it a value."""
    rows = session.execute(
        text(
            """
            SELECT attname, attnotnull AND NOT atthasdef AND attidentity = '' FROM pg_attribute
            WHERE attrelid = to_regclass('tenants') AND attnum > 0 AND NOT attisdropped
            """
        )
    )
    columns = {str(name): bool(must) for name, must in rows}
    if not columns:
        raise ConfigurationError("there is no table tenants: run `worker migrate`")
    return columns
