"""Whatever a database holds when migrations come, it ends in one schema with every row."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import quote
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.util import CommandError
from psycopg import sql
from sqlalchemy import create_engine

import db
from db import session
from db.errors import ConfigurationError
from db.models import TEXT_INDEX, Base
from db.session import normalise_url
from db.tenancy import tenant_context
from tests.servers import Cluster, Database, temporary_folder
from worker import migrate
from worker.embedded import EmbeddedPostgres

ONE, OTHER = UUID(int=1), UUID(int=2)
REPOSITORY = Path(__file__).parents[2]

#: In the order in which rows can go in.
TABLES = (
    "worker_failed_jobs",
    "worker_failed_job_deliveries",
    "worker_failed_job_originals",
    "worker_failed_job_details",
    "worker_failed_job_groups",
    "worker_failed_job_events",
    "worker_failed_job_retention",
    "worker_replays",
    "worker_replay_items",
    "worker_replay_edits",
    "worker_once",
    "worker_outbox",
    "tenants",
    "attribution_events",
    "attribution_recompute_jobs",
    "attribution_allocations",
    "attribution_channel_days",
    "attribution_runs",
    "attribution_run_children",
    "worker_llm_answers",
    "worker_llm_budgets",
    "worker_llm_spending",
    "worker_llm_reservations",
)

# --- What others left behind --------------------------------------------------------------------------

FIRST_CELERY_FORM: LiteralString = """
CREATE TABLE celery_task_failures (
    id uuid NOT NULL,
    task_id varchar(155) NOT NULL,
    task_name varchar(255) NOT NULL,
    queue varchar(100),
    worker varchar(255),
    task_args jsonb,
    task_kwargs jsonb,
    tenant_id uuid,
    error_type varchar(100) NOT NULL,
    exception_class varchar(255) NOT NULL,
    error_message text NOT NULL,
    traceback text,
    retry_count integer DEFAULT 0 NOT NULL,
    last_retry_at timestamptz,
    status varchar(50) DEFAULT '''pending''' NOT NULL,
    remediation_notes text,
    resolved_at timestamptz,
    correlation_id uuid,
    failed_at timestamptz DEFAULT CURRENT_TIMESTAMP NOT NULL,
    CONSTRAINT celery_task_failures_pkey PRIMARY KEY (id),
    CONSTRAINT ck_celery_task_failures_status_valid
        CHECK (status IN ('pending', 'in_progress', 'resolved', 'abandoned')),
    CONSTRAINT ck_celery_task_failures_retry_count_positive CHECK (retry_count >= 0)
);
CREATE INDEX ix_public_celery_task_failures_task_id ON celery_task_failures (task_id);
CREATE INDEX ix_public_celery_task_failures_task_name ON celery_task_failures (task_name);
CREATE INDEX ix_public_celery_task_failures_tenant_id ON celery_task_failures (tenant_id);
CREATE INDEX idx_celery_task_failures_status ON celery_task_failures (status, failed_at);
CREATE INDEX idx_celery_task_failures_task_name ON celery_task_failures (task_name);
COMMENT ON TABLE celery_task_failures IS 'Dead letters of Celery';
COMMENT ON COLUMN celery_task_failures.task_id IS 'Celery task id';
COMMENT ON COLUMN celery_task_failures.status IS 'How far remediation is';
ALTER TABLE celery_task_failures ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant_isolation_policy ON celery_task_failures FOR ALL TO app_user
    USING (tenant_id IS NULL OR tenant_id::text = current_setting('app.current_tenant_id', true));
GRANT SELECT, INSERT, UPDATE, DELETE ON celery_task_failures TO app_user;
"""

LATER_CELERY_FORM: LiteralString = (
    FIRST_CELERY_FORM
    + """
ALTER TABLE celery_task_failures RENAME TO worker_failed_jobs;
ALTER INDEX idx_celery_task_failures_status RENAME TO idx_worker_failed_jobs_status;
ALTER INDEX idx_celery_task_failures_task_name RENAME TO idx_worker_failed_jobs_task_name;
ALTER TABLE worker_failed_jobs
    RENAME CONSTRAINT ck_celery_task_failures_status_valid TO ck_worker_failed_jobs_status_valid;
ALTER TABLE worker_failed_jobs RENAME CONSTRAINT
    ck_celery_task_failures_retry_count_positive TO ck_worker_failed_jobs_retry_count_positive;
"""
)


def build_first_celery_form(database: Database) -> str:
    run(database.owner_url, FIRST_CELERY_FORM)
    return "celery_task_failures"


def build_later_celery_form(database: Database) -> str:
    run(database.owner_url, LATER_CELERY_FORM)
    return "worker_failed_jobs"


def build_our_form(database: Database) -> str:
    """Our own tables, but nothing that says so."""
    migrate.upgrade(database.owner_url)
    run(database.owner_url, "DROP TABLE dramaturg_version")
    return "worker_failed_jobs"


def build_downgraded_form(database: Database) -> str:
    """What our own downgrade leaves of a table that holds rows, which it then does not."""
    migrate.upgrade(database.owner_url)
    fill(database, "worker_failed_jobs")
    migrate.downgrade(database.owner_url)
    run(database.admin_url, "TRUNCATE worker_failed_jobs")
    return "worker_failed_jobs"


FORMS = [build_first_celery_form, build_later_celery_form, build_our_form, build_downgraded_form]


# --- Looking ------------------------------------------------------------------------------------------


def run(url: str, statements: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements)


def rows(url: str, query: LiteralString, *values: Any) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query, values).fetchall()


def tables(database: Database) -> set[str]:
    found = rows(database.admin_url, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    return {name for (name,) in found}


#: Everything the catalogs say of a table, without what only tells when it was built.
CATALOG: dict[str, LiteralString] = {
    "columns": """
        SELECT row_number() OVER (ORDER BY attnum), attname, format_type(atttypid, atttypmod), attnotnull,
               attidentity, attgenerated, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
    """,
    "constraints": """
        SELECT conname, contype, convalidated, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conrelid = %s::regclass
    """,
    "indexes": """
        SELECT pg_get_indexdef(indexrelid), indisvalid FROM pg_index WHERE indrelid = %s::regclass
    """,
    "policies": """
        SELECT policyname, permissive, roles, cmd, qual, with_check FROM pg_policies
        WHERE schemaname = 'public' AND tablename = %s
    """,
    "security": "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass",
    "grants": """
        SELECT grantee::regrole::text, privilege_type, is_grantable, grantor::regrole::text
        FROM pg_class, aclexplode(relacl) WHERE oid = %s::regclass
    """,
    "column grants": """
        SELECT attname, attacl::text FROM pg_attribute WHERE attrelid = %s::regclass AND attacl IS NOT NULL
    """,
    "comments": """
        SELECT objsubid, description FROM pg_description
        WHERE classoid = 'pg_class'::regclass AND objoid = %s::regclass
    """,
    "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = %s::regclass",
}


def catalog(database: Database, table: str, *without: str) -> dict[str, list[str]]:
    """Everything that Postgres knows of ``table``, comparable with another database's."""
    with psycopg.connect(database.admin_url) as connection:
        return {
            what: sorted(str(row) for row in connection.execute(query, [table]))
            for what, query in CATALOG.items()
            if what not in without
        }


