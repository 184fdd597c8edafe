"""How migrations build a table, say who may see what in it, and recognise what is there already.

The revisions use it, so what it does for a table that they describe must not change.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

log = logging.getLogger("alembic.runtime.migration.dramaturg")

#: On every table we made, so that downgrade never drops one that somebody else did.
OURS = "created by dramaturg"


class Column(NamedTuple):
    """A column; the type is written as Postgres' ``format_type`` writes it, so that both can be compared."""

    type: str
    null: bool = False
    default: str | None = None


class Table(NamedTuple):
    """A table and who may do what in it."""

    name: str
    columns: Mapping[str, Column]
    primary_key: str
    constraints: Mapping[str, str]
    indexes: Mapping[str, str]
    app_user: str
    #: The rows of a tenant, as a policy.
    tenant: str


UUID = "uuid"
TEXT = "text"
INTEGER = "integer"
BIGINT = "bigint"
JSONB = "jsonb"
TIMESTAMPTZ = "timestamp with time zone"
NOW = Column(TIMESTAMPTZ, default="CURRENT_TIMESTAMP")


def varchar(length: int) -> str:
    """Return the type as ``format_type`` writes it."""
    return f"character varying({length})"


# NULL at first, and '' after a transaction that set it. A value that is no uuid is an error, not "no rows".
SETTING = "NULLIF(current_setting('app.current_tenant_id', true), '')"
OF_TENANT = f"tenant_id = {SETTING}::uuid"
# Not IS NOT DISTINCT FROM, which cannot use the index.
OF_TENANT_OR_NOBODY = f"{OF_TENANT} OR (tenant_id IS NULL AND {SETTING} IS NULL)"


# --- Access ---------------------------------------------------------------------------------------


