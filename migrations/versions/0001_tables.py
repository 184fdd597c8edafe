"""The tables, and who may see what in them.

Takes an empty database, the Celery deployment's table under either of its names, and tables that an earlier
downgrade left behind. Frozen: it must not read ``db.models``, which moves on.
"""

from __future__ import annotations

from alembic import op
from alembic.util import CommandError

from db.table_building import (
    BIGINT,
    INTEGER,
    JSONB,
    NOW,
    OF_TENANT,
    OF_TENANT_OR_NOBODY,
    SETTING,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Column,
    Table,
    build_companion,
    create,
    drop_comments,
    drop_if_empty,
    drop_policies,
    every_row_visible,
    exists,
    give_access,
    is_ours,
    log,
    mark_as_ours,
    name_not_nulls,
    rename_index,
    role_exists,
    scalar,
    settle,
    settle_column,
    settle_constraints,
    settle_indexes,
    settle_primary_key,
    shape,
    shape_of,
    varchar,
    warn_of_more_columns,
    warn_of_power,
)

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build everything, or adopt what is there."""
    make_roles()
    build_failed_jobs()
    build_companion(DELIVERIES)
    build_tenants()
    for table in (EVENTS, RECOMPUTE_JOBS, ALLOCATIONS):
        build_attribution(table)


def downgrade() -> None:
    """Drop what is empty; what holds a row stays. Roles stay."""
    drop_if_empty(DELIVERIES)
    if not drop_if_empty(FAILED_JOBS, whose_ever=True):
        return_failed_jobs_to_celery()
    for table in (ALLOCATIONS, RECOMPUTE_JOBS, EVENTS, TENANTS):
        drop_if_empty(table)


# --- What is built --------------------------------------------------------------------------------


FAILED_JOBS = Table(
    "worker_failed_jobs",
    columns={
        "id": Column(UUID),
        "task_id": Column(varchar(155)),
        "task_name": Column(varchar(255)),
        "queue": Column(varchar(100), null=True),
        "worker": Column(varchar(255), null=True),
        "task_args": Column(JSONB, null=True),
        "task_kwargs": Column(JSONB, null=True),
        "tenant_id": Column(UUID, null=True),
        "error_type": Column(varchar(100)),
        "exception_class": Column(varchar(255)),
        "error_message": Column(TEXT),
        "traceback": Column(TEXT, null=True),
        "retry_count": Column(INTEGER, default="0"),
        "last_retry_at": Column(TIMESTAMPTZ, null=True),
        "status": Column(varchar(50), default="'pending'"),
        "remediation_notes": Column(TEXT, null=True),
        "resolved_at": Column(TIMESTAMPTZ, null=True),
        "correlation_id": Column(UUID, null=True),
        "failed_at": NOW,
    },
    primary_key="(id)",
    constraints={
        "ck_worker_failed_jobs_status_valid": ("CHECK (status IN ('pending', 'in_progress', 'resolved', 'abandoned'))"),
        "ck_worker_failed_jobs_retry_count_positive": "CHECK (retry_count >= 0)",
    },
    indexes={
        "idx_worker_failed_jobs_status": "(status, failed_at)",
        "idx_worker_failed_jobs_task_name": "(task_name)",
        "idx_worker_failed_jobs_task_id": "(task_id)",
        "idx_worker_failed_jobs_tenant_id": "(tenant_id)",
    },
    app_user="SELECT, INSERT, UPDATE, DELETE",
    tenant=OF_TENANT_OR_NOBODY,
)

DELIVERIES = Table(
    "worker_failed_job_deliveries",
    columns={
        "delivery_id": Column(varchar(255)),
        "failed_job_id": Column(UUID),
        "tenant_id": Column(UUID, null=True),
        "recorded_at": NOW,
    },
    primary_key="(delivery_id)",
    constraints={
        "fk_worker_failed_job_deliveries_failed_job": (
            "FOREIGN KEY (failed_job_id) REFERENCES worker_failed_jobs (id) ON DELETE CASCADE"
        ),
    },
    indexes={"idx_worker_failed_job_deliveries_failed_job_id": "(failed_job_id)"},
    app_user="SELECT, INSERT, DELETE",
    tenant=OF_TENANT_OR_NOBODY,
)

TENANTS = Table(
    "tenants",
    columns={"id": Column(UUID, default="gen_random_uuid()"), "name": Column(TEXT), "created_at": NOW},
    primary_key="(id)",
    constraints={},
    indexes={},
    app_user="SELECT",
    tenant=f"id = {SETTING}::uuid",
)

EVENTS = Table(
    "attribution_events",
    columns={
        "tenant_id": Column(UUID),
        "event_id": Column(varchar(255)),
        "event_type": Column(varchar(20)),
        "visitor_id": Column(varchar(255)),
        "channel": Column(varchar(100), null=True),
        "revenue_cents": Column(BIGINT, null=True),
        "occurred_at": Column(TIMESTAMPTZ),
    },
    primary_key="(tenant_id, event_id)",
    constraints={
        "ck_attribution_events_shape": (
            "CHECK ((event_type = 'touch' AND channel IS NOT NULL AND revenue_cents IS NULL)"
            " OR (event_type = 'conversion' AND channel IS NULL AND revenue_cents IS NOT NULL"
            " AND revenue_cents >= 0))"
        ),
        "fk_attribution_events_tenant": "FOREIGN KEY (tenant_id) REFERENCES tenants (id)",
    },
    indexes={"idx_attribution_events_window": "(tenant_id, event_type, occurred_at)"},
    app_user="SELECT, INSERT",
    tenant=OF_TENANT,
)

RECOMPUTE_JOBS = Table(
    "attribution_recompute_jobs",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "tenant_id": Column(UUID),
        "window_start": Column(TIMESTAMPTZ),
        "window_end": Column(TIMESTAMPTZ),
        "model": Column(varchar(50)),
        "model_version": Column(varchar(50)),
        "run_count": Column(INTEGER, default="1"),
        "conversions": Column(BIGINT, default="0"),
        "allocations": Column(BIGINT, default="0"),
        "revenue_cents": Column(BIGINT, default="0"),
        "first_run_at": NOW,
        "last_run_at": NOW,
        "correlation_id": Column(UUID, null=True),
    },
    primary_key="(id)",
    constraints={
        "ck_attribution_recompute_jobs_window": "CHECK (window_start < window_end)",
        "fk_attribution_recompute_jobs_tenant": "FOREIGN KEY (tenant_id) REFERENCES tenants (id)",
        "uq_attribution_recompute_jobs_window": ("UNIQUE (tenant_id, window_start, window_end, model, model_version)"),
    },
    indexes={},
    app_user="SELECT, INSERT, UPDATE",
    tenant=OF_TENANT,
)

ALLOCATIONS = Table(
    "attribution_allocations",
    columns={
        "tenant_id": Column(UUID),
        "job_id": Column(UUID),
        "conversion_id": Column(varchar(255)),
        "position": Column(INTEGER),
        "touch_id": Column(varchar(255), null=True),
        "channel": Column(varchar(100)),
        "allocated_cents": Column(BIGINT),
    },
    primary_key="(tenant_id, job_id, conversion_id, position)",
    constraints={"ck_attribution_allocations_cents": "CHECK (allocated_cents >= 0)"},
    indexes={},
    app_user="SELECT, INSERT, DELETE",
    tenant=OF_TENANT,
)


# --- Up -------------------------------------------------------------------------------------------


def make_roles() -> None:
    """Make the two roles where they are missing and we may; a host with one credential does without."""
    for role in ("app_user", "app_operator"):
        if role_exists(role):
            warn_of_power(role)
            continue
        # Roles belong to the whole cluster: a migration of another database may make the same one meanwhile.
        op.execute(
            f"""
            DO $$ BEGIN
                CREATE ROLE {role} NOLOGIN;
            EXCEPTION
                WHEN duplicate_object OR unique_violation OR insufficient_privilege THEN NULL;
            END $$
            """
        )
        if not role_exists(role):
            log.warning("role %s is missing and this user may not create it: going on without it", role)


def build_failed_jobs() -> None:
    """Build the canonical table, or turn what is there into it."""
    old, new = exists("celery_task_failures"), exists(FAILED_JOBS.name)
    if old and new:
        raise CommandError(
            "both celery_task_failures and worker_failed_jobs exist, and only one can become the table: "
            "move the rows of one into the other and drop it, then migrate again"
        )
    if old:
        op.execute("ALTER TABLE celery_task_failures RENAME TO worker_failed_jobs")
    if old or new:
        adopt_failed_jobs()
    else:
        create(FAILED_JOBS)
    give_access(FAILED_JOBS)


def adopt_failed_jobs() -> None:
    """Turn a table that somebody else built, and may have filled, into the canonical one."""
    op.execute("LOCK TABLE worker_failed_jobs IN ACCESS EXCLUSIVE MODE")
    drop_policies(FAILED_JOBS)
    with every_row_visible(FAILED_JOBS):
        for check in (
            "ck_celery_task_failures_status_valid",
            "ck_celery_task_failures_retry_count_positive",
            *FAILED_JOBS.constraints,
        ):
            op.execute(f"ALTER TABLE worker_failed_jobs DROP CONSTRAINT IF EXISTS {check}")
        drop_comments(FAILED_JOBS)
        name_not_nulls(FAILED_JOBS, "worker_failed_jobs")
        for name, column in FAILED_JOBS.columns.items():
            settle_column(FAILED_JOBS, name, column)
        warn_of_more_columns(FAILED_JOBS)
        # What the mis-quoted default of the Celery form wrote, if its check was ever away.
        op.execute("UPDATE worker_failed_jobs SET status = 'pending' WHERE status = '''pending'''")
    settle_primary_key(FAILED_JOBS)
    rename_index("idx_celery_task_failures_status", "idx_worker_failed_jobs_status")
    rename_index("idx_celery_task_failures_task_name", "idx_worker_failed_jobs_task_name")
    rename_index("ix_public_celery_task_failures_task_id", "idx_worker_failed_jobs_task_id")
    rename_index("ix_public_celery_task_failures_tenant_id", "idx_worker_failed_jobs_tenant_id")
    # Twice the same index.
    op.execute("DROP INDEX IF EXISTS ix_public_celery_task_failures_task_name")
    settle_indexes(FAILED_JOBS)
    settle_constraints(FAILED_JOBS)


def build_tenants() -> None:
    """Build our own tenants, unless the application has some: those are used as they are."""
    if not exists(TENANTS.name):
        create(TENANTS)
        mark_as_ours(TENANTS)
    elif not is_ours(TENANTS.name):
        check_foreign_tenants()
        return
    give_access(TENANTS)


def check_foreign_tenants() -> None:
    """See to it that foreign keys can refer to the application's tenants."""
    found = shape(TENANTS.name).get("id")
    if found != UUID:
        what = f"its column id is of type {found}" if found else "it has no column id"
        raise CommandError(f"table tenants must have a key id of type uuid to be used here, but {what}")
    unique = scalar(
        """
        SELECT EXISTS (
            SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = 'id'
            WHERE i.indrelid = to_regclass('tenants') AND i.indisunique AND i.indimmediate AND i.indisvalid
              AND i.indpred IS NULL AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum
        )
        """
    )
    if not unique:
        raise CommandError("column id (uuid) of table tenants must be its primary key, or unique, to be used here")