def contents(database: Database, table: str) -> list[str]:
    """Every row, written out by Postgres, without row-level security."""
    with psycopg.connect(database.admin_url) as connection:
        connection.execute("SET timezone = 'UTC'")
        query = sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier(table))
        return [line for (line,) in connection.execute(query)]


def fill(database: Database, table: str) -> list[str]:
    """Put failed jobs of two tenants, and of none, into ``table``."""
    with psycopg.connect(database.admin_url) as connection:
        insert = sql.SQL(
            "INSERT INTO {} VALUES (gen_random_uuid(), %s, 'worker.llm.ask', NULL, 'host:1', %s, %s, %s,"
            " 'application_error', 'app.Broken', %s, %s, 3, '2024-02-29 23:59:59.999999+02', %s, NULL, NULL,"
            " gen_random_uuid(), '1999-12-31 23:59:59+00')"
        ).format(sql.Identifier(table))
        for status in ("pending", "in_progress", "resolved", "abandoned"):
            for tenant in (ONE, OTHER, None):
                connection.execute(
                    insert, ["t" * 155, '[1, "ü", null]', '{"a": {"b": 1.50}}', tenant, "ä\n'\"\\", "", status]
                )
    return contents(database, table)


def fill_companions(database: Database) -> dict[str, list[str]]:
    """Put rows into every other table of ours: of one tenant, of those that have failed jobs where that may be."""
    run(
        database.admin_url,
        """
        INSERT INTO worker_failed_job_deliveries (delivery_id, failed_job_id, tenant_id)
            SELECT id::text, id, tenant_id FROM worker_failed_jobs;
        INSERT INTO worker_failed_job_originals (failed_job_id, tenant_id, original)
            SELECT id, tenant_id, '\\x00ff' FROM worker_failed_jobs;
        INSERT INTO worker_failed_job_retention (tenant_id, subject, keep_days, changed_by)
            SELECT DISTINCT tenant_id, 'resolved', 5, 'o' FROM worker_failed_jobs;
        INSERT INTO worker_replays (id, tenant_id, filter, settings, created_by)
            SELECT coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'), tenant_id, '{}', '{}', 'o'
            FROM (SELECT DISTINCT tenant_id FROM worker_failed_jobs) tenants;
        INSERT INTO worker_replay_items (replay_id, failed_job_id, tenant_id)
            SELECT coalesce(tenant_id, '00000000-0000-0000-0000-000000000000'), id, tenant_id FROM worker_failed_jobs;
        INSERT INTO worker_replay_edits (failed_job_id, tenant_id, edit)
            SELECT id, tenant_id, '{}' FROM worker_failed_jobs;
        INSERT INTO worker_outbox (tenant_id, queue, redis_id, message_id, actor, message)
            SELECT tenant_id, 'q', id, task_id, task_name, 'm' FROM worker_failed_jobs;
        INSERT INTO worker_once (tenant_id, key, message_id)
            SELECT DISTINCT tenant_id, 'message:m', 'm' FROM worker_failed_jobs;
        INSERT INTO tenants (id, name) VALUES ('00000000-0000-0000-0000-000000000001', 'One');
        INSERT INTO attribution_events SELECT id, 'e', 'touch', 'v', 'mail', NULL, now() FROM tenants;
        INSERT INTO attribution_recompute_jobs (tenant_id, window_start, window_end, model, model_version)
            SELECT id, now(), now() + '1 day', 'linear', '1.0.0' FROM tenants;
        INSERT INTO attribution_allocations
            SELECT tenant_id, id, 'c', 0, NULL, 'direct', 5 FROM attribution_recompute_jobs;
        INSERT INTO attribution_channel_days
            SELECT tenant_id, date '2025-01-01', 'linear', '1.0.0', 'direct', 5, id FROM attribution_recompute_jobs;
        INSERT INTO attribution_runs (id, tenant_id, day, correlation_id)
            SELECT id, id, date '2025-01-01', id FROM tenants
            UNION ALL SELECT gen_random_uuid(), NULL, date '2025-01-01', gen_random_uuid();
        INSERT INTO attribution_run_children (id, run_id, tenant_id, model)
            SELECT gen_random_uuid(), id, id, 'linear' FROM tenants;
        INSERT INTO worker_llm_answers (tenant_id, window_start, window_end, model, model_version, fingerprint,
                language_model, answer, input_tokens, output_tokens, cost_microcents, call_id)
            SELECT tenant_id, window_start, window_end, model, model_version, 'f', 'm', 'a', 1, 2, 3, id
            FROM attribution_recompute_jobs;
        INSERT INTO worker_llm_budgets (tenant_id, monthly_cents, changed_by) SELECT id, 5, 'o' FROM tenants;
        INSERT INTO worker_llm_spending (tenant_id, month) SELECT id, '2025-01-01' FROM tenants;
        INSERT INTO worker_llm_reservations SELECT id, id, '2025-01-01', 5, now() FROM tenants;
        """,
    )
    return {table: contents(database, table) for table in TABLES}


