"""Whether row-level security stands on every table of ours, as the migrations put it there."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import Connection

from db.models import Base
from db.table_building import OF_TENANT, OF_TENANT_OR_NOBODY, SETTING
from worker.check.findings import Finding, error, ok, warning
from worker.check.postgres import rows
from worker.check.tables import CANONICAL, ISOLATION, Policy, Table, read_tables

NAME = "postgres.row-level-security"
OPERATOR = "operator_policy"
OPERATOR_CONTEXT = "operator_context_policy"
OF_OURS = {ISOLATION, OPERATOR, OPERATOR_CONTEXT}
_SAYS_SO = "current_setting('app.execution_context', true) = 'operator'"
#: Whom the policies of operators are for, and what they show; the owner is who runs the statement.
_FOR_OPERATORS = {
    OPERATOR: "TO app_operator USING (true) WITH CHECK (true)",
    OPERATOR_CONTEXT: f"TO CURRENT_USER USING ({_SAYS_SO}) WITH CHECK ({_SAYS_SO})",
}


def check_row_level_security(connection: Connection) -> Iterator[Finding]:
    """Check the tables of the database, and the views over them. A database that was not migrated has none."""
    tables = read_tables(connection)
    if CANONICAL not in {table.name for table in tables}:
        return
    ((has_operator,),) = rows(connection, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'app_operator')")
    found = [*judge_tables(tables, has_operator=has_operator), *_check_views(connection, tables)]
    yield from found
    if not found:
        yield ok(NAME, f"forced on {sum(table.ours for table in tables)} tables, with their policies")


def judge_tables(tables: Collection[Table], *, has_operator: bool) -> Iterator[Finding]:
    """Judge what the tables have; nothing where all is well.

    Arguments:
      tables: Those that are there.
      has_operator: Whether the role ``app_operator`` exists.
    """
    ours = [table for table in tables if table.ours]
    missing = sorted(Base.metadata.tables.keys() - {table.name for table in tables})
    if missing:
        yield error(
            NAME,
            f"there is no table {', '.join(missing)}",
            "worker migrate; where that is up to date, somebody dropped it: restore it from a backup.",
        )
    if off := [table.name for table in ours if not table.enabled]:
        yield error(
            NAME,
            f"not enabled on {', '.join(off)}: every tenant sees every row",
            "; ".join(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY" for name in off),
        )
    if unforced := [table.name for table in ours if not table.forced]:
        yield error(
            NAME,
            f"not forced on {', '.join(unforced)}: it does not bind their owner",
            "; ".join(f"ALTER TABLE {name} FORCE ROW LEVEL SECURITY" for name in unforced),
        )
    yield from _judge_policies(ours, has_operator=has_operator)
    if theirs := [table.name for table in tables if not table.ours]:
        yield warning(
            NAME,
            f"{', '.join(theirs)} belongs to the application: its isolation is not ours to check",
            "See to it that it has row-level security of its own, forced, by app.current_tenant_id.",
        )


def _judge_policies(tables: Collection[Table], *, has_operator: bool) -> Iterator[Finding]:
    unprotected = [table.name for table in tables if not any(p.name == ISOLATION for p in table.policies)]
    if unprotected:
        yield error(
            NAME,
            f"no {ISOLATION} on {', '.join(unprotected)}",
            "; ".join(f"CREATE POLICY {ISOLATION} ON {name} {_isolation(name)}" for name in unprotected),
        )
    changed = [
        table.name
        for table in tables
        for policy in table.policies
        if policy.name == ISOLATION and not _isolates(policy)
    ]
    if changed:
        yield error(
            NAME,
            f"{ISOLATION} on {', '.join(changed)} is not the one that migrations made",
            "; ".join(
                f"DROP POLICY {ISOLATION} ON {name}; CREATE POLICY {ISOLATION} ON {name} {_isolation(name)}"
                for name in changed
            ),
        )
    yield from _judge_operators(tables, has_operator=has_operator)
    for table in tables:
        for policy in table.policies:
            if policy.permissive and policy.name not in OF_OURS:
                shown = f"{policy.using or policy.with_check}"
                yield warning(
                    NAME,
                    f"policy {policy.name} on {table.name} is not ours, and shows more rows: {shown:.120}",
                    f'Unless it is meant to be there: DROP POLICY "{policy.name}" ON {table.name}',
                )


def _judge_operators(tables: Collection[Table], *, has_operator: bool) -> Iterator[Finding]:
    # Where there is no such role, operators are the owner, who says so.
    needed = OPERATOR if has_operator else OPERATOR_CONTEXT
    if blind := [table.name for table in tables if not any(policy.name == needed for policy in table.policies)]:
        yield error(
            NAME,
            f"no {needed} on {', '.join(blind)}: operators do not see its rows",
            "; ".join(f"CREATE POLICY {needed} ON {table} {_FOR_OPERATORS[needed]}" for table in blind),
        )
    for table in tables:
        for policy in table.policies:
            if policy.name in _FOR_OPERATORS and not _is_for_operators(policy, table.owner):
                yield error(
                    NAME,
                    f"{policy.name} on {table.name} is for {', '.join(policy.roles)}, not as migrations made it",
                    f"ALTER POLICY {policy.name} ON {table.name} {_FOR_OPERATORS[policy.name]}",
                )


def _is_for_operators(policy: Policy, owner: str) -> bool:
    if policy.name == OPERATOR:
        return list(policy.roles) == ["app_operator"]
    return list(policy.roles) == [owner] and "app.execution_context" in (policy.using or "")


def _isolates(policy: Policy) -> bool:
    return policy.general and all(
        "app.current_tenant_id" in (which or "") for which in (policy.using, policy.with_check)
    )


def _isolation(table: str) -> str:
    columns = Base.metadata.tables[table].columns
    if "tenant_id" not in columns:
        shown = f"id = {SETTING}::uuid"
    else:
        shown = OF_TENANT_OR_NOBODY if columns["tenant_id"].nullable else OF_TENANT
    return f"USING ({shown}) WITH CHECK ({shown})"


def _check_views(connection: Connection, tables: Collection[Table]) -> Iterator[Finding]:
    views = rows(
        connection,
        """
        SELECT DISTINCT v.oid::regclass::text, v.relkind = 'm'
        FROM pg_depend d
        JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass
        JOIN pg_class v ON v.oid = r.ev_class
        WHERE d.refclassid = 'pg_class'::regclass
          AND d.refobjid IN (SELECT to_regclass(name) FROM unnest(CAST(:names AS text[])) AS ours (name))
          AND (v.relkind = 'm' OR v.relkind = 'v' AND NOT EXISTS (
              SELECT FROM pg_options_to_table(v.reloptions)
              WHERE option_name = 'security_invoker' AND option_value::boolean))
        ORDER BY 1
        """,
        {"names": [table.name for table in tables if table.ours]},
    )
    if plain := [name for name, materialised in views if not materialised]:
        yield warning(
            NAME,
            f"view {', '.join(plain)} acts with its owner's rights, so whoever reads it may call itself operator",
            "; ".join(f"ALTER VIEW {name} SET (security_invoker = true)" for name in plain),
        )
    if materialised := [name for name, kept in views if kept]:
        yield warning(
            NAME,
            f"materialised view {', '.join(materialised)} holds rows of ours, and can have no row-level security",
            "Make it a table with row-level security, or let nobody but operators read it.",
        )
