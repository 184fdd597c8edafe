"""The tables of ours that a database holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from db.models import Base
from db.table_building import OURS
from worker.check.postgres import rows

#: The one that may be the Celery system's, and is ours all the same.
CANONICAL = "worker_failed_jobs"
ISOLATION = "tenant_isolation_policy"


@dataclass(frozen=True, slots=True)
class Policy:
    """A row-level security policy."""

    name: str
    permissive: bool
    #: Whether it is for every command and every role.
    general: bool
    #: Which rows may be seen, and which written, as Postgres writes it.
    using: str | None
    with_check: str | None
    #: Whom it is for; ``public`` is everybody.
    roles: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A table by the name of one of ours, as the database has it."""

    name: str
    owner: str
    enabled: bool
    forced: bool
    policies: Sequence[Policy]
    #: Whether migrations made it or took it over. An application's table of the same name is its own matter.
    ours: bool


def read_tables(connection: Connection) -> list[Table]:
    """Return the tables that are there, wherever ``search_path`` finds them."""
    found = rows(
        connection,
        """
        SELECT c.relname, pg_get_userbyid(c.relowner), c.relrowsecurity, c.relforcerowsecurity,
            obj_description(c.oid, 'pg_class'),
            coalesce((SELECT json_agg(json_build_array(polname, polpermissive, polcmd = '*' AND polroles = '{0}',
                pg_get_expr(polqual, polrelid), pg_get_expr(coalesce(polwithcheck, polqual), polrelid),
                ARRAY(SELECT CASE WHEN r = 0 THEN 'public' ELSE pg_get_userbyid(r) END FROM unnest(polroles) AS r (r)))
                ORDER BY polname) FROM pg_policy WHERE polrelid = c.oid), '[]'::json)
        FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS wanted (name, place)
        JOIN pg_class c ON c.oid = to_regclass(wanted.name)
        WHERE c.relkind IN ('r', 'p')
        ORDER BY place
        """,
        {"names": sorted(Base.metadata.tables)},
    )
    tables = []
    for name, owner, enabled, forced, comment, described in found:
        policies = [Policy(*policy) for policy in described]
        ours = comment == OURS or name == CANONICAL or any(policy.name == ISOLATION for policy in policies)
        tables.append(Table(name, owner, enabled, forced, policies, ours))
    return tables