@pytest.fixture(scope="module")
def reused_database(cluster: Cluster) -> Iterator[Database]:
    with cluster.database() as database:
        yield database


@pytest.fixture
def empty_database(reused_database: Database) -> Iterator[Database]:
    """A database with nothing in it; emptying one takes a tenth of the time of making one."""
    yield reused_database
    run(
        reused_database.admin_url,
        """
        SET lock_timeout = '10s';
        DROP SCHEMA public CASCADE;
        CREATE SCHEMA public AUTHORIZATION pg_database_owner;
        GRANT USAGE ON SCHEMA public TO PUBLIC;
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$;
        """,
    )


@pytest.fixture(scope="module")
def head(cluster: Cluster) -> Iterator[Database]:
    """What an empty database becomes."""
    with cluster.database() as database:
        migrate.upgrade(database.owner_url)
        yield database


# --- One schema ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", FORMS)
def test_every_form_becomes_one_schema_and_keeps_its_rows(
    build: Callable[[Database], str], empty_database: Database, head: Database
) -> None:
    table = build(empty_database)
    before = fill(empty_database, table)

    migrate.upgrade(empty_database.owner_url)

    assert contents(empty_database, "worker_failed_jobs") == before
    assert len(before) == 12
    for each in TABLES:
        assert catalog(empty_database, each) == catalog(head, each)
    assert tables(empty_database) == tables(head)


def test_the_catalog_of_the_canonical_table(head: Database) -> None:
    found = catalog(head, "worker_failed_jobs")
    assert len(found["columns"]) == 19
    assert (
        "(15, 'status', 'character varying(50)', True, '', '', \"'pending'::character varying\")" in (found["columns"])
    )
    assert found["security"] == ["(True, True)"]
    assert found["comments"] == []
    assert not [line for what in found.values() for line in what if "celery" in line]


@pytest.mark.parametrize("build", [build_first_celery_form, build_later_celery_form, build_our_form])
def test_a_status_with_quotes_becomes_pending(build: Callable[[Database], str], empty_database: Database) -> None:
    """In our own form the rows are hidden from the owner, whom row-level security is forced upon."""
    table = build(empty_database)
    with psycopg.connect(empty_database.admin_url) as connection:
        for prefix in ("celery_task_failures", "worker_failed_jobs"):
            connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(
                    sql.Identifier(table), sql.Identifier(f"ck_{prefix}_status_valid")
                )
            )
    fill(empty_database, table)
    with psycopg.connect(empty_database.admin_url) as connection:
        connection.execute(
            sql.SQL("UPDATE {} SET status = '''pending''' WHERE status = 'pending'").format(sql.Identifier(table))
        )

    migrate.upgrade(empty_database.owner_url)

    query: LiteralString = "SELECT status, count(*) FROM worker_failed_jobs GROUP BY 1 ORDER BY 1"
    assert rows(empty_database.admin_url, query) == [
        ("abandoned", 3),
        ("in_progress", 3),
        ("pending", 3),
        ("resolved", 3),
    ]


