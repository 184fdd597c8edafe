"""What was recorded so that it happens once."""

from __future__ import annotations

from db.table_building import (
    NOW,
    OF_TENANT_OR_NOBODY,
    UUID,
    Column,
    Table,
    build_companion,
    drop_if_empty,
    varchar,
)

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the table."""
    build_companion(ONCE)


def downgrade() -> None:
    """Drop it, unless it holds a row: without it, what it holds would happen again."""
    drop_if_empty(ONCE)


ONCE = Table(
    "worker_once",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "tenant_id": Column(UUID, null=True),
        "key": Column(varchar(300)),
        "message_id": Column(varchar(155), null=True),
        "recorded_at": NOW,
    },
    primary_key="(id)",
    constraints={"uq_worker_once_key": "UNIQUE NULLS NOT DISTINCT (tenant_id, key)"},
    indexes={},
    app_user="SELECT, INSERT, DELETE",
    tenant=OF_TENANT_OR_NOBODY,
)
