"""The tenants: add one, list them, name them. For the command line, in an operator's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from uuid import UUID, uuid4

from psycopg import errors
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.errors import ConfigurationError
from db.failed.filters import contains
from db.session import tenant_of
from db.tenancy import current_tenant, parse_uuid
from worker.arguments import check_text

#: Characters of a tenant's name.
NAME_LENGTH = 200

#: The application's own ``tenants`` may know no row-level security.
_SEEN = "(CAST(:bound AS uuid) IS NULL OR id = CAST(:bound AS uuid))"


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


def tenant_names(session: Session, ids: Iterable[UUID | None]) -> dict[UUID, str]:
    """Return what those tenants are called that have a name, and that the session may see.

    Arguments:
      session: An operator's, or one that is bound to a tenant, and then knows that one's alone.
      ids: Whose; None has no name.
    """
    wanted = list({tenant_id for tenant_id in ids if tenant_id is not None})
    if not wanted or not _have_names(session):
        return {}
    rows = session.execute(
        text(f"SELECT id, CAST(name AS text) FROM tenants WHERE id = ANY(:ids) AND name IS NOT NULL AND {_SEEN}"),
        {"ids": wanted, "bound": tenant_of(session)},
    )
    return {row.id: row.name for row in rows}


def tenants_like(session: Session, value: str, *, limit: int = 1_000) -> dict[UUID, str | None]:
    """Return the tenants whose name holds ``value``, in any case, by name; and the one whose id it is, if any.

    Arguments:
      session: An operator's, or one that is bound to a tenant, and then knows that one's alone.
      value: Any text.
      limit: How many at most.
    """
    found: dict[UUID, str | None] = {}
    with suppress(ValueError):
        tenant_id = UUID(value)
        found[tenant_id] = tenant_names(session, [tenant_id]).get(tenant_id)
    if _have_names(session) and "\0" not in value:
        rows = session.execute(
            text(
                "SELECT id, CAST(name AS text) FROM tenants"
                f" WHERE CAST(name AS text) ILIKE :like AND {_SEEN} ORDER BY 2, 1 LIMIT :limit"
            ),
            {"like": contains(value), "limit": limit, "bound": tenant_of(session)},
        )
        found |= {row.id: row.name for row in rows}
    return found


def tenant_named(session: Session, value: str) -> UUID:
    """Return the tenant that a person means: a UUID, or the name of exactly one that the session sees.

    Raises:
      ValueError: When it is neither; the message names the candidates where there are several.
    """
    try:
        return UUID(value)
    except ValueError:
        pass
    found: list[UUID] = []
    # Postgres takes no NUL.
    if "\0" not in value and _have_names(session):
        rows = session.scalars(
            text(f"SELECT id FROM tenants WHERE name = :name AND {_SEEN} ORDER BY id LIMIT 6"),
            {"name": value, "bound": tenant_of(session)},
        )
        found = list(rows)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"tenant {value!r} is the name of several, so say which by its id: {', '.join(map(str, found))}"
        )
    raise ValueError(f"tenant must be a UUID or the name of one that is there, not {value!r}")


def _have_names(session: Session) -> bool:
    """Tell whether there are names that this session may read: ``tenants`` may be the application's own."""
    return bool(
        session.execute(
            text(
                """
                SELECT EXISTS (
                    SELECT FROM pg_attribute
                    WHERE attrelid = to_regclass('tenants') AND attname = 'name' AND NOT attisdropped
                      AND has_column_privilege(attrelid, attnum, 'SELECT')
                )
                """
            )
        ).scalar_one()
    )


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