def build_attribution(table: Table) -> None:
    """Build a table of the main job; one of another shape belongs to the application and is left alone."""
    if not exists(table.name):
        create(table)
        mark_as_ours(table)
    elif shape(table.name) != shape_of(table):
        log.warning("table %s exists in another shape than ours and is left alone", table.name)
        return
    else:
        settle(table)
    give_access(table)


# --- Down -----------------------------------------------------------------------------------------


def return_failed_jobs_to_celery() -> None:
    """Give the table the form in which the Celery deployment left it, faults included."""
    drop_policies(FAILED_JOBS)
    op.execute("ALTER TABLE worker_failed_jobs NO FORCE ROW LEVEL SECURITY")
    to = "app_user" if role_exists("app_user") else "PUBLIC"
    op.execute(
        f"""
        CREATE POLICY tenant_isolation_policy ON worker_failed_jobs FOR ALL TO {to}
        USING (tenant_id IS NULL OR tenant_id::text = current_setting('app.current_tenant_id', true))
        """
    )
    if role_exists("app_operator"):
        op.execute("REVOKE ALL ON worker_failed_jobs FROM app_operator")
    op.execute("ALTER TABLE worker_failed_jobs ALTER COLUMN status SET DEFAULT '''pending'''")
    op.execute("ALTER TABLE worker_failed_jobs RENAME CONSTRAINT worker_failed_jobs_pkey TO celery_task_failures_pkey")
    name_not_nulls(FAILED_JOBS, "celery_task_failures")
    rename_index("idx_worker_failed_jobs_task_id", "ix_public_celery_task_failures_task_id")
    rename_index("idx_worker_failed_jobs_tenant_id", "ix_public_celery_task_failures_tenant_id")
    op.execute("CREATE INDEX ix_public_celery_task_failures_task_name ON worker_failed_jobs (task_name)")