def test_other_types_and_nulls_are_altered_to_ours(
    empty_database: Database, head: Database, caplog: pytest.LogCaptureFixture
) -> None:
    table = build_later_celery_form(empty_database)
    before = fill(empty_database, table)
    run(
        empty_database.owner_url,
        """
        DROP POLICY tenant_isolation_policy ON worker_failed_jobs;
        ALTER TABLE worker_failed_jobs
            ALTER COLUMN task_args TYPE json,
            ALTER COLUMN tenant_id TYPE text,
            ALTER COLUMN task_id TYPE varchar(500),
            ALTER COLUMN failed_at TYPE timestamp USING failed_at AT TIME ZONE 'UTC',
            ALTER COLUMN failed_at SET DEFAULT now(),
            ALTER COLUMN retry_count TYPE bigint,
            ALTER COLUMN retry_count DROP NOT NULL,
            ALTER COLUMN queue SET DEFAULT 'celery',
            ALTER COLUMN worker SET NOT NULL,
            ALTER COLUMN id SET DEFAULT gen_random_uuid();
        """,
    )
    # The zone of whoever migrates must not shift a timestamp that has none.
    run(
        empty_database.admin_url,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET timezone = ''Asia/Tokyo''', current_database()); END $$",
    )

    migrate.upgrade(empty_database.owner_url)

    assert contents(empty_database, table) == before
    assert catalog(empty_database, table) == catalog(head, table)
    assert "columns unknown" not in caplog.text


def test_a_missing_value_becomes_the_default(empty_database: Database) -> None:
    table = build_later_celery_form(empty_database)
    run(empty_database.owner_url, "ALTER TABLE worker_failed_jobs ALTER COLUMN retry_count DROP NOT NULL")
    fill(empty_database, table)
    run(empty_database.admin_url, "UPDATE worker_failed_jobs SET retry_count = NULL")

    migrate.upgrade(empty_database.owner_url)

    assert rows(empty_database.admin_url, "SELECT DISTINCT retry_count FROM worker_failed_jobs") == [(0,)]


def test_a_value_that_is_too_long_is_an_error_and_not_cut_off(empty_database: Database) -> None:
    table = build_later_celery_form(empty_database)
    run(empty_database.owner_url, "ALTER TABLE worker_failed_jobs ALTER COLUMN task_id TYPE text")
    fill(empty_database, table)
    run(empty_database.admin_url, "UPDATE worker_failed_jobs SET task_id = repeat('t', 156)")
    before = contents(empty_database, table), catalog(empty_database, table)

    with pytest.raises(Exception, match=r"value too long for type character varying\(155\)"):
        migrate.upgrade(empty_database.owner_url)

    assert (contents(empty_database, table), catalog(empty_database, table)) == before


def test_a_column_of_somebody_else_is_left_and_named(
    empty_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    table = build_later_celery_form(empty_database)
    run(empty_database.owner_url, "ALTER TABLE worker_failed_jobs ADD COLUMN ticket text DEFAULT 'none'")
    before = fill(empty_database, table)

    migrate.upgrade(empty_database.owner_url)

    assert contents(empty_database, table) == before
    assert "columns unknown here, which are left as they are: ticket" in caplog.text


def test_rules_that_a_downgrade_removes_are_told(empty_database: Database, caplog: pytest.LogCaptureFixture) -> None:
    migrate.upgrade(empty_database.owner_url)
    run(
        empty_database.admin_url,
        f"""
        INSERT INTO worker_failed_job_retention (tenant_id, subject, keep_days, changed_by)
        VALUES (NULL, 'answers', 30, 'ann'), ('{ONE}', 'answers', NULL, 'ann'), ('{ONE}', 'events', 5, 'ann')
        """,
    )

    migrate.downgrade(empty_database.owner_url)

    assert "answers of a language model are kept 30 days for all is removed" in caplog.text
    assert f"answers of a language model are kept for ever for tenant {ONE} is removed" in caplog.text
    assert caplog.text.count("is removed") == 2


def test_an_index_on_other_columns_under_our_name_is_replaced(empty_database: Database, head: Database) -> None:
    build_later_celery_form(empty_database)
    run(
        empty_database.owner_url,
        "DROP INDEX idx_worker_failed_jobs_status;"
        "CREATE INDEX idx_worker_failed_jobs_status ON worker_failed_jobs (status)",
    )
    migrate.upgrade(empty_database.owner_url)
    assert catalog(empty_database, "worker_failed_jobs") == catalog(head, "worker_failed_jobs")


def test_both_tables_are_an_error_that_names_them(empty_database: Database) -> None:
    build_first_celery_form(empty_database)
    run(empty_database.owner_url, "CREATE TABLE worker_failed_jobs (id uuid PRIMARY KEY)")
    before = tables(empty_database)

    with pytest.raises(ConfigurationError, match="both celery_task_failures and worker_failed_jobs"):
        migrate.upgrade(empty_database.owner_url)

    assert tables(empty_database) == before


def test_a_view_under_the_old_name_is_no_second_table(empty_database: Database, head: Database) -> None:
    table = build_later_celery_form(empty_database)
    run(empty_database.owner_url, "CREATE VIEW celery_task_failures AS SELECT * FROM worker_failed_jobs")
    migrate.upgrade(empty_database.owner_url)
    assert catalog(empty_database, table) == catalog(head, table)


# --- Models -------------------------------------------------------------------------------------------


def test_models_equal_migrations_for_alembic(head: Database) -> None:
    engine = create_engine(normalise_url(head.owner_url))
    options = {
        "version_table": "dramaturg_version",
        "compare_server_default": True,
        "include_name": lambda name, kind, parents: name != TEXT_INDEX,
    }
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
    engine.dispose()


def test_models_equal_migrations_for_postgres(empty_database: Database, head: Database) -> None:
    """Alembic compares neither checks nor names of keys, so build both and let Postgres tell."""
    engine = create_engine(normalise_url(empty_database.owner_url))
    Base.metadata.create_all(engine)
    engine.dispose()
    assert {table.name for table in Base.metadata.tables.values()} == set(TABLES)
    for table in TABLES:
        # Who may see what stands in the migration alone, as triggers do.
        alone = ("policies", "security", "grants", "column grants", "triggers")
        built, migrated = catalog(empty_database, table, *alone), catalog(head, table, *alone)
        # It needs an extension.
        migrated["indexes"] = [line for line in migrated["indexes"] if TEXT_INDEX not in line]
        assert built == migrated


# --- Access -------------------------------------------------------------------------------------------


def test_who_may_do_what(head: Database) -> None:
    query: LiteralString = """
        SELECT c.relname, string_agg(privilege_type, ' ' ORDER BY privilege_type)
        FROM pg_class c, aclexplode(c.relacl)
        WHERE c.relnamespace = 'public'::regnamespace AND grantee = %s::regrole GROUP BY 1
    """
    everything = "DELETE INSERT SELECT UPDATE"
    assert dict(rows(head.admin_url, query, "app_operator")) == {
        **dict.fromkeys(TABLES, everything),
        # For backups: pg_dump takes all tables or none.
        "dramaturg_version": "SELECT",
        "worker_failed_job_events_id_seq": "SELECT",
        "worker_outbox_id_seq": "SELECT",
    }
    assert dict(rows(head.admin_url, query, "app_user")) == {
        "worker_failed_jobs": everything,
        "worker_failed_job_deliveries": "DELETE INSERT SELECT",
        # Not redacted, so not for tenants to read.
        "worker_failed_job_originals": "DELETE INSERT",
        "worker_failed_job_details": everything,
        "worker_failed_job_groups": everything,
        # Nobody who is bound to a tenant rewrites history.
        "worker_failed_job_events": "SELECT",
        "worker_failed_job_retention": "SELECT",
        "worker_replays": "INSERT SELECT UPDATE",
        # Made by operators' processes, ended by workers.
        "worker_replay_items": "SELECT UPDATE",
        # Not redacted, either.
        "worker_replay_edits": "DELETE",
        "worker_once": "DELETE INSERT SELECT",
        "worker_outbox": "DELETE INSERT SELECT",
        "tenants": "SELECT",
        "attribution_events": "INSERT SELECT",
        "attribution_allocations": "DELETE INSERT SELECT",
        "attribution_recompute_jobs": "INSERT SELECT UPDATE",
        "attribution_channel_days": "DELETE INSERT SELECT",
        # Made by operators' work; each tenant's says how its part ended.
        "attribution_runs": "SELECT",
        "attribution_run_children": "SELECT UPDATE",
        "worker_llm_answers": "INSERT SELECT UPDATE",
        # For operators to set.
        "worker_llm_budgets": "SELECT",
        "worker_llm_spending": "INSERT SELECT UPDATE",
        "worker_llm_reservations": everything,
    }
    by_column: LiteralString = """
        SELECT attrelid::regclass || '.' || attname, string_agg(privilege_type, ' ' ORDER BY privilege_type)
        FROM pg_attribute, aclexplode(attacl) WHERE grantee = 'app_user'::regrole GROUP BY 1
    """
    assert dict(rows(head.admin_url, by_column)) == {
        # Not its number, nor whom Postgres knew it as.
        **{
            f"worker_failed_job_events.{column}": "INSERT"
            for column in (
                "failed_job_id",
                "tenant_id",
                "event",
                "changed_by",
                "reason",
                "before",
                "after",
                "happened_at",
            )
        },
        # Which there are, so that they can be removed, but not what they are.
        "worker_failed_job_originals.failed_job_id": "SELECT",
        "worker_failed_job_originals.tenant_id": "SELECT",
        "worker_replay_edits.failed_job_id": "SELECT",
        "worker_replay_edits.tenant_id": "SELECT",
    }


def visible(url: str, table: str, *settings: tuple[str, str]) -> set[UUID | None]:
    """Whose rows of ``table`` the user of ``url`` sees under ``settings``."""
    column = sql.Identifier("id" if table == "tenants" else "tenant_id")
    with psycopg.connect(url) as connection:
        for name, value in settings:
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
        found = connection.execute(sql.SQL("SELECT {} FROM {}").format(column, sql.Identifier(table)))
        return {tenant for (tenant,) in found}


@pytest.fixture
def two_tenants(empty_database: Database) -> Database:
    """A migrated database with rows of two tenants in every table, and of none where that may be."""
    migrate.upgrade(empty_database.owner_url)
    fill(empty_database, "worker_failed_jobs")
    fill_companions(empty_database)
    run(
        empty_database.admin_url,
        """
        INSERT INTO tenants (id, name) VALUES ('00000000-0000-0000-0000-000000000002', 'Other');
        INSERT INTO attribution_events
            SELECT '00000000-0000-0000-0000-000000000002', 'f', 'touch', 'v', 'mail', NULL, now();
        INSERT INTO attribution_recompute_jobs (tenant_id, window_start, window_end, model, model_version)
            SELECT '00000000-0000-0000-0000-000000000002', now(), now() + '1 day', 'linear', '1.0.0';
        INSERT INTO attribution_allocations
            SELECT '00000000-0000-0000-0000-000000000002', gen_random_uuid(), 'c', 0, NULL, 'direct', 5;
        INSERT INTO attribution_channel_days
            SELECT '00000000-0000-0000-0000-000000000002', '2025-01-01', 'linear', '1.0.0', 'direct', 5,
                gen_random_uuid();
        INSERT INTO attribution_runs (id, tenant_id, day, correlation_id)
            SELECT id, id, date '2025-01-01', id FROM tenants WHERE id = '00000000-0000-0000-0000-000000000002';
        INSERT INTO attribution_run_children (id, run_id, tenant_id, model)
            SELECT gen_random_uuid(), id, id, 'linear' FROM tenants
            WHERE id = '00000000-0000-0000-0000-000000000002';
        INSERT INTO worker_llm_answers (tenant_id, window_start, window_end, model, model_version, fingerprint,
                language_model, answer, input_tokens, output_tokens, cost_microcents, call_id)
            SELECT tenant_id, window_start, window_end, model, model_version, 'f', 'm', 'a', 1, 2, 3, id
            FROM attribution_recompute_jobs WHERE tenant_id = '00000000-0000-0000-0000-000000000002';
        INSERT INTO worker_llm_budgets (tenant_id, monthly_cents, changed_by)
            SELECT '00000000-0000-0000-0000-000000000002', 5, 'o';
        INSERT INTO worker_llm_spending (tenant_id, month)
            SELECT '00000000-0000-0000-0000-000000000002', '2025-01-01';
        INSERT INTO worker_llm_reservations
            SELECT '00000000-0000-0000-0000-000000000002', gen_random_uuid(), '2025-01-01', 5, now();
        """,
    )
    return empty_database


def test_a_tenant_sees_its_own_rows_and_an_operator_all(two_tenants: Database) -> None:
    of_one = ("app.current_tenant_id", str(ONE))
    for table in TABLES:
        always_of_one = table != "attribution_runs" and (
            not table.startswith("worker_") or table.startswith("worker_llm_")
        )
        of_no_tenant: set[UUID | None] = set() if always_of_one else {None}
        # A replay or a run of no tenant is an operator's.
        of_nobody = set() if table in {"worker_replays", "attribution_runs"} else of_no_tenant
        # What holds for all, a tenant may know.
        of_one_or_all = {ONE} | (of_nobody if table == "worker_failed_job_retention" else set())
        for url in (two_tenants.worker_url, two_tenants.owner_url):
            assert visible(url, table, of_one) == of_one_or_all
            assert visible(url, table) == visible(url, table, ("app.current_tenant_id", "")) == of_nobody
        as_operator = ("app.execution_context", "operator")
        # Anyone may say so; only the owner is believed.
        assert visible(two_tenants.worker_url, table, of_one, as_operator) == of_one_or_all
        everybody = {ONE, OTHER} | of_no_tenant
        assert visible(two_tenants.operator_url, table) == everybody
        assert visible(two_tenants.owner_url, table, as_operator) == everybody


def test_an_original_is_not_for_tenants_to_read(two_tenants: Database) -> None:
    queries: tuple[LiteralString, ...] = (
        "SELECT original FROM worker_failed_job_originals",
        "SELECT edit FROM worker_replay_edits",
    )
    for query in queries:
        with (
            psycopg.connect(two_tenants.worker_url) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied"),
        ):
            connection.execute(query)


def test_a_tenant_cannot_write_for_another(two_tenants: Database) -> None:
    with psycopg.connect(two_tenants.worker_url) as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, false)", [str(ONE)])
        changed = connection.execute("UPDATE worker_failed_jobs SET worker = 'x' WHERE tenant_id = %s", [OTHER])
        assert changed.rowcount == 0
        connection.commit()
        for tenant in (OTHER, None):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                connection.execute("UPDATE worker_failed_jobs SET tenant_id = %s", [tenant])
            connection.rollback()
        connection.execute("SELECT set_config('app.current_tenant_id', 'no uuid', false)")
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            connection.execute("SELECT FROM worker_failed_jobs")


# --- Down and up again --------------------------------------------------------------------------------


def test_downgrade_of_a_table_with_rows_leaves_the_later_celery_form(
    cluster: Cluster, empty_database: Database, head: Database
) -> None:
    migrate.upgrade(empty_database.owner_url)
    fill(empty_database, "worker_failed_jobs")
    before = fill_companions(empty_database)

    migrate.downgrade(empty_database.owner_url)

    with cluster.database() as celery:
        build_later_celery_form(celery)
        # What the comments said is not known here.
        assert catalog(empty_database, "worker_failed_jobs", "comments") == catalog(
            celery, "worker_failed_jobs", "comments"
        )
    assert {table: contents(empty_database, table) for table in TABLES} == before
    assert "dramaturg_version" not in tables(empty_database)

    migrate.upgrade(empty_database.owner_url)

    assert {table: contents(empty_database, table) for table in TABLES} == before
    for table in TABLES:
        assert catalog(empty_database, table) == catalog(head, table)


def test_downgrade_keeps_each_table_that_holds_a_row(empty_database: Database, head: Database) -> None:
    """Of a tenant, so that the owner, for whom row-level security is forced, does not see it either."""
    migrate.upgrade(empty_database.owner_url)
    run(empty_database.admin_url, "INSERT INTO tenants (id, name) VALUES (gen_random_uuid(), 'One')")
    before = contents(empty_database, "tenants")

    migrate.downgrade(empty_database.owner_url)

    assert tables(empty_database) == {"tenants", "tenants_pkey"}
    assert catalog(empty_database, "tenants") == catalog(head, "tenants")

    migrate.upgrade(empty_database.owner_url)

    assert contents(empty_database, "tenants") == before
    assert tables(empty_database) == tables(head)


def test_what_happened_once_is_known_after_down_and_up(empty_database: Database) -> None:
    migrate.upgrade(empty_database.owner_url)
    run(empty_database.admin_url, "INSERT INTO worker_once (tenant_id, key) VALUES (NULL, 'key:k')")
    before = contents(empty_database, "worker_once")

    migrate.downgrade(empty_database.owner_url)

    assert tables(empty_database) == {"worker_once", "worker_once_pkey", "uq_worker_once_key"}

    migrate.upgrade(empty_database.owner_url)

    assert contents(empty_database, "worker_once") == before
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(empty_database.admin_url, "INSERT INTO worker_once (tenant_id, key) VALUES (NULL, 'key:k')")


def test_downgrade_keeps_an_empty_table_that_others_refer_to(empty_database: Database) -> None:
    migrate.upgrade(empty_database.owner_url)
    run(empty_database.owner_url, "CREATE TABLE theirs (tenant uuid REFERENCES tenants)")
    migrate.downgrade(empty_database.owner_url)
    assert tables(empty_database) == {"tenants", "tenants_pkey", "theirs"}


def test_downgrade_of_empty_tables_leaves_nothing_but_the_roles(empty_database: Database) -> None:
    roles: LiteralString = "SELECT rolname, rolcanlogin FROM pg_roles ORDER BY 1"
    migrate.upgrade(empty_database.owner_url)
    before = rows(empty_database.admin_url, roles)

    migrate.downgrade(empty_database.owner_url)

    assert tables(empty_database) == set()
    assert rows(empty_database.admin_url, roles) == before
    assert {"app_user", "app_operator"} <= {name for name, _ in before}


# --- Tables of somebody else --------------------------------------------------------------------------


def test_foreign_tenants_are_used_as_they_are(empty_database: Database) -> None:
    run(
        empty_database.owner_url,
        "CREATE TABLE tenants (slug text PRIMARY KEY, id uuid UNIQUE NOT NULL);"
        f"INSERT INTO tenants VALUES ('one', '{ONE}')",
    )
    before = catalog(empty_database, "tenants"), contents(empty_database, "tenants")

    migrate.upgrade(empty_database.owner_url)

    assert (catalog(empty_database, "tenants"), contents(empty_database, "tenants")) == before
    with psycopg.connect(empty_database.owner_url) as connection:
        connection.execute("SELECT set_config('app.current_tenant_id', %s, true)", [str(OTHER)])
        insert = "INSERT INTO attribution_events VALUES (%s, 'e', 'touch', 'v', 'mail', NULL, now())"
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            connection.execute(insert, [OTHER])

    migrate.downgrade(empty_database.owner_url)

    assert (catalog(empty_database, "tenants"), contents(empty_database, "tenants")) == before


def test_foreign_tenants_stay_even_when_they_are_empty(empty_database: Database) -> None:
    run(empty_database.owner_url, "CREATE TABLE tenants (id uuid PRIMARY KEY)")
    migrate.upgrade(empty_database.owner_url)
    migrate.downgrade(empty_database.owner_url)
    assert tables(empty_database) == {"tenants", "tenants_pkey"}


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ("CREATE TABLE tenants (id bigint PRIMARY KEY)", "table tenants .* column id is of type bigint"),
        ("CREATE TABLE tenants (uuid uuid PRIMARY KEY)", "table tenants .* no column id"),
        ("CREATE TABLE tenants (id uuid, n int, UNIQUE (id, n))", r"id \(uuid\) of table tenants .* unique"),
    ],
)
def test_foreign_tenants_without_a_key_of_uuids_are_an_error(
    definition: LiteralString, message: str, empty_database: Database
) -> None:
    run(empty_database.owner_url, definition)
    before = tables(empty_database)
    with pytest.raises(ConfigurationError, match=message):
        migrate.upgrade(empty_database.owner_url)
    assert tables(empty_database) == before


def test_foreign_attribution_tables_are_left_alone(
    empty_database: Database, head: Database, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = ("attribution_events", "attribution_channel_days", "attribution_runs")
    for table in foreign:
        run(empty_database.owner_url, f"CREATE TABLE {table} (id bigint PRIMARY KEY, tenant_id uuid)")
    before = [catalog(empty_database, table) for table in foreign]

    migrate.upgrade(empty_database.owner_url)

    assert [catalog(empty_database, table) for table in foreign] == before
    for table in foreign:
        assert f"{table} exists in another shape" in caplog.text
    for table in set(TABLES) - set(foreign):
        assert catalog(empty_database, table) == catalog(head, table)

    migrate.downgrade(empty_database.owner_url)

    assert tables(empty_database) == {name for table in foreign for name in (table, f"{table}_pkey")}


def test_the_version_table_of_the_application_is_left_alone(empty_database: Database) -> None:
    run(
        empty_database.owner_url,
        "CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);"
        "INSERT INTO alembic_version VALUES ('202511161200')",
    )
    migrate.upgrade(empty_database.owner_url)
    assert contents(empty_database, "alembic_version") == ["(202511161200)"]
    assert contents(empty_database, "dramaturg_version") == ["(0010)"]
    migrate.downgrade(empty_database.owner_url)
    assert contents(empty_database, "alembic_version") == ["(202511161200)"]


# --- Running ------------------------------------------------------------------------------------------


def test_doing_it_twice_changes_nothing(empty_database: Database, head: Database) -> None:
    migrate.upgrade(empty_database.owner_url)
    migrate.upgrade(empty_database.owner_url)
    assert tables(empty_database) == tables(head)


def in_threads(*jobs: Callable[[], None]) -> list[BaseException]:
    """Run ``jobs`` at once; return what they raised."""
    raised: list[BaseException] = []

    def run_one(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as e:  # noqa: BLE001 - told to the caller
            raised.append(e)

    threads = [threading.Thread(target=run_one, args=[job]) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


def test_two_releases_in_one_process(empty_database: Database, head: Database) -> None:
    assert in_threads(*[lambda: migrate.upgrade(empty_database.owner_url)] * 4) == []
    assert tables(empty_database) == tables(head)


def test_two_releases_on_two_machines(empty_database: Database, head: Database) -> None:
    """Both are seen to wait at the database, so both do start before either ends."""
    code = "import sys; from worker import migrate; migrate.upgrade(sys.argv[1])"
    release = [sys.executable, "-W", "error", "-c", code, empty_database.owner_url]
    with (
        psycopg.connect(empty_database.owner_url) as holder,
        psycopg.connect(empty_database.admin_url, autocommit=True) as observer,
    ):
        holder.execute("SELECT pg_advisory_xact_lock(%s)", [0x6472616D61747572])
        releases = [subprocess.Popen(release, cwd=REPOSITORY) for _ in range(2)]
        end = time.monotonic() + 30
        while time.monotonic() < end:
            query: LiteralString = (
                "SELECT count(*), pg_sleep(0.01) FROM pg_locks JOIN pg_database d ON d.oid = database"
                " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
            )
            waiting = observer.execute(query).fetchone()
            if waiting is not None and waiting[0] == 2:
                break
        else:
            pytest.fail("the releases do not wait for each other")
    assert [process.wait(30) for process in releases] == [0, 0]
    assert tables(empty_database) == tables(head)


def test_a_migration_does_not_wait_for_ever(empty_database: Database) -> None:
    table = build_later_celery_form(empty_database)
    before = catalog(empty_database, table)
    with psycopg.connect(empty_database.worker_url) as reader:
        reader.execute("SELECT FROM worker_failed_jobs")
        with pytest.raises(ConfigurationError, match=r"another transaction .* LOCK TABLE worker_failed_jobs"):
            migrate.upgrade(empty_database.owner_url, lock_timeout=0.02)
    assert catalog(empty_database, table) == before
    assert "tenants" not in tables(empty_database)


def test_a_url_as_hosts_give_it(cluster: Cluster, empty_database: Database, head: Database) -> None:
    password = "a%40b@c:d/%(e)s"
    user = f"dramaturg_test_{uuid4().hex[:8]}"
    with psycopg.connect(empty_database.admin_url, autocommit=True) as connection:
        role = sql.Identifier(user)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, sql.Literal(password)))
        try:
            connection.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(role))
            place = cluster.url(None, empty_database.name).rpartition("@")[2]
            migrate.upgrade(f"postgres://{user}:{quote(password, safe='')}@{place}?sslmode=prefer")
            # It may not create in the database, so it has no extension either.
            assert tables(empty_database) == tables(head) - {TEXT_INDEX}
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_url_that_is_none(empty_database: Database) -> None:
    with pytest.raises(ConfigurationError, match="postgres://"):
        migrate.upgrade("mysql://u:secret@h/d")


def test_alembic_itself_takes_the_url_from_the_settings(empty_database: Database, head: Database) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "REDIS_URL": "redis://127.0.0.1:1",
        # Which may not create tables, so this tells which of the two was used.
        "DATABASE_URL": empty_database.worker_url,
        "MIGRATION_DATABASE_URL": empty_database.owner_url,
    }
    # The second finds nothing that the models have and the database has not.
    for arguments in (["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "alembic", *arguments],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    assert tables(empty_database) == tables(head)


def test_printing_the_statements_is_refused(empty_database: Database) -> None:
    with pytest.raises(CommandError, match="cannot be printed"):
        command.upgrade(migrate.config(empty_database.owner_url), "head", sql=True)


def test_standard_output_is_the_callers(empty_database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    migrate.upgrade(empty_database.owner_url)
    migrate.downgrade(empty_database.owner_url)
    assert capfd.readouterr().out == ""


def test_where_the_revisions_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert migrate.script_location() == REPOSITORY / "migrations"
    monkeypatch.setattr(db, "__file__", str(tmp_path / "db" / "__init__.py"))
    with pytest.raises(ConfigurationError, match="migrations are missing"):
        migrate.script_location()
    installed = tmp_path / "db" / "migrations"
    installed.mkdir(parents=True)
    (installed / "env.py").touch()
    assert migrate.script_location() == installed


def test_an_unknown_revision_of_ours_is_an_error(empty_database: Database) -> None:
    """A newer release has migrated, and this is an older one."""
    migrate.upgrade(empty_database.owner_url)
    run(empty_database.owner_url, "UPDATE dramaturg_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="9999") as caught:
        migrate.upgrade(empty_database.owner_url)
    assert isinstance(caught.value.__cause__, CommandError)


# --- Other servers ------------------------------------------------------------------------------------


@contextmanager
def another_server(programs: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """A cluster of the test's own, of the version whose ``programs`` are given."""
    with temporary_folder() as folder:
        server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off", "full_page_writes": "off"})
        if programs is not None:
            server._bin = programs
        server.start()
        try:
            yield server
        finally:
            server.stop()


def test_without_roles(caplog: pytest.LogCaptureFixture) -> None:
    """One credential first, then, in the same cluster, an owner who may create roles."""
    with (
        another_server() as server,
        psycopg.connect(server.url("superuser"), autocommit=True) as connection,
    ):
        connection.execute("DROP ROLE app_user; DROP ROLE app_operator")
        connection.execute("ALTER ROLE dramaturg_owner NOCREATEROLE NOCREATEDB")

        url = server.url("owner")
        migrate.upgrade(url)

        assert "role app_user is missing" in caplog.text
        assert "role app_operator is missing" in caplog.text
        session.configure(url)
        try:
            check_isolation_with_one_credential()
        finally:
            session.dispose()
        migrate.downgrade(url)
        policies: LiteralString = "SELECT roles FROM pg_policies WHERE tablename = 'worker_failed_jobs'"
        assert rows(server.url("superuser"), policies) == [(["public"],)]

        connection.execute("ALTER ROLE dramaturg_owner CREATEROLE")
        caplog.clear()
        migrate.upgrade(url)

        assert "missing" not in caplog.text
        roles: LiteralString = (
            "SELECT rolname, rolcanlogin, rolbypassrls, rolsuper, rolcreaterole, rolinherit"
            " FROM pg_roles WHERE rolname LIKE 'app!_%' ESCAPE '!' ORDER BY 1"
        )
        assert connection.execute(roles).fetchall() == [
            ("app_operator", False, False, False, False, True),
            ("app_user", False, False, False, False, True),
        ]
        assert connection.execute("SELECT count(*) FROM worker_failed_jobs").fetchone() == (2,)

        # Roles that exist are accepted unaltered, but such a one not in silence.
        connection.execute("ALTER ROLE app_user LOGIN BYPASSRLS")
        migrate.downgrade(url)
        migrate.upgrade(url)

        assert "role app_user is not bound by row-level security" in caplog.text
        assert connection.execute(roles).fetchall()[1] == ("app_user", True, True, False, False, True)


def check_isolation_with_one_credential() -> None:
    """The one user owns the tables, and still sees one tenant, unless it says that it is an operator."""
    from sqlalchemy import text

    insert = text(
        "INSERT INTO worker_failed_jobs"
        " (id, task_id, task_name, tenant_id, error_type, exception_class, error_message)"
        " VALUES (gen_random_uuid(), 't', 'n', :tenant, 'unknown', 'E', '')"
    )
    count = text("SELECT count(*) FROM worker_failed_jobs")
    for tenant in (ONE, OTHER):
        with tenant_context(tenant), session.transaction() as s:
            s.execute(insert, {"tenant": tenant})
    with tenant_context(ONE):
        with session.transaction() as s:
            assert s.execute(count).scalar() == 1
        with pytest.raises(Exception, match="row-level security"), session.transaction() as s:
            s.execute(insert, {"tenant": OTHER})
    with session.operator_transaction() as s:
        assert s.execute(count).scalar() == 2


def test_postgres_15() -> None:
    """The oldest supported one, in which NOT NULL has no names."""
    found = sorted(Path("/usr/lib/postgresql/15/bin").glob("initdb"))
    if not found:
        if "CI" in os.environ:
            pytest.fail("PostgreSQL 15 is not installed: apt-get install postgresql-15")
        pytest.skip("PostgreSQL 15 is not installed")
    with another_server(found[0].parent) as server:
        cluster = Cluster(server.url("superuser", "postgres"))
        cluster.make_roles()
        assert rows(cluster.admin_url, "SELECT current_setting('server_version_num')::int / 10000") == [(15,)]
        with cluster.database() as empty, cluster.database() as celery, cluster.database() as first:
            migrate.upgrade(empty.owner_url)
            build_first_celery_form(first)
            migrate.upgrade(first.owner_url)
            build_later_celery_form(celery)
            form = catalog(celery, "worker_failed_jobs", "comments")
            before = fill(celery, "worker_failed_jobs")
            migrate.upgrade(celery.owner_url)
            for table in TABLES:
                assert catalog(celery, table) == catalog(first, table) == catalog(empty, table)
            migrate.downgrade(celery.owner_url)
            assert catalog(celery, "worker_failed_jobs", "comments") == form
            migrate.upgrade(celery.owner_url)
            assert contents(celery, "worker_failed_jobs") == before
            assert catalog(celery, "worker_failed_jobs") == catalog(empty, "worker_failed_jobs")
            migrate.downgrade(empty.owner_url)
            assert tables(empty) == set()
