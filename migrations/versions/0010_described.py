"""Whether a row has its details is looked up in their index, whatever Postgres knew of the table when it planned that.

The trigger's plan is kept as long as a connection lasts. Made while the table is small, which it is in the first minute
of a storm, it read all of it for each transaction: 20,000 failures later that took longer than all else.
"""

from __future__ import annotations

from typing import Final

from alembic import op

from db.table_building import scalar

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let the trigger look each row up."""
    exchange(_JOINED, _LOOKED_UP)


def downgrade() -> None:
    """Let Postgres choose again."""
    exchange(_LOOKED_UP, _JOINED)


def exchange(before: str, after: str) -> None:
    """Change the condition in the trigger's function, and leave all else of it as it is."""
    text = str(scalar("SELECT pg_get_functiondef(to_regprocedure('worker_failed_jobs_added()'))"))
    if before in text:
        # A colon before a word would be a parameter.
        op.get_bind().exec_driver_sql(text.replace(before, after))


_OF_IT: Final = "FROM worker_failed_job_details details WHERE details.failed_job_id = added.id)"
_JOINED: Final = f"NOT EXISTS (SELECT {_OF_IT}\n    ) THEN"
# What stands in place of a value is never made part of a join.
_LOOKED_UP: Final = f"(SELECT true {_OF_IT} IS NOT TRUE\n    ) THEN"
