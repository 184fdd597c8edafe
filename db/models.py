"""The tables. Migrations build them, and a test proves both equal, names of constraints included."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_NOW = text("CURRENT_TIMESTAMP")

#: Marks the tables that migrations made and may drop again; ``worker_failed_jobs`` may be the Celery system's.
_OURS = {"comment": "created by dramaturg"}


#: For text in failed jobs: made by migrations alone, and only where the extension ``pg_trgm`` can be had.
TEXT_INDEX = "idx_worker_failed_jobs_text"


class Base(DeclarativeBase):
    """Base of every table of ours."""

    metadata = MetaData(naming_convention={"pk": "%(table_name)s_pkey"})
    type_annotation_map = {datetime: TIMESTAMP(timezone=True)}  # noqa: RUF012 - SQLAlchemy's name and form


class FailedJob(Base):
    """A message that is dead: the canonical table. Columns are fixed; whatever else is stored goes beside it."""

    __tablename__ = "worker_failed_jobs"
    __table_args__ = (
        CheckConstraint(
            "status IN ('pending', 'in_progress', 'resolved', 'abandoned')",
            name="ck_worker_failed_jobs_status_valid",
        ),
        CheckConstraint("retry_count >= 0", name="ck_worker_failed_jobs_retry_count_positive"),
        Index("idx_worker_failed_jobs_status", "status", "failed_at"),
        Index("idx_worker_failed_jobs_task_name", "task_name", "failed_at"),
        Index("idx_worker_failed_jobs_task_id", "task_id"),
        Index("idx_worker_failed_jobs_tenant_id", "tenant_id", "failed_at"),
        Index("idx_worker_failed_jobs_correlation_id", "correlation_id"),
        Index("idx_worker_failed_jobs_error_type", "error_type", "failed_at"),
        Index("idx_worker_failed_jobs_exception_class", "exception_class", "failed_at"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    task_id: Mapped[str] = mapped_column(String(155))
    task_name: Mapped[str] = mapped_column(String(255))
    queue: Mapped[str | None] = mapped_column(String(100))
    worker: Mapped[str | None] = mapped_column(String(255))
    task_args: Mapped[list[Any] | None] = mapped_column(JSONB)
    task_kwargs: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    tenant_id: Mapped[UUID | None]
    error_type: Mapped[str] = mapped_column(String(100))
    exception_class: Mapped[str] = mapped_column(String(255))
    error_message: Mapped[str] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    retry_count: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    last_retry_at: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(String(50), server_default=text("'pending'"))
    remediation_notes: Mapped[str | None] = mapped_column(Text)
    resolved_at: Mapped[datetime | None]
    correlation_id: Mapped[UUID | None]
    failed_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class FailedJobDelivery(Base):
    """A delivery (one Redis id) whose failure is in ``worker_failed_jobs``: tells a redelivery from another failure."""

    __tablename__ = "worker_failed_job_deliveries"
    __table_args__ = (
        Index("idx_worker_failed_job_deliveries_failed_job_id", "failed_job_id"),
        ForeignKeyConstraint(
            ["failed_job_id"],
            ["worker_failed_jobs.id"],
            name="fk_worker_failed_job_deliveries_failed_job",
            ondelete="CASCADE",
        ),
        _OURS,
    )

    #: Dramatiq's ``redis_message_id``, new at every enqueue; the message id on a broker that has none.
    delivery_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    failed_job_id: Mapped[UUID]
    tenant_id: Mapped[UUID | None]
    recorded_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class FailedJobOriginal(Base):
    """The message as it was fetched, byte for byte. Nothing in it is redacted: only operators read it."""

    __tablename__ = "worker_failed_job_originals"
    __table_args__ = (
        ForeignKeyConstraint(
            ["failed_job_id"],
            ["worker_failed_jobs.id"],
            name="fk_worker_failed_job_originals_failed_job",
            ondelete="CASCADE",
        ),
        _OURS,
    )

    failed_job_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None]
    original: Mapped[bytes]
    recorded_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class FailedJobDetail(Base):
    """What is known of a failed job beside its row."""

    __tablename__ = "worker_failed_job_details"
    __table_args__ = (
        ForeignKeyConstraint(
            ["failed_job_id"],
            ["worker_failed_jobs.id"],
            name="fk_worker_failed_job_details_failed_job",
            deferrable=True,
            initially="DEFERRED",
        ),
        Index("idx_worker_failed_job_details_group", "fingerprint", "status", "failed_at"),
        _OURS,
    )

    failed_job_id: Mapped[UUID] = mapped_column(primary_key=True)
    tenant_id: Mapped[UUID | None]
    fingerprint: Mapped[str | None] = mapped_column(String(32))
    #: The row's, kept equal by a trigger.
    status: Mapped[str] = mapped_column(String(50))
    failed_at: Mapped[datetime]
    #: How often it failed for good: once, and once more with each replay that failed.
    failures: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    #: Its last executions, as :class:`db.failures.Attempt` gives them.
    attempts: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)
    #: When its arguments and its original were removed.
    forgotten_at: Mapped[datetime | None]


class FailedJobGroup(Base):
    """A tenant's failures of one fingerprint; a trigger keeps the counts by status."""

    __tablename__ = "worker_failed_job_groups"
    __table_args__ = (
        UniqueConstraint(
            "fingerprint",
            "tenant_id",
            name="uq_worker_failed_job_groups_fingerprint",
            postgresql_nulls_not_distinct=True,
        ),
        CheckConstraint(
            " AND ".join(
                f"{count} BETWEEN -1000000000000 AND 1000000000000"
                for count in ("failures", "pending", "in_progress", "resolved", "abandoned")
            )
            + " AND regressions BETWEEN 0 AND 1000000000",
            name="ck_worker_failed_job_groups_counts",
        ),
        CheckConstraint(
            " AND ".join(
                f"{time} BETWEEN '0001-01-02 00:00:00+00' AND '9999-12-30 00:00:00+00'"
                for time in ("first_seen", "last_seen", "resolved_at", "regressed_at")
            ),
            name="ck_worker_failed_job_groups_times",
        ),
        Index("idx_worker_failed_job_groups_tenant_id", "tenant_id"),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    tenant_id: Mapped[UUID | None]
    fingerprint: Mapped[str] = mapped_column(String(32))
    task_name: Mapped[str] = mapped_column(String(255))
    #: Of its newest row, as the three that follow.
    queue: Mapped[str | None] = mapped_column(String(100))
    error_type: Mapped[str] = mapped_column(String(100))
    exception_class: Mapped[str] = mapped_column(String(255))
    #: The message without the values in it.
    title: Mapped[str | None] = mapped_column(Text)
    #: The innermost function of the application's own code.
    place: Mapped[str | None] = mapped_column(Text)
    first_seen: Mapped[datetime]
    last_seen: Mapped[datetime]
    #: Failures that were recorded, of rows that are gone by now, too.
    failures: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    #: Rows that there are, by status.
    pending: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    in_progress: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    resolved: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    abandoned: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    #: Its newest row.
    sample_id: Mapped[UUID | None]
    #: When the last of its open rows was resolved; null while one is open.
    resolved_at: Mapped[datetime | None]
    #: When it last failed again after that.
    regressed_at: Mapped[datetime | None]
    regressions: Mapped[int] = mapped_column(Integer, server_default=text("0"))


class FailedJobEvent(Base):
    """Something that happened to a failed job, written in the transaction in which it did; outlives the row."""

    __tablename__ = "worker_failed_job_events"
    __table_args__ = (
        Index("idx_worker_failed_job_events_failed_job_id", "failed_job_id"),
        Index("idx_worker_failed_job_events_tenant_id", "tenant_id", "happened_at"),
        Index("idx_worker_failed_job_events_happened_at", "happened_at"),
        *(
            Index(
                f"idx_worker_failed_job_events_{name}",
                *columns,
                postgresql_where=text("event NOT IN ('captured', 'failed_again')"),
            )
            for name, columns in (("audit", ("id",)), ("changed_by", ("changed_by", "id")), ("event", ("event", "id")))
        ),
        _OURS,
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    #: None where it concerns no single row.
    failed_job_id: Mapped[UUID | None]
    tenant_id: Mapped[UUID | None]
    event: Mapped[str] = mapped_column(String(30))
    #: Who, as they say; the database's user is what Postgres says.
    changed_by: Mapped[str] = mapped_column(Text)
    database_user: Mapped[str] = mapped_column(Text, server_default=text("SESSION_USER"))
    reason: Mapped[str | None] = mapped_column(Text)
    #: The columns that changed.
    before: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    happened_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class FailedJobRetention(Base):
    """How long something is kept, for one tenant or, without one, for all that have no rule of their own."""

    __tablename__ = "worker_failed_job_retention"
    __table_args__ = (
        CheckConstraint("keep_days >= 0", name="ck_worker_failed_job_retention_keep_days"),
        CheckConstraint(
            "subject IN ('pending', 'in_progress', 'resolved', 'abandoned', 'payload', 'events', 'answers')",
            name="ck_worker_failed_job_retention_subject",
        ),
        UniqueConstraint(
            "tenant_id",
            "subject",
            name="uq_worker_failed_job_retention_subject",
            postgresql_nulls_not_distinct=True,
        ),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    tenant_id: Mapped[UUID | None]
    #: A status; ``payload``: arguments and originals; ``events``: the history; ``answers``: a language model's.
    subject: Mapped[str] = mapped_column(String(20))
    #: None: for ever.
    keep_days: Mapped[int | None]
    changed_by: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Replay(Base):
    """Failed jobs that are sent again: which, how, and how far that is."""

    __tablename__ = "worker_replays"
    __table_args__ = (
        CheckConstraint(
            "state IN ('running', 'paused', 'stopped', 'cancelled', 'finished')", name="ck_worker_replays_state"
        ),
        Index("idx_worker_replays_state", "state", "created_at"),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    #: Of the tenant that its author was bound to; none for an operator's.
    tenant_id: Mapped[UUID | None]
    state: Mapped[str] = mapped_column(String(20), server_default=text("'running'"))
    why: Mapped[str | None] = mapped_column(Text)
    filter: Mapped[dict[str, Any]] = mapped_column(JSONB)
    settings: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_by: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    finished_at: Mapped[datetime | None]
    matched: Mapped[int | None] = mapped_column(BigInteger)
    until_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    counted_from: Mapped[datetime] = mapped_column(server_default=_NOW)
    come_to_at: Mapped[datetime | None]
    come_to_id: Mapped[UUID | None]
    #: The process that runs it, and until when it is its to run.
    runner: Mapped[str | None] = mapped_column(String(255))
    runner_until: Mapped[datetime | None]


class ReplayItem(Base):
    """One failed job of a replay, and what became of it."""

    __tablename__ = "worker_replay_items"
    __table_args__ = (
        CheckConstraint(
            "state IN ('claimed', 'sent', 'succeeded', 'failed', 'refused', 'released')",
            name="ck_worker_replay_items_state",
        ),
        UniqueConstraint("failed_job_id", "replay_id", name="uq_worker_replay_items_failed_job"),
        ForeignKeyConstraint(
            ["replay_id"], ["worker_replays.id"], name="fk_worker_replay_items_replay", ondelete="CASCADE"
        ),
        Index("idx_worker_replay_items_state", "replay_id", "state", "ended_at"),
        Index("idx_worker_replay_items_tenant_id", "tenant_id"),
        _OURS,
    )

    #: Also the Redis id of the message that is sent.
    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    replay_id: Mapped[UUID]
    failed_job_id: Mapped[UUID]
    tenant_id: Mapped[UUID | None]
    state: Mapped[str] = mapped_column(String(20), server_default=text("'claimed'"))
    why: Mapped[str | None] = mapped_column(Text)
    #: Where arguments were edited, the id of the edit, and the names of those that it changed.
    edit: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    claimed_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    sent_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class ReplayEdit(Base):
    """The arguments that a replay sends instead of a job's own; operators only."""

    __tablename__ = "worker_replay_edits"
    __table_args__ = (
        ForeignKeyConstraint(
            ["failed_job_id"], ["worker_failed_jobs.id"], name="fk_worker_replay_edits_failed_job", ondelete="CASCADE"
        ),
        Index("idx_worker_replay_edits_failed_job_id", "failed_job_id"),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    failed_job_id: Mapped[UUID]
    tenant_id: Mapped[UUID | None]
    #: JSON, kept as originals are.
    edit: Mapped[bytes]
    recorded_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Once(Base):
    """What :func:`db.once.once` recorded. The primary key is ``id``, because ``tenant_id`` may be null."""

    __tablename__ = "worker_once"
    __table_args__ = (
        UniqueConstraint("tenant_id", "key", name="uq_worker_once_key", postgresql_nulls_not_distinct=True),
        Index("idx_worker_once_recorded_at", "recorded_at"),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    tenant_id: Mapped[UUID | None]
    #: ``message:`` and the message id, or ``key:`` and what the caller gave.
    key: Mapped[str] = mapped_column(String(300))
    #: The message that was executed; none outside of a job.
    message_id: Mapped[str | None] = mapped_column(String(155))
    recorded_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Tenant(Base):
    """Whom work is done for."""

    __tablename__ = "tenants"
    __table_args__ = _OURS

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class AttributionEvent(Base):
    """A touch (somebody met a channel) or a conversion (somebody brought revenue)."""

    __tablename__ = "attribution_events"
    __table_args__ = (
        CheckConstraint(
            "(event_type = 'touch' AND channel IS NOT NULL AND revenue_cents IS NULL)"
            " OR (event_type = 'conversion' AND channel IS NULL AND revenue_cents IS NOT NULL"
            " AND revenue_cents >= 0)",
            name="ck_attribution_events_shape",
        ),
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_attribution_events_tenant"),
        Index("idx_attribution_events_window", "tenant_id", "event_type", "occurred_at"),
        _OURS,
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    event_type: Mapped[str] = mapped_column(String(20))
    visitor_id: Mapped[str] = mapped_column(String(255))
    channel: Mapped[str | None] = mapped_column(String(100))
    revenue_cents: Mapped[int | None] = mapped_column(BigInteger)
    occurred_at: Mapped[datetime]


class AttributionRecomputeJob(Base):
    """One window of one tenant under one model: what a re-run finds again."""

    __tablename__ = "attribution_recompute_jobs"
    __table_args__ = (
        CheckConstraint("window_start < window_end", name="ck_attribution_recompute_jobs_window"),
        ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_attribution_recompute_jobs_tenant"),
        UniqueConstraint(
            "tenant_id",
            "window_start",
            "window_end",
            "model",
            "model_version",
            name="uq_attribution_recompute_jobs_window",
        ),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    tenant_id: Mapped[UUID]
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    model: Mapped[str] = mapped_column(String(50))
    model_version: Mapped[str] = mapped_column(String(50))
    run_count: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    conversions: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    allocations: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    revenue_cents: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    first_run_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    last_run_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    correlation_id: Mapped[UUID | None]


class AttributionAllocation(Base):
    """What a touch earned of a conversion; ``position`` 0 with channel ``direct`` where there was no touch.

    No foreign key to the job: a million rows a window would each pay for it, and only ``recompute_window`` writes here,
    under the lock of its job's row.
    """

    __tablename__ = "attribution_allocations"
    __table_args__ = (CheckConstraint("allocated_cents >= 0", name="ck_attribution_allocations_cents"), _OURS)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    conversion_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    touch_id: Mapped[str | None] = mapped_column(String(255))
    channel: Mapped[str] = mapped_column(String(100))
    allocated_cents: Mapped[int] = mapped_column(BigInteger)


class AttributionChannelDay(Base):
    """What a channel earned on a day (UTC) under a model, by the last recompute of a window that holds all of it."""

    __tablename__ = "attribution_channel_days"
    __table_args__ = (CheckConstraint("allocated_cents >= 0", name="ck_attribution_channel_days_cents"), _OURS)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(String(50), primary_key=True)
    model_version: Mapped[str] = mapped_column(String(50), primary_key=True)
    channel: Mapped[str] = mapped_column(String(100), primary_key=True)
    allocated_cents: Mapped[int] = mapped_column(BigInteger)
    #: The window that it is of: a row of ``attribution_recompute_jobs``.
    job_id: Mapped[UUID]


class AttributionRun(Base):
    """A day that is recomputed for every tenant with events in it, and how that went."""

    __tablename__ = "attribution_runs"
    __table_args__ = (Index("idx_attribution_runs_started_at", "started_at"), _OURS)

    id: Mapped[UUID] = mapped_column(primary_key=True)
    #: None: for all.
    tenant_id: Mapped[UUID | None]
    day: Mapped[date]
    correlation_id: Mapped[UUID]
    started_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: None until it is known for whom there is something to do.
    expected: Mapped[int | None] = mapped_column(Integer)
    finished_at: Mapped[datetime | None]
    #: As it was then.
    succeeded: Mapped[int | None] = mapped_column(Integer)
    failed: Mapped[int | None] = mapped_column(Integer)
    summary: Mapped[str | None] = mapped_column(Text)


class AttributionRunChild(Base):
    """A tenant's part in a run under one model: a message, whose id is its own, and what became of it."""

    __tablename__ = "attribution_run_children"
    __table_args__ = (
        UniqueConstraint("run_id", "tenant_id", "model", name="uq_attribution_run_children_run"),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID]
    tenant_id: Mapped[UUID]
    model: Mapped[str] = mapped_column(String(50))
    sent_at: Mapped[datetime | None]
    succeeded_at: Mapped[datetime | None]
    #: Stays where a replay has succeeded since.
    failed_at: Mapped[datetime | None]


class LlmAnswer(Base):
    """What a language model said about a window: one answer for each window, model and version, the newest."""

    __tablename__ = "worker_llm_answers"
    __table_args__ = (
        CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND cost_microcents >= 0", name="ck_worker_llm_answers_cost"
        ),
        UniqueConstraint(
            "tenant_id", "window_start", "window_end", "model", "model_version", name="uq_worker_llm_answers_window"
        ),
        Index("idx_worker_llm_answers_answered_at", "answered_at"),
        _OURS,
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    tenant_id: Mapped[UUID]
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    model: Mapped[str] = mapped_column(String(50))
    model_version: Mapped[str] = mapped_column(String(50))
    #: Of what was asked: the same while the window's allocations are.
    fingerprint: Mapped[str] = mapped_column(String(64))
    language_model: Mapped[str] = mapped_column(String(200))
    answer: Mapped[str] = mapped_column(Text)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    #: Millionths of a cent.
    cost_microcents: Mapped[int] = mapped_column(BigInteger)
    #: Of the call that it came of, which its message gives it.
    call_id: Mapped[UUID]
    correlation_id: Mapped[UUID | None]
    answered_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class LlmBudget(Base):
    """What a tenant may spend on language models in a month, where that is not ``LLM_MONTHLY_BUDGET``."""

    __tablename__ = "worker_llm_budgets"
    __table_args__ = (
        CheckConstraint("monthly_cents BETWEEN 0 AND 1000000000000", name="ck_worker_llm_budgets_monthly_cents"),
        _OURS,
    )

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    #: None: no limit.
    monthly_cents: Mapped[int | None] = mapped_column(BigInteger)
    changed_by: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class LlmSpending(Base):
    """What a tenant has spent on language models in a month, calls without an answer to store included."""

    __tablename__ = "worker_llm_spending"
    __table_args__ = _OURS

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    #: Its first day.
    month: Mapped[date] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    input_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    spent_microcents: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))


class LlmReservation(Base):
    """What a call under way may cost at most; it counts no longer than ``reserved_until``."""

    __tablename__ = "worker_llm_reservations"
    __table_args__ = (CheckConstraint("microcents >= 0", name="ck_worker_llm_reservations_microcents"), _OURS)

    tenant_id: Mapped[UUID] = mapped_column(primary_key=True)
    call_id: Mapped[UUID] = mapped_column(primary_key=True)
    month: Mapped[date]
    microcents: Mapped[int] = mapped_column(BigInteger)
    reserved_until: Mapped[datetime]


class OutboxMessage(Base):
    """A message that was sent inside a transaction, from its commit until Redis is known to have it."""

    __tablename__ = "worker_outbox"
    __table_args__ = _OURS

    #: In the order of sending, within a transaction.
    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    #: The message's.
    tenant_id: Mapped[UUID | None]
    queue: Mapped[str] = mapped_column(String(110))
    #: Under which Redis is to have it.
    redis_id: Mapped[str] = mapped_column(String(100))
    message_id: Mapped[str] = mapped_column(String(155))
    actor: Mapped[str] = mapped_column(String(255))
    #: Encoded, and sealed as originals are.
    message: Mapped[bytes]
    written_at: Mapped[datetime] = mapped_column(server_default=text("clock_timestamp()"))
