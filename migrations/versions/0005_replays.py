"""Replays: which failed jobs were sent again, by whom, how far that is, and how each of them ended."""

from __future__ import annotations

from alembic import op

from db.table_building import (
    BIGINT,
    JSONB,
    NOW,
    OF_TENANT,
    OF_TENANT_OR_NOBODY,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Column,
    Table,
    build_companion,
    drop_if_empty,
    role_exists,
    temporary_tables_last,
    varchar,
)

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the tables and the triggers."""
    for table in (REPLAYS, ITEMS, EDITS):
        build_companion(table)
    # So that a tenant can remove what it cannot read.
    if role_exists("app_user"):
        op.execute(f"GRANT SELECT (failed_job_id, tenant_id) ON {EDITS.name} TO app_user")
    build_triggers()


def downgrade() -> None:
    """Drop the triggers, and the tables unless they hold a row."""
    drop_triggers()
    for table in (EDITS, ITEMS, REPLAYS):
        drop_if_empty(table)


# Of the tenant that its author was bound to; one of nobody is an operator's, for all tenants, so who is bound to none
# neither sees nor makes it.
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
        # What has failed later, by the workers' clocks, is not its own.
        "until_at": NOW,
        # Which outcomes count for the ramp and the threshold: those after a person let it go on.
        "counted_from": NOW,
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
    tenant=OF_TENANT,
)

# Of the tenant of its job. Made by operators' processes; ended by workers.
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
        # A job that fails again is not sent again by the same replay.
        "uq_worker_replay_items_failed_job": "UNIQUE (failed_job_id, replay_id)",
        "fk_worker_replay_items_replay": "FOREIGN KEY (replay_id) REFERENCES worker_replays (id) ON DELETE CASCADE",
    },
    indexes={
        "idx_worker_replay_items_state": "(replay_id, state, ended_at)",
        "idx_worker_replay_items_tenant_id": "(tenant_id)",
    },
    app_user="SELECT, UPDATE",
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

# Whoever takes a row out of in_progress, a worker whose ending names no item, a person or a purge, ends the item that
# had put it there: a replay waits for none that is not its own any more.
_LEFT = """
CREATE OR REPLACE FUNCTION worker_replay_items_left() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE worker_replay_items item SET state = 'released', why = {why}, ended_at = clock_timestamp()
    FROM {rows}
    WHERE item.failed_job_id = was.id AND item.state IN ('claimed', 'sent') AND was.status = 'in_progress';
    {more}RETURN NULL;
END $$
"""
_UPDATED = _LEFT.format(
    why="'the job became ' || is_now.status || ' meanwhile'",
    rows="changed_from was JOIN changed_to is_now ON is_now.id = was.id AND is_now.status <> 'in_progress'",
    # Handed to another tenant: what stands beside the row goes with it.
    more="""IF EXISTS (
        SELECT FROM changed_from was JOIN changed_to is_now USING (id)
        WHERE was.tenant_id IS DISTINCT FROM is_now.tenant_id
    ) THEN
        UPDATE worker_replay_edits own SET tenant_id = is_now.tenant_id FROM changed_to is_now
        WHERE own.failed_job_id = is_now.id AND own.tenant_id IS DISTINCT FROM is_now.tenant_id;
    END IF;
    """,
)
_DELETED = _LEFT.replace("items_left", "items_gone").format(
    why="'the job was removed meanwhile'", rows="changed_from was", more=""
)


def build_triggers() -> None:
    """End items whose rows have gone elsewhere, whoever took them there."""
    for function in (_UPDATED, _DELETED):
        op.get_bind().exec_driver_sql(function)
    for name in ("worker_replay_items_left", "worker_replay_items_gone"):
        temporary_tables_last(name)
    drop_triggers(functions=False)
    op.execute(
        "CREATE TRIGGER worker_replay_items_left AFTER UPDATE ON worker_failed_jobs"
        " REFERENCING OLD TABLE AS changed_from NEW TABLE AS changed_to"
        " FOR EACH STATEMENT EXECUTE FUNCTION worker_replay_items_left()"
    )
    op.execute(
        "CREATE TRIGGER worker_replay_items_gone AFTER DELETE ON worker_failed_jobs"
        " REFERENCING OLD TABLE AS changed_from"
        " FOR EACH STATEMENT EXECUTE FUNCTION worker_replay_items_gone()"
    )


def drop_triggers(*, functions: bool = True) -> None:
    """Drop them, and what they call."""
    for name in ("worker_replay_items_left", "worker_replay_items_gone"):
        op.execute(f"DROP TRIGGER IF EXISTS {name} ON worker_failed_jobs")
        if functions:
            op.execute(f"DROP FUNCTION IF EXISTS {name}()")