def give_access(table: Table) -> None:
    """Say who may do what, and let a tenant see its own rows alone."""
    drop_policies(table)
    op.execute(
        f"CREATE POLICY tenant_isolation_policy ON {table.name} FOR ALL TO PUBLIC"
        f" USING ({table.tenant}) WITH CHECK ({table.tenant})"
    )
    # For hosts where one user owns the tables and does everything. TO the owner alone, so that neither plans
    # of the others nor what they may do depend on a setting that anyone can make.
    as_operator = "current_setting('app.execution_context', true) = 'operator'"
    op.execute(
        f"CREATE POLICY operator_context_policy ON {table.name} FOR ALL TO {quoted(owner(table))}"
        f" USING ({as_operator}) WITH CHECK ({as_operator})"
    )
    if role_exists("app_operator"):
        op.execute(
            f"CREATE POLICY operator_policy ON {table.name} FOR ALL TO app_operator USING (true) WITH CHECK (true)"
        )
    for role, rights in (("app_user", table.app_user), ("app_operator", "SELECT, INSERT, UPDATE, DELETE")):
        if role_exists(role):
            open_schema(table, role)
            op.execute(f"GRANT {rights} ON {table.name} TO {role}")
    op.execute(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY")
    # The owner too.
    op.execute(f"ALTER TABLE {table.name} FORCE ROW LEVEL SECURITY")
    warn_of_more_policies(table)


def drop_policies(table: Table) -> None:
    """Drop the policies of ours and of the Celery form, which has one under the same name."""
    for policy in ("tenant_isolation_policy", "operator_policy", "operator_context_policy"):
        op.execute(f"DROP POLICY IF EXISTS {policy} ON {table.name}")


def open_schema(table: Table, role: str) -> None:
    """Let ``role`` use the schema; ``public`` is usually open to everybody, and not always ours to open."""
    schema = scalar(
        "SELECT nspname FROM pg_namespace n JOIN pg_class c ON c.relnamespace = n.oid WHERE c.oid = to_regclass(:t)",
        t=table.name,
    )
    if not scalar("SELECT has_schema_privilege(:role, :schema, 'USAGE')", role=role, schema=schema):
        op.execute(f"GRANT USAGE ON SCHEMA {quoted(schema)} TO {role}")


def temporary_tables_last(trigger_function: str) -> None:
    """Let a trigger find our tables where migrations do, and temporary ones after them.

    Unless a path says otherwise those come first, so whoever made one of the same name would take from it what the
    trigger writes: https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-SEARCH-PATH
    """
    path = ", ".join(filter(None, (scalar("SELECT current_setting('search_path')"), "pg_temp")))
    op.execute(f"ALTER FUNCTION {trigger_function}() SET search_path = {path}")


@contextmanager
def every_row_visible(table: Table) -> Iterator[None]:
    """Let the owner see all rows for a while. Forced, row-level security would show none, and change none."""
    forced = scalar("SELECT relforcerowsecurity FROM pg_class WHERE oid = to_regclass(:t)", t=table.name)
    op.execute(f"ALTER TABLE {table.name} NO FORCE ROW LEVEL SECURITY")
    yield
    if forced:
        op.execute(f"ALTER TABLE {table.name} FORCE ROW LEVEL SECURITY")


# --- Building and settling ------------------------------------------------------------------------


def create(table: Table) -> None:
    """Create ``table`` with its constraints and indexes."""
    lines = [
        f"{name} {column.type}"
        + ("" if column.null else " NOT NULL")
        + (f" DEFAULT {column.default}" if column.default else "")
        for name, column in table.columns.items()
    ]
    op.execute(f"CREATE TABLE {table.name} (\n    " + ",\n    ".join(lines) + "\n)")
    settle(table)


def build_companion(table: Table) -> None:
    """Build a companion of the canonical table; it may have outlived a downgrade."""
    if not exists(table.name):
        create(table)
        mark_as_ours(table)
    elif shape(table.name) != shape_of(table):
        raise CommandError(f"a table {table.name} exists that is not ours: rename it, then migrate again")
    else:
        settle(table)
    give_access(table)


def settle(table: Table) -> None:
    """Add the key, the constraints and the indexes that are missing."""
    settle_primary_key(table)
    settle_constraints(table)
    settle_indexes(table)


def settle_column(table: Table, name: str, column: Column) -> None:
    """Make one column of a table that somebody else built the one that is wanted."""
    alter = f"ALTER TABLE {table.name} ALTER COLUMN {name}"
    found = shape(table.name).get(name)
    if found is None:
        op.execute(f"ALTER TABLE {table.name} ADD COLUMN {name} {column.type}")
    # Before the type: an old default may not fit the new one.
    op.execute(f"{alter} DROP DEFAULT")
    if found not in (None, column.type):
        # Cast explicitly only where Postgres insists: a cast to varchar(n) would cut off what is too long.
        using = f" USING {name}::{column.type}" if column.type in (UUID, JSONB) else ""
        op.execute(f"{alter} TYPE {column.type}{using}")
    if column.default:
        op.execute(f"{alter} SET DEFAULT {column.default}")
    if column.null:
        op.execute(f"{alter} DROP NOT NULL")
        return
    if column.default:
        op.execute(f"UPDATE {table.name} SET {name} = DEFAULT WHERE {name} IS NULL")
    op.execute(f"{alter} SET NOT NULL")


def settle_primary_key(table: Table) -> None:
    """Make sure of the primary key and its name."""
    wanted = f"{table.name}_pkey"
    found = one(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = to_regclass(:t) AND contype = 'p'",
        t=table.name,
    )
    if found is None:
        op.execute(f"ALTER TABLE {table.name} ADD CONSTRAINT {wanted} PRIMARY KEY {table.primary_key}")
    elif found[1].replace('"', "") != f"PRIMARY KEY {table.primary_key}":
        raise CommandError(f"the primary key of {table.name} must be {table.primary_key}, but it is: {found[1]}")
    elif found[0] != wanted:
        op.execute(f"ALTER TABLE {table.name} RENAME CONSTRAINT {quoted(found[0])} TO {wanted}")


def settle_constraints(table: Table) -> None:
    """Add the constraints that are missing."""
    present = names("SELECT conname FROM pg_constraint WHERE conrelid = to_regclass(:t)", t=table.name)
    for name, definition in table.constraints.items():
        if name not in present:
            op.execute(f"ALTER TABLE {table.name} ADD CONSTRAINT {name} {definition}")


def settle_indexes(table: Table) -> None:
    """Add the indexes that are missing; one of the right name on other columns is replaced."""
    for name, columns in table.indexes.items():
        found = scalar(
            "SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
            " WHERE indrelid = to_regclass(:t) AND c.relname = :name",
            t=table.name,
            name=name,
        )
        if found is not None and not found.endswith(f" USING btree {columns}"):
            op.execute(f"DROP INDEX {name}")
            found = None
        if found is None:
            op.execute(f"CREATE INDEX {name} ON {table.name} {columns}")


def rename_index(old: str, new: str) -> None:
    """Rename an index if it is there; where both names are taken, the old one goes."""
    if scalar("SELECT to_regclass(:new)", new=new) is None:
        op.execute(f"ALTER INDEX IF EXISTS {old} RENAME TO {new}")
    else:
        op.execute(f"DROP INDEX IF EXISTS {old}")


def name_not_nulls(table: Table, prefix: str) -> None:
    """Name NOT NULL constraints as Postgres 18 does for a table ``prefix``; before 18 they have no names."""
    found = op.get_bind().execute(
        sa.text(
            "SELECT c.conname, a.attname FROM pg_constraint c"
            " JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]"
            " WHERE c.conrelid = to_regclass(:t) AND c.contype = 'n'"
        ),
        {"t": table.name},
    )
    for name, column in found.all():
        wanted = f"{prefix}_{column}_not_null"
        if column in table.columns and name != wanted:
            op.execute(f"ALTER TABLE {table.name} RENAME CONSTRAINT {quoted(name)} TO {wanted}")


def drop_comments(table: Table) -> None:
    """Drop the comments of the Celery form, which describe Celery."""
    op.execute(f"COMMENT ON TABLE {table.name} IS NULL")
    for name in shape(table.name):
        if name in table.columns:
            op.execute(f"COMMENT ON COLUMN {table.name}.{name} IS NULL")


def mark_as_ours(table: Table) -> None:
    """Leave the mark by which downgrade knows what it may drop."""
    op.execute(f"COMMENT ON TABLE {table.name} IS '{OURS}'")


# --- Looking --------------------------------------------------------------------------------------


def one(query: str, **values: str) -> Any:
    """Return the first row, or ``None``."""
    return op.get_bind().execute(sa.text(query), values).first()


def scalar(query: str, **values: str) -> Any:
    """Return the first column of the first row, or ``None``."""
    return op.get_bind().execute(sa.text(query), values).scalar()


def names(query: str, **values: str) -> set[str]:
    """Return the first column of every row."""
    return set(op.get_bind().execute(sa.text(query), values).scalars())


def quoted(name: str) -> str:
    """Return a name that is not ours, fit for SQL."""
    return op.get_bind().dialect.identifier_preparer.quote_identifier(name)


def role_exists(role: str) -> bool:
    """Return whether the cluster has ``role``."""
    return bool(scalar("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)", role=role))


def exists(table: str) -> bool:
    """Return whether ``table`` is one. A view of that name, as a rename may leave behind, is none."""
    return bool(
        scalar(
            "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(:t) AND relkind IN ('r', 'p'))",
            t=table,
        )
    )


def is_ours(table: str) -> bool:
    """Return whether ``table`` carries our mark."""
    return bool(scalar("SELECT obj_description(to_regclass(:t), 'pg_class')", t=table) == OURS)


def owner(table: Table) -> str:
    """Return the owner, who need not be the user that migrates."""
    return str(scalar("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = to_regclass(:t)", t=table.name))


def shape(table: str) -> dict[str, str]:
    """Return the columns that ``table`` has, and their types."""
    found = op.get_bind().execute(
        sa.text(
            "SELECT attname AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute"
            " WHERE attrelid = to_regclass(:t) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ),
        {"t": table},
    )
    return {row.name: row.type for row in found}


def shape_of(table: Table) -> dict[str, str]:
    """Return the columns that ``table`` should have, and their types."""
    return {name: column.type for name, column in table.columns.items()}


# --- Warnings -------------------------------------------------------------------------------------


def warn_of_power(role: str) -> None:
    """Roles are accepted as they are, but one that row-level security does not bind should be noticed."""
    if scalar("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = :role", role=role):
        log.warning("role %s is not bound by row-level security: it has SUPERUSER or BYPASSRLS", role)


def warn_of_more_columns(table: Table) -> None:
    """Name the columns that are not ours; they stay."""
    more = [name for name in shape(table.name) if name not in table.columns]
    if more:
        log.warning("table %s has columns unknown here, which are left as they are: %s", table.name, ", ".join(more))


def warn_of_more_policies(table: Table) -> None:
    """Name the policies that are not ours; they stay, and any of them may show more rows."""
    more = names(
        "SELECT polname FROM pg_policy WHERE polrelid = to_regclass(:t)"
        " AND polname NOT IN ('tenant_isolation_policy', 'operator_policy', 'operator_context_policy')",
        t=table.name,
    )
    if more:
        log.warning("table %s has policies unknown here, which are left: %s", table.name, ", ".join(sorted(more)))


# --- Down -----------------------------------------------------------------------------------------


def drop_if_empty(table: Table, *, whose_ever: bool = False) -> bool:
    """Drop ``table`` if it is ours (or ``whose_ever``), holds no row and is not referred to; tell if it is gone."""
    if not exists(table.name):
        return True
    if not whose_ever and not is_ours(table.name):
        return False
    with every_row_visible(table):
        keep = scalar(f"SELECT EXISTS (SELECT FROM {table.name})") or scalar(
            "SELECT EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass(:t))",
            t=table.name,
        )
    if keep:
        log.warning("table %s holds rows, or another table refers to it: it is kept", table.name)
        return False
    op.execute(f"DROP TABLE {table.name}")
    return True
