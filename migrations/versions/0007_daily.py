"""What channels earned by day, and runs that recompute a day for every tenant."""

from __future__ import annotations

import logging

from db.table_building import (
    BIGINT,
    INTEGER,
    NOW,
    OF_TENANT,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Column,
    Table,
    create,
    drop_if_empty,
    exists,
    give_access,
    mark_as_ours,
    settle,
    shape,
    shape_of,
    varchar,
)

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

log = logging.getLogger("alembic.runtime.migration.dramaturg")


def upgrade() -> None:
    """Build the tables; one of another shape belongs to the application and is left alone."""
    for table in (CHANNEL_DAYS, RUNS, RUN_CHILDREN):
        if not exists(table.name):
            create(table)
            mark_as_ours(table)
        elif shape(table.name) != shape_of(table):
            log.warning("table %s exists in another shape than ours and is left alone", table.name)
            continue
        else:
            settle(table)
        give_access(table)


def downgrade() -> None:
    """Drop those that hold no row."""
    for table in (RUN_CHILDREN, RUNS, CHANNEL_DAYS):
        drop_if_empty(table)


CHANNEL_DAYS = Table(
    "attribution_channel_days",
    columns={
        "tenant_id": Column(UUID),
        "day": Column("date"),
        "model": Column(varchar(50)),
        "model_version": Column(varchar(50)),
        "channel": Column(varchar(100)),
        "allocated_cents": Column(BIGINT),
        # The window that it is of: a row of attribution_recompute_jobs.
        "job_id": Column(UUID),
    },
    primary_key="(tenant_id, day, model, model_version, channel)",
    constraints={"ck_attribution_channel_days_cents": "CHECK (allocated_cents >= 0)"},
    indexes={},
    app_user="SELECT, INSERT, DELETE",
    tenant=OF_TENANT,
)

# One of no tenant is of all, and for operators alone to see.
RUNS = Table(
    "attribution_runs",
    columns={
        "id": Column(UUID),
        "tenant_id": Column(UUID, null=True),
        "day": Column("date"),
        "correlation_id": Column(UUID),
        "started_at": NOW,
        # Null until it is known for whom there is something to do.
        "expected": Column(INTEGER, null=True),
        "finished_at": Column(TIMESTAMPTZ, null=True),
        # As it was then.
        "succeeded": Column(INTEGER, null=True),
        "failed": Column(INTEGER, null=True),
        "summary": Column(TEXT, null=True),
    },
    primary_key="(id)",
    constraints={},
    indexes={"idx_attribution_runs_started_at": "(started_at)"},
    app_user="SELECT",
    tenant=OF_TENANT,
)

# Planned and sent by operators' work; each tenant's own work says that it has succeeded.
RUN_CHILDREN = Table(
    "attribution_run_children",
    columns={
        # Also the id of its message.
        "id": Column(UUID),
        "run_id": Column(UUID),
        "tenant_id": Column(UUID),
        "model": Column(varchar(50)),
        "sent_at": Column(TIMESTAMPTZ, null=True),
        "succeeded_at": Column(TIMESTAMPTZ, null=True),
        "failed_at": Column(TIMESTAMPTZ, null=True),
    },
    primary_key="(id)",
    # No foreign key: a table attribution_runs may be the application's.
    constraints={"uq_attribution_run_children_run": "UNIQUE (run_id, tenant_id, model)"},
    indexes={},
    app_user="SELECT, UPDATE",
    tenant=OF_TENANT,
)
