"""Sees to it that the attribution tables are ours, and not an application's of the same names."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from typing import Any
from uuid import UUID
from weakref import WeakSet

from sqlalchemy import Pool, text
from sqlalchemy.orm import DeclarativeBase, Session

from db.errors import ConfigurationError

# Checked once for each engine; its pool stands for it, because execution options make engines anew.
_checked: dict[type[DeclarativeBase], WeakSet[Pool]] = {}


def check_tables(session: Session, tables: Iterable[type[DeclarativeBase]]) -> None:
    """See to it that the tables are ours, not an application's of the same name. Asks Postgres once per engine.

    Raises:
      ConfigurationError: Naming the table, and the columns that are missing, of another type, or in our way.
    """
    pool = session.connection().engine.pool
    for table in tables:
        checked = _checked.setdefault(table, WeakSet())
        if pool not in checked:
            _check_table(session, table)
            checked.add(pool)


def _check_table(session: Session, table: type[DeclarativeBase]) -> None:
    name = table.__tablename__
    # "character varying" without its length: a longer or shorter column is no other shape.
    rows = session.execute(
        text(
            """
            SELECT attname, format_type(atttypid, NULL), attnotnull AND NOT atthasdef AND attidentity = ''
            FROM pg_attribute
            WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped
            """
        ),
        {"name": name},
    )
    there: dict[str, tuple[str, bool]] = {column: (kind, must) for column, kind, must in rows}
    if not there:
        raise ConfigurationError(f"there is no table {name}: run `worker migrate`")
    ours: dict[str, Any] = dict(table.__table__.columns)
    missing = [column for column in ours if column not in there]
    if missing:
        raise ConfigurationError(_other_shape(name, f"it has no column {', '.join(missing)}"))
    for column, wanted in ours.items():
        kind, expected = there[column][0], _type_name(wanted)
        if kind != expected and not {kind, expected} <= {"character varying", "text"}:
            raise ConfigurationError(_other_shape(name, f"its column {column} is of type {kind}, not {expected}"))
    needed = [column for column, (_, must) in there.items() if must and column not in ours]
    if needed:
        raise ConfigurationError(_other_shape(name, f"it needs a value for {', '.join(needed)}"))


def _type_name(column: Any) -> str:
    """Return a column's type as ``format_type`` writes it."""
    names = {
        UUID: "uuid",
        datetime: "timestamp with time zone",
        date: "date",
        int: "integer",
        str: "character varying",
    }
    return "bigint" if column.type.__visit_name__ == "big_integer" else names[column.type.python_type]


def _other_shape(name: str, what: str) -> str:
    return (
        f"table {name} exists in another shape than attribution needs: {what}. It belongs to the application and was "
        "left alone; rename it and run `worker migrate`"
    )
