"""Whether a credential may do in our tables what workers do there."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from worker.check.findings import Finding, error, ok
from worker.check.postgres import rows
from worker.check.tables import CANONICAL, read_tables

NAME = "postgres.rights"

#: What migrations grant to ``app_user``; a test compares both.
OF_APP_USER = {
    "worker_failed_jobs": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "worker_failed_job_deliveries": ("SELECT", "INSERT", "DELETE"),
    "worker_failed_job_originals": ("INSERT", "DELETE"),
    "worker_failed_job_details": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "worker_failed_job_groups": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "worker_failed_job_events": (
        "SELECT",
        "INSERT (failed_job_id, tenant_id, event, changed_by, reason, before, after, happened_at)",
    ),
    "worker_failed_job_retention": ("SELECT",),
    "worker_replays": ("SELECT", "INSERT", "UPDATE"),
    "worker_replay_items": ("SELECT", "UPDATE"),
    "worker_replay_edits": ("DELETE",),
    "worker_once": ("SELECT", "INSERT", "DELETE"),
    "tenants": ("SELECT",),
    "attribution_events": ("SELECT", "INSERT"),
    "attribution_recompute_jobs": ("SELECT", "INSERT", "UPDATE"),
    "attribution_allocations": ("SELECT", "INSERT", "DELETE"),
    "attribution_channel_days": ("SELECT", "INSERT", "DELETE"),
    "attribution_runs": ("SELECT",),
    "attribution_run_children": ("SELECT", "UPDATE"),
    "worker_llm_answers": ("SELECT", "INSERT", "UPDATE"),
    "worker_llm_budgets": ("SELECT",),
    "worker_llm_spending": ("SELECT", "INSERT", "UPDATE"),
    "worker_llm_reservations": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
OF_APP_OPERATOR = ("SELECT", "INSERT", "UPDATE", "DELETE")


def check_rights(connection: Connection, variable: str) -> Iterator[Finding]:
    """Check the rights of the user of ``connection``.

    Arguments:
      connection: To look with.
      variable: ``DATABASE_URL`` or ``OPERATOR_DATABASE_URL``.
    """
    role = "app_user" if variable == "DATABASE_URL" else "app_operator"
    tables = [table.name for table in read_tables(connection) if table.ours]
    if CANONICAL not in tables:
        yield from _check_hidden(connection, variable)
        return
    wanted = [
        (table, right)
        for table in tables
        for right in (OF_APP_USER.get(table, ()) if role == "app_user" else OF_APP_OPERATOR)
    ]
    missing = rows(
        connection,
        """
        SELECT name, right_, quote_ident(current_user),
            EXISTS (SELECT FROM pg_roles WHERE rolname = :role AND pg_has_role(oid, 'USAGE'))
        FROM unnest(CAST(:names AS text[]), CAST(:rights AS text[])) AS wanted (name, right_)
        WHERE NOT CASE
            WHEN right_ LIKE '% (%' THEN (
                SELECT bool_and(has_column_privilege(to_regclass(name), one, split_part(right_, ' ', 1)))
                FROM unnest(string_to_array(rtrim(split_part(right_, '(', 2), ')'), ', ')) one
            )
            ELSE has_table_privilege(to_regclass(name), right_)
        END
        """,
        {"role": role, "names": [name for name, _ in wanted], "rights": [right for _, right in wanted]},
    )
    if not missing:
        yield ok(NAME, f"{variable}: all that is needed on {len(tables)} tables")
        return
    lacks: dict[str, list[str]] = {}
    for name, right, _, _ in missing:
        lacks.setdefault(name, []).append(right)
    _, _, user, is_member = missing[0]
    said = {name: ", ".join(rights) for name, rights in lacks.items()}
    yield error(
        NAME,
        f"{variable}: {user} lacks " + "; ".join(f"{rights} on {name}" for name, rights in said.items()),
        "; ".join(f"GRANT {rights} ON {name} TO {role if is_member else user}" for name, rights in said.items()),
    )


def _check_hidden(connection: Connection, variable: str) -> Iterator[Finding]:
    """Tell a database that was not migrated, which is said elsewhere, from a schema that the user does not see."""
    for schema, user in rows(
        connection,
        "SELECT quote_ident(nspname), quote_ident(current_user) FROM pg_class c JOIN pg_namespace n"
        " ON n.oid = relnamespace WHERE relname = :name AND relkind IN ('r', 'p')",
        {"name": CANONICAL},
    ):
        yield error(
            NAME,
            f"{variable}: {user} does not see {CANONICAL}, which is in schema {schema}",
            f"GRANT USAGE ON SCHEMA {schema} TO {user}; ALTER ROLE {user} SET search_path = {schema}",
        )
