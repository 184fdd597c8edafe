"""What a language model answered, and what each tenant may spend, has spent and is about to spend on it."""

from __future__ import annotations

from db.table_building import (
    BIGINT,
    NOW,
    OF_TENANT,
    TEXT,
    TIMESTAMPTZ,
    UUID,
    Column,
    Table,
    build_companion,
    drop_if_empty,
    varchar,
)

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the tables."""
    for table in (ANSWERS, BUDGETS, SPENDING, RESERVATIONS):
        build_companion(table)


def downgrade() -> None:
    """Drop those that hold no row."""
    for table in (RESERVATIONS, SPENDING, BUDGETS, ANSWERS):
        drop_if_empty(table)


ANSWERS = Table(
    "worker_llm_answers",
    columns={
        "id": Column(UUID, default="gen_random_uuid()"),
        "tenant_id": Column(UUID),
        "window_start": Column(TIMESTAMPTZ),
        "window_end": Column(TIMESTAMPTZ),
        "model": Column(varchar(50)),
        "model_version": Column(varchar(50)),
        # Of what was asked: the same while the window's allocations are.
        "fingerprint": Column(varchar(64)),
        "language_model": Column(varchar(200)),
        "answer": Column(TEXT),
        "input_tokens": Column(BIGINT),
        "output_tokens": Column(BIGINT),
        "cost_microcents": Column(BIGINT),
        # Of the call that it came of, which its message gives it.
        "call_id": Column(UUID),
        "correlation_id": Column(UUID, null=True),
        "answered_at": NOW,
    },
    primary_key="(id)",
    constraints={
        "ck_worker_llm_answers_cost": "CHECK (input_tokens >= 0 AND output_tokens >= 0 AND cost_microcents >= 0)",
        "uq_worker_llm_answers_window": "UNIQUE (tenant_id, window_start, window_end, model, model_version)",
    },
    indexes={"idx_worker_llm_answers_answered_at": "(answered_at)"},
    app_user="SELECT, INSERT, UPDATE",
    tenant=OF_TENANT,
)

# Set by operators; a tenant sees its own.
BUDGETS = Table(
    "worker_llm_budgets",
    columns={
        "tenant_id": Column(UUID),
        # None: no limit.
        "monthly_cents": Column(BIGINT, null=True),
        "changed_by": Column(TEXT),
        "changed_at": NOW,
    },
    primary_key="(tenant_id)",
    constraints={
        "ck_worker_llm_budgets_monthly_cents": "CHECK (monthly_cents BETWEEN 0 AND 1000000000000)",
    },
    indexes={},
    app_user="SELECT",
    tenant=OF_TENANT,
)

# One row for each tenant and month; whoever reserves or spends locks it, so two at once see each other.
SPENDING = Table(
    "worker_llm_spending",
    columns={
        "tenant_id": Column(UUID),
        "month": Column("date"),
        "calls": Column(BIGINT, default="0"),
        "input_tokens": Column(BIGINT, default="0"),
        "output_tokens": Column(BIGINT, default="0"),
        "spent_microcents": Column(BIGINT, default="0"),
    },
    primary_key="(tenant_id, month)",
    constraints={},
    indexes={},
    app_user="SELECT, INSERT, UPDATE",
    tenant=OF_TENANT,
)

# What calls under way may cost at most. One whose worker was killed counts no longer than reserved_until.
RESERVATIONS = Table(
    "worker_llm_reservations",
    columns={
        "tenant_id": Column(UUID),
        "call_id": Column(UUID),
        "month": Column("date"),
        "microcents": Column(BIGINT),
        "reserved_until": Column(TIMESTAMPTZ),
    },
    primary_key="(tenant_id, call_id)",
    constraints={"ck_worker_llm_reservations_microcents": "CHECK (microcents >= 0)"},
    indexes={},
    app_user="SELECT, INSERT, UPDATE, DELETE",
    tenant=OF_TENANT,
)
