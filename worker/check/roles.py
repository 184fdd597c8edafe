"""Who the credentials are: what row-level security does not bind must not run jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection

from worker.check.findings import Finding, error, ok, warning
from worker.check.postgres import rows

NAME = "postgres.role"


@dataclass(frozen=True, slots=True)
class Role:
    """What Postgres says of the user of a connection; names are quoted as SQL needs them."""

    name: str
    superuser: bool
    bypassrls: bool
    #: Rights of these two are the user's own; None where the cluster has no such role.
    in_app_user: bool | None
    in_app_operator: bool | None
    #: Roles that row-level security does not bind, and that the user may become by ``SET ROLE``.
    may_become: tuple[str, ...]
    #: Whether the tables are the user's; None where there are none yet.
    owns_tables: bool | None
    may_create: bool


def read_role(connection: Connection) -> Role:
    """Return who the user of ``connection`` is."""
    # Attributes are not inherited, so a powerful role only counts where one can become it.
    ((number,),) = rows(connection, "SELECT current_setting('server_version_num')::int")
    may_set = "SET" if number >= 160_000 else "MEMBER"
    ((name, superuser, bypassrls, in_app_user, in_app_operator, may_become, owns_tables, may_create),) = rows(
        connection,
        f"""
        SELECT quote_ident(me.rolname), me.rolsuper, me.rolbypassrls,
            (SELECT pg_has_role(oid, 'USAGE') FROM pg_roles WHERE rolname = 'app_user'),
            (SELECT pg_has_role(oid, 'USAGE') FROM pg_roles WHERE rolname = 'app_operator'),
            ARRAY(SELECT quote_ident(rolname) FROM pg_roles WHERE (rolsuper OR rolbypassrls)
                AND rolname <> current_user AND pg_has_role(oid, '{may_set}') ORDER BY 1),
            (SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('worker_failed_jobs')),
            coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
        FROM pg_roles me WHERE rolname = current_user
        """,
    )
    return Role(name, superuser, bypassrls, in_app_user, in_app_operator, tuple(may_become), owns_tables, may_create)


def judge_role(role: Role, variables: list[str], *, other_operator: bool) -> Iterator[Finding]:
    """Judge a role for all that it is used for.

    Arguments:
      role: Who it is.
      variables: Those that name its URL.
      other_operator: Whether work across tenants has a credential of its own.
    """
    if "DATABASE_URL" in variables:
        yield from _judge_runtime(role)
        if not other_operator:
            yield from _judge_operator_fallback(role)
    elif "OPERATOR_DATABASE_URL" in variables:
        yield _judge_operator(role)
    if "MIGRATION_DATABASE_URL" in variables:
        yield _judge_migration(role)


def _judge_runtime(role: Role) -> Iterator[Finding]:
    who = f"DATABASE_URL: {role.name}"
    own = "CREATE ROLE worker_login LOGIN PASSWORD '...' IN ROLE app_user; and name that one in DATABASE_URL"
    if role.superuser:
        yield error(NAME, f"{who} is a superuser, and row-level security does not bind superusers", own)
        return
    if role.bypassrls:
        yield error(
            NAME, f"{who} has BYPASSRLS: jobs see the rows of every tenant", f"ALTER ROLE {role.name} NOBYPASSRLS"
        )
        return
    if role.in_app_operator:
        yield error(
            NAME,
            f"{who} has the rights of app_operator: jobs see the rows of every tenant",
            own if role.name == "app_operator" else f"REVOKE app_operator FROM {role.name}",
        )
        return
    if role.may_become:
        others = ", ".join(role.may_become)
        yield warning(
            NAME,
            f"{who} can SET ROLE {others}, which row-level security does not bind",
            f"REVOKE {others} FROM {role.name}",
        )
    if role.owns_tables:
        yield warning(
            NAME,
            f"{who} owns the tables (a single credential): isolation holds, because it is forced, but any SQL of its "
            "own may set app.execution_context = 'operator', and policies are slower",
            f"If the host lets you make roles: {own}.",
        )
    elif not role.may_become:
        yield ok(NAME, f"{who} is bound by row-level security{', in app_user' if role.in_app_user else ''}")


def _judge_operator_fallback(role: Role) -> Iterator[Finding]:
    if role.owns_tables is False and not (role.superuser or role.bypassrls or role.in_app_operator):
        yield warning(
            NAME,
            f"work across tenants has no credential of its own, and {role.name} sees no rows across tenants",
            "Set OPERATOR_DATABASE_URL for a role in app_operator.",
        )


def _judge_operator(role: Role) -> Finding:
    who = f"OPERATOR_DATABASE_URL: {role.name}"
    if role.superuser or role.bypassrls:
        power = "is a superuser" if role.superuser else "has BYPASSRLS"
        return warning(
            NAME,
            f"{who} {power}, more than work across tenants needs",
            "CREATE ROLE operator_login LOGIN PASSWORD '...' IN ROLE app_operator; and name that one",
        )
    if role.in_app_operator:
        return ok(NAME, f"{who} is in app_operator")
    if role.owns_tables:
        return ok(NAME, f"{who} owns the tables, and says that it is the operator")
    return error(
        NAME,
        f"{who} is not in app_operator and does not own the tables: it sees no tenant's rows",
        f"GRANT app_operator TO {role.name}" if role.in_app_operator is not None else "worker migrate",
    )


def _judge_migration(role: Role) -> Finding:
    who = f"MIGRATION_DATABASE_URL: {role.name}"
    if role.owns_tables is False:
        return error(NAME, f"{who} does not own the tables, so it cannot migrate them", "Name their owner there.")
    if role.owns_tables is None and not role.may_create:
        return error(
            NAME, f"{who} may not create tables", f"GRANT CREATE ON SCHEMA public TO {role.name}, or name the owner."
        )
    return ok(NAME, f"{who} {'owns the tables' if role.owns_tables else 'may create the tables'}")
