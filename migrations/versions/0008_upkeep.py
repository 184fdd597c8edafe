"""Rules for how long a language model's answers are kept; and an index that finds what happened once by its age."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

import sqlalchemy as sa
from alembic import op

from db.table_building import Table, every_row_visible, exists

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

log = logging.getLogger("alembic.runtime.migration.dramaturg")


def upgrade() -> None:
    """Allow the rules, and build the index."""
    allow(*_SUBJECTS, "answers")
    # What is written comes last in it, so that it costs little.
    op.execute(f"CREATE INDEX IF NOT EXISTS {_INDEX} ON worker_once (recorded_at)")


def downgrade() -> None:
    """Take both back. The code of before does not know such rules, and ends over them: the log says which they were."""
    op.execute(f"DROP INDEX IF EXISTS {_INDEX}")
    if exists(RETENTION.name):
        with every_row_visible(RETENTION):
            for tenant_id, days in gone():
                log.warning(
                    "the rule that answers of a language model are kept %s for %s is removed: make it again after an "
                    "upgrade, or the default of 400 days holds",
                    "for ever" if days is None else f"{days} days",
                    "all" if tenant_id is None else f"tenant {tenant_id}",
                )
        allow(*_SUBJECTS)


def gone() -> Sequence[tuple[UUID | None, int | None]]:
    """Remove the rules that the code of before does not know, and return whose they were, and for how many days."""
    found = op.get_bind().execute(
        sa.text(f"DELETE FROM {RETENTION.name} WHERE subject = 'answers' RETURNING tenant_id, keep_days")
    )
    return [(row.tenant_id, row.keep_days) for row in found]


def allow(*subjects: str) -> None:
    """Say what rules may be about."""
    constraint = f"ck_{RETENTION.name}_subject"
    op.execute(f"ALTER TABLE {RETENTION.name} DROP CONSTRAINT IF EXISTS {constraint}")
    listed = ", ".join(f"'{subject}'" for subject in subjects)
    op.execute(f"ALTER TABLE {RETENTION.name} ADD CONSTRAINT {constraint} CHECK (subject IN ({listed}))")


_INDEX = "idx_worker_once_recorded_at"
_SUBJECTS = ("pending", "in_progress", "resolved", "abandoned", "payload", "events")

# As revision 0004 built it; here for its name alone.
RETENTION = Table(
    name="worker_failed_job_retention",
    columns={},
    primary_key="(id)",
    constraints={},
    indexes={},
    app_user="",
    tenant="",
)
