from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from db import session as sessions
from db.errors import ConfigurationError
from db.session import operator_transaction, transaction
from db.tenancy import tenant_context
from tests.servers import Database
from worker.tenants import TenantRow, add_tenant, list_tenants, tenant_named, tenant_names, tenants_like


def test_tenants_are_added_and_listed_by_name(database: Database) -> None:
    chosen = uuid4()
    with operator_transaction() as session:
        made = add_tenant(session, "Beta")
        assert add_tenant(session, "Alpha", chosen) == chosen
    with operator_transaction() as session:
        assert list_tenants(session) == [TenantRow(chosen, "Alpha"), TenantRow(made, "Beta")]
    with tenant_context(made), transaction() as session:
        assert list_tenants(session) == [TenantRow(made, "Beta")]


def test_an_id_that_exists_is_named(database: Database) -> None:
    with operator_transaction() as session:
        tenant = add_tenant(session, "Alpha")
        with pytest.raises(ValueError, match=rf"^tenant_id: tenant {tenant} exists already$"):
            add_tenant(session, "Again", tenant)
        assert list_tenants(session) == [TenantRow(tenant, "Alpha")]


def test_a_bad_name_is_refused(database: Database) -> None:
    names: list[Any] = ["", "  ", "x" * 201, "a\0b", "\ud800", None]
    with operator_transaction() as session:
        for name in names:
            with pytest.raises(ValueError, match=r"^name: "):
                add_tenant(session, name)


def test_the_applications_own_tenants_are_listed_by_id_and_not_added_to(empty_database: Database) -> None:
    tenant = UUID(int=7)
    with psycopg.connect(empty_database.owner_url) as owner:
        owner.execute("CREATE TABLE tenants (id uuid PRIMARY KEY)")
        owner.execute("INSERT INTO tenants VALUES (%s)", [tenant])
        owner.execute("GRANT ALL ON tenants TO app_operator")
    sessions.configure(empty_database.worker_url, operator_database_url=empty_database.operator_url)
    try:
        with operator_transaction() as session:
            assert list_tenants(session) == [TenantRow(tenant, None)]
            with pytest.raises(ConfigurationError, match="table tenants has no column name"):
                add_tenant(session, "Alpha")
        with psycopg.connect(empty_database.owner_url) as owner:
            owner.execute("TRUNCATE tenants")
            owner.execute("ALTER TABLE tenants ADD name varchar(100), ADD slug text NOT NULL")
        with operator_transaction() as session, pytest.raises(ConfigurationError, match="needs a value for slug"):
            add_tenant(session, "Alpha")
        with psycopg.connect(empty_database.owner_url) as owner:
            owner.execute("DROP TABLE tenants")
        with operator_transaction() as session, pytest.raises(ConfigurationError, match="there is no table tenants"):
            list_tenants(session)
    finally:
        sessions.dispose()


def test_whoever_is_bound_to_a_tenant_knows_no_other_by_name(database: Database) -> None:
    with operator_transaction() as session:
        mine, other = add_tenant(session, "acme"), add_tenant(session, "globex")
    # As the application's own table, which knows no row-level security.
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("ALTER TABLE tenants NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY")
    with tenant_context(mine), transaction() as session:
        assert tenant_names(session, [mine, other]) == {mine: "acme"}
        assert tenants_like(session, "") == {mine: "acme"}
        assert tenant_named(session, "acme") == mine
        with pytest.raises(ValueError, match="the name of one that is there, not 'globex'"):
            tenant_named(session, "globex")
    with operator_transaction() as session:
        assert tenant_named(session, "globex") == other
