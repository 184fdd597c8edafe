"""Keep the original message of every failure: for replay, and because what is no message can be seen nowhere else."""

from __future__ import annotations

from db.table_building import (
    NOW,
    OF_TENANT_OR_NOBODY,
    UUID,
    Column,
    Table,
    build_companion,
    drop_if_empty,
)

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the table."""
    build_companion(ORIGINALS)


def downgrade() -> None:
    """Drop it, unless it holds a row."""
    drop_if_empty(ORIGINALS)


# Nothing in it is redacted: tenants put in, and only operators look.
ORIGINALS = Table(
    "worker_failed_job_originals",
    columns={
        "failed_job_id": Column(UUID),
        "tenant_id": Column(UUID, null=True),
        "original": Column("bytea"),
        "recorded_at": NOW,
    },
    primary_key="(failed_job_id)",
    constraints={
        "fk_worker_failed_job_originals_failed_job": (
            "FOREIGN KEY (failed_job_id) REFERENCES worker_failed_jobs (id) ON DELETE CASCADE"
        ),
    },
    indexes={},
    app_user="INSERT",
    tenant=OF_TENANT_OR_NOBODY,
)
