"""Replays: which failed jobs were sent again, by whom, how far that is, and how each of them ended."""

from __future__ import annotations

from alembic import op

from db.table_building import (
    BIGINT,
    JSONB,
    NOW,
    OF_TENANT_OR_NOBODY,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Column,
    Table,
    build_companion,
    drop_if_empty,
    role_exists,
    varchar,
)

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the tables."""
    for table in (REPLAYS, ITEMS, EDITS):
        build_companion(table)
    # So that a tenant can remove what it cannot read.
    if role_exists("app_user"):
        op.execute(f"GRANT SELECT (failed_job_id, tenant_id) ON {EDITS.name} TO app_user")


def downgrade() -> None:
    """Drop them, unless they hold a row."""
    for table in (EDITS, ITEMS, REPLAYS):
        drop_if_empty(table)


# Of the tenant that its author was bound to.
REPLAYS = Table(
    "worker_replays",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "tenant_id": Column(UUID, null=True),
        "state": Column(varchar(20), default="'running'"),
        "why": Column(TEXT, null=True),
        "filter": Column(JSONB),
        "settings": Column(JSONB),
        "created_by": Column(TEXT),
        "reason": Column(TEXT, null=True),
        "created_at": NOW,
        "finished_at": Column(TIMESTAMPTZ, null=True),
        "matched": Column(BIGINT, null=True),
        # Up to which job, in the order in which they failed, it has come.
        "come_to_at": Column(TIMESTAMPTZ, null=True),
        "come_to_id": Column(UUID, null=True),
        "runner": Column(varchar(255), null=True),
        "runner_until": Column(TIMESTAMPTZ, null=True),
    },
    primary_key="(id)",
    constraints={
        "ck_worker_replays_state": "CHECK (state IN ('running', 'paused', 'stopped', 'cancelled', 'finished'))",
    },
    indexes={"idx_worker_replays_state": "(state, created_at)"},
    app_user="SELECT, INSERT, UPDATE",
    tenant=OF_TENANT_OR_NOBODY,
)

# Of the tenant of its job.
ITEMS = Table(
    "worker_replay_items",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "replay_id": Column(UUID),
        "failed_job_id": Column(UUID),
        "tenant_id": Column(UUID, null=True),
        "state": Column(varchar(20), default="'claimed'"),
        "why": Column(TEXT, null=True),
        "edit": Column(JSONB, null=True),
        "claimed_at": NOW,
        "sent_at": Column(TIMESTAMPTZ, null=True),
        "ended_at": Column(TIMESTAMPTZ, null=True),
    },
    primary_key="(id)",
    constraints={
        "ck_worker_replay_items_state": (
            "CHECK (state IN ('claimed', 'sent', 'succeeded', 'failed', 'refused', 'released'))"
        ),
        "fk_worker_replay_items_replay": "FOREIGN KEY (replay_id) REFERENCES worker_replays (id) ON DELETE CASCADE",
    },
    indexes={
        "idx_worker_replay_items_state": "(replay_id, state)",
        "idx_worker_replay_items_ended_at": "(replay_id, ended_at)",
        "idx_worker_replay_items_failed_job_id": "(failed_job_id)",
        "idx_worker_replay_items_tenant_id": "(tenant_id)",
    },
    app_user="SELECT, INSERT, UPDATE",
    tenant=OF_TENANT_OR_NOBODY,
)

# The arguments that were edited, as they are: as with originals, tenants remove them, and only operators look.
EDITS = Table(
    "worker_replay_edits",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "failed_job_id": Column(UUID),
        "tenant_id": Column(UUID, null=True),
        "edit": Column("bytea"),
        "recorded_at": NOW,
    },
    primary_key="(id)",
    constraints={
        "fk_worker_replay_edits_failed_job": (
            "FOREIGN KEY (failed_job_id) REFERENCES worker_failed_jobs (id) ON DELETE CASCADE"
        ),
    },
    indexes={"idx_worker_replay_edits_failed_job_id": "(failed_job_id)"},
    app_user="DELETE",
    tenant=OF_TENANT_OR_NOBODY,
)
